"""What a registration leaves on the disk: the folder that `register` writes, or files named as ANTs names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from stepwarp.errors import InputError
from stepwarp.files.json import parse_json
from stepwarp.geometry import Grid, Image
from stepwarp.layout import AFFINE, INVERSE_WARP, JACOBIAN, RECORD, REPORT, WARP

Side = Literal["fixed", "moving"]

#: How ANTs calls the parts of a result after its prefix; the first that is there. A 0Warp has no affine before it.
_AFFINES, _WARPS = (AFFINE,), (WARP, "0Warp.nii.gz")
_COMPOSITES = ("Composite.h5",)


@dataclass(frozen=True)
class Link:
    """One entry of a list of transforms: a file, or a whole result; perhaps its inverse."""

    path: Path
    inverted: bool = False

    def flipped(self) -> Link:
        return Link(self.path, not self.inverted)

    def files(self) -> tuple[Link, ...]:
        """The files that it stands for, in the order in which a point meets them."""
        result = result_at(self.path)
        if result is None:
            return (self,)
        return result.back if self.inverted else result.forward

    def __str__(self) -> str:
        return f"[{self.path},1]" if self.inverted else str(self.path)


class RegistrationFolder:
    """The folder of `register`. Its record comes last: without it the folder is not complete.

    outside: what the user said that the moving image is beyond its grid; None if nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / RECORD
        if not path.is_file():
            raise InputError(
                f"{folder}: holds no {RECORD}, so no registration was completed there. Give the transform files."
            )
        try:
            record = parse_json(path.read_text(encoding="utf-8"), str(path))
            self.inputs: dict[str, Any] = record["inputs"]
            self.grids: dict[Side, Grid | None] = {side: self._grid(side) for side in get_args(Side)}
            self.failed = record["verdict"]["status"] == "fail"
            self.affine_only = bool(record["settings"]["affine_only"])
            outside = record["settings"].get("outside")
            self.outside = None if outside is None else float(outside)
        except (InputError, OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).removeprefix(f"{path}: ").rstrip(".")
            raise InputError(f"{path}: is not the record of a registration ({reason}). Run it again.") from error

    @property
    def forward(self) -> tuple[Link, ...]:
        self._require_warps()
        return self._links(AFFINE) if self.affine_only else self._links(WARP, AFFINE)

    @property
    def back(self) -> tuple[Link, ...]:
        self._require_warps()
        (affine,) = self._links(AFFINE)
        return (affine.flipped(),) if self.affine_only else (affine.flipped(), *self._links(INVERSE_WARP))

    def require_images(self, images: Mapping[Side, Image], hashes: Mapping[Side, str]) -> None:
        """InputError unless these are the two images that were registered; hashes: SHA-256 of their files."""
        for side, image in images.items():
            grid, recorded = self._grid(side), self.inputs[side]
            where = f"{self.folder}: is the registration of another {side} image than {image.name}"
            if not grid.coincides_with(image.grid):
                away = float(np.linalg.norm(grid.corners() - image.grid.corners(), axis=1).max())
                raise InputError(f"{where}: {grid} against {image.grid}, corners up to {away:.3g} mm apart.")
            if recorded.get("sha256") not in (None, hashes[side]):
                raise InputError(
                    f"{where}: it was made from {recorded['path']}, which has the same grid and other bytes. If it "
                    "holds for this image as well, give its transform files one by one."
                )

    def _links(self, *names: str) -> tuple[Link, ...]:
        return tuple(Link(self.folder / name) for name in names)

    def _require_warps(self) -> None:
        """InputError if it has a deformable part that is not there completely."""
        missing = [name for name in (WARP, INVERSE_WARP) if not (self.folder / name).is_file()]
        if missing and not self.affine_only:
            raise InputError(f"{self.folder}: {' and '.join(missing)} is missing. Run the registration again.")

    def _grid(self, side: str) -> Grid:
        image = self.inputs[side]
        return Grid(tuple(image["shape"]), np.array(image["affine"], dtype=float))


@dataclass(frozen=True)
class AntsResult:
    """Files named as antsRegistration names them: a prefix, and after it what they are. They say nothing of images."""

    prefix: str

    failed = False

    @property
    def grids(self) -> dict[Side, Grid | None]:
        return {"fixed": None, "moving": None}

    @property
    def exists(self) -> bool:
        return any(self._named(names) for names in (_AFFINES, _WARPS, _COMPOSITES))

    @property
    def forward(self) -> tuple[Link, ...]:
        parts = [self._named(_WARPS), self._named(_AFFINES)]
        return tuple(Link(path) for path in parts if path) or (Link(Path(self.prefix + _COMPOSITES[0])),)

    @property
    def back(self) -> tuple[Link, ...]:
        """The inverse from its own file where there is one."""
        return tuple(self._inverse(link) for link in reversed(self.forward))

    def _inverse(self, link: Link) -> Link:
        name = link.path.name
        for ending in ("Warp.nii.gz", "Composite.h5"):
            if name.endswith(ending):
                inverse = link.path.with_name(name.removesuffix(ending) + "Inverse" + ending)
                return Link(inverse) if inverse.is_file() else link.flipped()
        return link.flipped()

    def _named(self, names: tuple[str, ...]) -> Path | None:
        return next((path for name in names if (path := Path(self.prefix + name)).is_file()), None)


Result = RegistrationFolder | AntsResult


def result_at(path: Path) -> Result | None:
    """The result that a folder, or the prefix of ANTs' output files, stands for; None where a path is neither.

    Raises InputError for a folder that holds no result, a part of one, or several."""
    if not path.is_dir():
        result = AntsResult(str(path))
        return result if not path.exists() and result.exists else None
    own = [name for name in (RECORD, JACOBIAN, REPORT) if (path / name).exists()]
    prefixes = sorted(
        {
            str(file).removesuffix(name)
            for name in (*_AFFINES, *_WARPS, *_COMPOSITES)
            for file in path.glob(f"*{name}")
            if not file.name.endswith(f"Inverse{name}")
        }
    )
    if own or not prefixes:
        return RegistrationFolder(path)
    if len(prefixes) > 1:
        names = ", ".join(Path(prefix).name or "none" for prefix in prefixes)
        raise InputError(f"{path}: holds the results of several registrations. Give one with its prefix: {names}.")
    return AntsResult(prefixes[0])
