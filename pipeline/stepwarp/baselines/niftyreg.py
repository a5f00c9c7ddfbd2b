"""NiftyReg, when its programs are on the PATH: reg_aladin, then reg_f3d.

Tested with NiftyReg 1.5.70, built by the PyPI package niftyreg 1.5.70rc1. NiftyReg counts in RAS mm, as we do; its
displacement fields lie on the fixed grid and hold the affine, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwarp.baselines._exchange import as_files, run
from stepwarp.baselines._method import Outcome, missing_programs, require
from stepwarp.files.nifti import read_nifti
from stepwarp.geometry import DisplacementField, Image

PROGRAMS = ("reg_aladin", "reg_f3d", "reg_transform")


@dataclass(frozen=True)
class NiftyReg:
    """Block matching to an affine, then B-spline free-form deformation by NMI, all settings at their defaults.

    Nothing in it is random. It delivers no inverse."""

    name: str = "niftyreg"
    title: str = "NiftyReg reg_f3d"

    def missing(self) -> str | None:
        return missing_programs(
            PROGRAMS,
            "build NiftyReg (https://github.com/KCL-BMEIS/niftyreg), or let CMAKE_POLICY_VERSION_MINIMUM=3.5 "
            "pip install niftyreg build it and add its folder niftyreg/bin to the PATH",
        )

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        require(self)
        aladin, f3d, transform = PROGRAMS
        with as_files(fixed, moving) as (folder, reference, floating):
            images: list[str | Path] = [
                "-ref",
                reference,
                "-flo",
                floating,
                "-omp",
                str(threads),
                "-res",
                folder / "moved.nii",
            ]
            affine, knots, field = folder / "affine.txt", folder / "knots.nii", folder / "field.nii"
            run([aladin, *images, "-comi", "-aff", affine], threads)
            run([f3d, *images, "-aff", affine, "-cpp", knots], threads)
            run([transform, "-ref", reference, "-disp", knots, field], threads)
            _, vectors = read_nifti(field)
        record = {
            "command": f"reg_aladin -comi -omp {threads}; reg_f3d -aff affine.txt -omp {threads}; reg_transform -disp",
            "versions": {"niftyreg": run([aladin, "--version"], threads).strip()},
            "threads": threads,
        }
        return Outcome(DisplacementField.from_millimetres(vectors[:, :, :, 0], fixed.grid), None, record)


METHODS = (NiftyReg(),)
