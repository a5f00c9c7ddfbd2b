"""Surfaces in GIFTI: the points of a mesh move, all else that its file holds stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.gifti import GiftiDataArray, GiftiImage
from nibabel.gifti.util import gifti_encoding_codes
from nibabel.nifti1 import data_type_codes

from stepwarp.errors import InputError
from stepwarp.files import quiet_nibabel
from stepwarp.files.atomic import atomic_path
from stepwarp.presence import check_present

SURFACE_SUFFIX = ".gii"
_POINTS = "NIFTI_INTENT_POINTSET"
_EXTERNAL, _INSIDE = (gifti_encoding_codes.code[f"GIFTI_ENCODING_{kind}"] for kind in ("EXTBIN", "B64GZ"))
#: Where FreeSurfer's own origin lies in the world.
_ORIGIN = ("VolGeomC_R", "VolGeomC_A", "VolGeomC_S")


@dataclass(frozen=True, eq=False)
class Surface:
    """The surfaces of one GIFTI file. Their points are RAS mm."""

    image: GiftiImage

    def points(self) -> Iterator[np.ndarray]:
        """The points (N, 3) float64 of each array of points there is."""
        for array in self._arrays():
            yield np.asarray(array.data, dtype=np.float64)

    def write_moved(self, path: str | Path, move: Callable[[np.ndarray], np.ndarray], overwrite: bool = False) -> None:
        """Write the file with its points (float32) where `move` brings them, (N, 3) -> (N, 3) RAS mm, atomically, and
        move them here too. All other arrays, topology and metadata stay. Raises OutputError as `atomic_path` does."""
        for array in self._arrays():
            array.data = move(np.asarray(array.data, dtype=np.float64)).astype(np.float32)
            array.datatype = data_type_codes.code["float32"]
        for array in self.image.darrays:
            if array.encoding == _EXTERNAL:  # nibabel reads such arrays, and writes them only into the file itself
                array.encoding, array.ext_fname, array.ext_offset = _INSIDE, "", 0
        # Types that GIFTI does not know are kept as they were found.
        content = self.image.to_bytes(mode="force")
        with atomic_path(path, overwrite) as temporary:
            temporary.write_bytes(content)

    def remarks(self) -> tuple[str, ...]:
        """What of the file may not mean what it seems to, once the points have moved."""
        said = []
        if any(array.meta.get(key, "").strip("0.+-e ") for array in self._arrays() for key in _ORIGIN):
            said.append(
                "FreeSurfer wrote it: its points are taken as RAS mm of the scanner, as mris_convert --to-scanner "
                "writes them; others are about FreeSurfer's own origin"
            )
        if any(
            not np.allclose(system.xform, np.eye(4))
            for array in self._arrays()
            for system in np.atleast_1d(array.coordsys)
        ):
            said.append("its CoordinateSystemTransformMatrix is kept, and belongs to the points as they were")
        return tuple(said)

    def _arrays(self) -> list[GiftiDataArray]:
        return self.image.get_arrays_from_intent(_POINTS)


def read_surface(path: str | Path) -> Surface:
    """The surface of a .gii.

    Raises InputError, naming file and problem, for a file that cannot be read, and one that holds no points or points
    that are none in space."""
    path = Path(path)
    check_present(path)
    try:
        image = quiet_nibabel.load(path)
    except Exception as error:  # nibabel raises whatever its parsers run into
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as GIFTI ({reason}). Fetch or write it again.") from error
    if not isinstance(image, GiftiImage):
        raise InputError(f"{path}: is no GIFTI. Convert it: mris_convert --to-scanner SURFACE OUT.surf.gii")
    arrays = image.get_arrays_from_intent(_POINTS)
    if not arrays:
        raise InputError(f"{path}: holds no points ({_POINTS}). Give the .surf.gii that its values belong to.")
    for array in arrays:
        values = array.data
        if values is None or values.ndim != 2 or values.shape[1] != 3 or not len(values):
            found = "nothing" if values is None else " x ".join(map(str, values.shape))
            raise InputError(f"{path}: its points are no N x 3 numbers but {found}. Fetch or write it again.")
        if not np.isfinite(values).all():
            raise InputError(f"{path}: some of its points are not finite. Write it again.")
    return Surface(image)
