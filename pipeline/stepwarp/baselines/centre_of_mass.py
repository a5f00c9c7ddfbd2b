"""The centres of mass are put on each other: the second floor of every table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepwarp.baselines._method import Outcome
from stepwarp.errors import RegistrationError
from stepwarp.geometry import Affine, Image
from stepwarp.geometry.grid import float64


@dataclass(frozen=True)
class CentreOfMass:
    """The translation that brings the fixed image's centre of mass to the moving image's."""

    name: str = "centre-of-mass"
    title: str = "centre of mass"

    def missing(self) -> None:
        return None

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        shift = centre_of_mass(moving) - centre_of_mass(fixed)
        matrix = np.eye(len(shift) + 1)
        matrix[:-1, -1] = shift
        transform = Affine(matrix)
        return Outcome(
            transform, transform.inverse(), {"command": "x -> x + shift", "versions": {}, "shift_mm": list(shift)}
        )


def centre_of_mass(image: Image) -> np.ndarray:
    """The centre of the intensities above the image's lowest, a world point (D,) in mm.

    RegistrationError if the image is constant, which has none."""
    weight = image.data.double() - image.data.min()
    total = weight.sum()
    if total == 0:
        raise RegistrationError(f"{image.name}: has one value everywhere and so no centre of mass. Check the image.")
    axes = range(weight.ndim)
    index = [
        (weight.sum([a for a in axes if a != axis]) * float64(np.arange(weight.shape[axis]))).sum() / total
        for axis in axes
    ]
    return Affine(image.grid.affine)(np.array(index, dtype=float))


METHODS = (CentreOfMass(),)
