"""Transforms of other programs, told by what their files say of themselves.

Fields of SPM and NiftyReg have the form of ITK's (five axes, intent vector) and hold something else; those of FSL, AFNI
and MRtrix have that of Learn2Reg's (four axes). What is certain is read: vectors in RAS mm, as positions or as
displacements. The rest is refused with the program's name and the command that converts it. A field that names no
program is ITK's, whose writers give none, unless its vectors are positions."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header

from stepwarp.errors import InputError
from stepwarp.files import quiet_nibabel
from stepwarp.geometry import Grid

#: What the vectors of a field are: RAS mm, of the moving world's points or from the fixed ones to them.
Vectors = Literal["positions", "displacements"]

_FSL = {
    2006: "a displacement field of FNIRT",
    2007: "coefficients of cubic splines",
    2008: "coefficients of cosines",
    2009: "coefficients of quadratic splines",
}
_FSL_INTENTS = range(2006, 2020)  # those of topup among them
_AFNI_EXTENSION = 4
#: So near, as a share of the grid's extent, vectors are to their own points if they are positions: turns and stretches
#: between two subjects are less.
_POSITIONS_WITHIN = 0.5
#: NiftyReg's `intent_p1`: what is read, and in words what is not.
_NIFTYREG: dict[float, Vectors] = {0: "positions", 1: "displacements"}
_NIFTYREG_OTHERS: dict[float, str] = {
    2: "control points of splines",
    3: "a velocity field",
    4: "a velocity field",
    5: "control points of a velocity",
    6: "control points of splines",
}
#: What makes ITK's form of a field of AFNI in NIfTI: its vectors, LPS mm, are ITK's on a grid that is not oblique.
_AFNI_FIELD = (
    "nifti_tool -rm_ext ALL -infiles {path} -prefix d.nii; "
    "nifti_tool -mod_hdr -mod_field intent_code 1007 -infiles d.nii -prefix field.nii"
)
#: The same of a matrix: 3 rows of 4, in one line or in three, LPS mm as ITK's, whose file has the shifts at the end.
_AFNI_MATRIX = (
    """awk 'BEGIN {{ print "#Insight Transform File V1.0" }} !/^#/ {{ for (i = 1; i <= NF; i++) a[++n] = $i }} """
    """END {{ print "Transform: AffineTransform_double_3_3"; """
    """print "Parameters:", a[1], a[2], a[3], a[5], a[6], a[7], a[9], a[10], a[11], a[4], a[8], a[12]; """
    """print "FixedParameters: 0 0 0" }}' {path} > affine.tfm"""
)
#: Files of other programs by their ending, and what makes ITK's form of them.
_BY_NAME = {
    ".m3z": ("FreeSurfer", "mri_warp_convert --inm3z {path} --outitk field.nii.gz"),
    ".mgz": ("FreeSurfer", "mri_warp_convert --inras {path} --insrcgeom MOVING --outitk field.nii.gz"),
    ".mgh": ("FreeSurfer", "mri_warp_convert --inras {path} --insrcgeom MOVING --outitk field.nii.gz"),
    ".lta": ("FreeSurfer", "lta_convert --inlta {path} --outitk affine.txt"),
    ".xfm": ("MINC", "lta_convert --inmni {path} --src MOVING --trg FIXED --outitk affine.txt"),
    ".dat": ("FreeSurfer", "lta_convert --inreg {path} --src MOVING --trg FIXED --outitk affine.txt"),
    ".head": ("AFNI", f"3dcopy {{path}} a.nii; {_AFNI_FIELD.format(path='a.nii')}"),
    ".brik": ("AFNI", f"3dcopy {{path}} a.nii; {_AFNI_FIELD.format(path='a.nii')}"),
    ".mif": ("MRtrix", "mrconvert {path} field.nii, and give that"),
}
_PLAIN_MATRIX = (
    "is a plain 4 x 4 matrix, which FSL means in another way than NiftyReg and Greedy do. Convert it: "
    "c3d_affine_tool -ref FIXED -src MOVING {path} -fsl2ras -oitk affine.txt if it is FSL's, "
    "c3d_affine_tool {path} -oitk affine.txt if it is one of theirs."
)


@dataclass(frozen=True)
class ForeignField:
    """A field that names its program. vectors: what is in it, None for what is not read; refusal: then, why."""

    program: str
    vectors: Vectors | None
    refusal: str = ""


def foreign_field(path: Path, header: Nifti1Header) -> ForeignField | None:
    """What the header of a field says of the program that wrote it; None if it names none.

    Descriptions count where the intent is none: tools hand them on from images to what they make of them."""
    intent, name, description = int(header["intent_code"]), _text(header, "intent_name"), _text(header, "descrip")
    if name.startswith("nreg"):
        return _of_niftyreg(path, name, float(header["intent_p1"]))
    if intent in _FSL_INTENTS:
        return _of_fsl(path, _FSL.get(intent, "a result of topup"))
    if name == "mapping" or (intent == 0 and description.startswith("deformation")):
        return ForeignField("SPM", "positions")
    if intent == 0 and description.startswith(("flow field", "velocity")):
        what = "a flow, not yet the map that it leads to. Make that with Util > Deformations (y_*.nii), which is read"
        return ForeignField("SPM", None, f"{path}: is from SPM and holds {what}.")
    if intent == 0 and description.startswith("mrtrix"):
        command = f"warpconvert {path} deformation2displacement d.nii; wb_command -convert-warpfield -from-world d.nii"
        return _unread(path, "MRtrix", "no voxels: its warps are in RAS mm", f"{command} -to-itk field.nii.gz")
    if _AFNI_EXTENSION in _extensions(path):
        what = "what is no field of ITK; if it is a warp on a grid that is not oblique, its vectors are ITK's"
        return _unread(path, "AFNI", what, _AFNI_FIELD.format(path=path))
    return None


def displacements(vectors: np.ndarray, what: Vectors, grid: Grid) -> np.ndarray:
    """RAS mm vectors (I, J, K, 3), as displacements (float32) of the points of a grid of that shape."""
    if what == "displacements":
        return vectors.astype(np.float32)
    result = np.empty(vectors.shape, np.float32)
    for axis in range(3):
        result[..., axis] = vectors[..., axis] - _world(grid, axis)
    return result


def refuse_positions(vectors: np.ndarray, grid: Grid, path: Path) -> None:
    """InputError for vectors (I, J, K, 3), as in a file that names no program, which follow the RAS mm of their own
    points. As displacements in LPS mm they would send all of them onto one line; they are a map that lost its name."""
    i, j, k = (slice(None, None, max(1, n // 16)) for n in grid.shape)
    along = [(vectors[i, j, k, axis], np.broadcast_to(_world(grid, axis), grid.shape)[i, j, k]) for axis in range(3)]
    with np.errstate(invalid="ignore"):  # what is not finite is refused afterwards
        apart = sum(float(np.var(vector - world)) for vector, world in along)
    if apart < _POSITIONS_WITHIN**2 * sum(float(np.var(world)) for _, world in along):
        raise InputError(
            f"{path}: holds positions in RAS mm, as the maps of SPM and NiftyReg do, and not the displacements of ITK. "
            "If it is one of theirs, set its intent_name to Mapping (nifti_tool -mod_hdr -mod_field intent_name "
            f"Mapping -infiles {path} -prefix y.nii), and it is read."
        )


def _world(grid: Grid, axis: int) -> np.ndarray:
    """A coordinate of all voxels, RAS mm, in a shape that spreads to the grid's."""
    index = np.ogrid[tuple(slice(n) for n in grid.shape)]
    return grid.affine[axis, 3] + sum(grid.affine[axis, n] * index[n] for n in range(3))


def refuse_foreign(path: Path) -> None:
    """InputError for a file that another program's transforms are known by, from its ending or its first lines."""
    if path.suffix.lower() in _BY_NAME:
        program, command = _BY_NAME[path.suffix.lower()]
        raise InputError(f"{path}: is a transform of {program}. Convert it: {command.format(path=path)}.")
    with path.open("rb") as file:
        start = file.read(4096)
    text = start.decode("latin-1")
    if text.startswith("MATLAB 5.0"):
        raise InputError(f"{path}: is of MATLAB 5, as SPM writes. Give its map, y_*.nii, which SPM's Segment makes.")
    if '(Transform "' in text:
        command = f"transformix -def all -tp {path} -out FOLDER"
        raise InputError(f"{path}: is of elastix. Convert it: {command}, and give FOLDER/deformationField.nii.gz.")
    if "3dAllineate" in text or "3dvolreg" in text or path.suffix.lower() == ".1d":
        command = _AFNI_MATRIX.format(path=shlex.quote(str(path)))
        raise InputError(f"{path}: is a matrix of AFNI. Convert it: {command}")
    if "MNI Transform File" in text:
        raise InputError(f"{path}: is of MINC. Convert it: {_BY_NAME['.xfm'][1].format(path=path)}.")
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(rows) == 4 and all(len(row) == 4 and all(map(_is_number, row)) for row in rows):
        raise InputError(f"{path}: {_PLAIN_MATRIX.format(path=path)}")


def _of_niftyreg(path: Path, name: str, kind: float) -> ForeignField:
    vectors = _NIFTYREG.get(kind) if name == "nreg_trans" else None
    if vectors is not None:
        return ForeignField("NiftyReg", vectors)
    what = _NIFTYREG_OTHERS.get(kind, "a transform of a kind that is not known here")
    return _unread(path, "NiftyReg", what, f"reg_transform -ref FIXED -def {path} field.nii.gz")


def _of_fsl(path: Path, what: str) -> ForeignField:
    """Its millimetres are those of scaled voxels, whose sign and origin depend on both images."""
    field, first = str(path), ""
    if "coefficients" in what:
        field, first = "d.nii.gz", f"fnirtfileutils --in={path} --ref=FIXED --withaff --out=d.nii.gz; "
    command = f"{first}wb_command -convert-warpfield -from-fnirt {field} MOVING -to-itk field.nii.gz"
    return _unread(path, "FSL", what, command)


def _unread(path: Path, program: str, what: str, command: str) -> ForeignField:
    return ForeignField(program, None, f"{path}: is from {program} and holds {what}. Convert it: {command}.")


def _extensions(path: Path) -> set[int]:
    """The codes of the header's extensions; whatever is wrong with them, a reader of the file does not mind."""
    try:
        return {extension.get_code() for extension in quiet_nibabel.load(path).header.extensions}  # type: ignore[attr-defined]
    except Exception:  # nibabel raises whatever its parser runs into
        return set()


def _text(header: Nifti1Header, field: str) -> str:
    return bytes(header[field].item()).rstrip(b"\0").decode("latin-1").strip().lower()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
