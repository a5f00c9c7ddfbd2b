"""ITK's linear transforms of 3D space: how many numbers each has, and the affine that they mean.

Their arithmetic is SimpleITK's. What it has no class for is told in the numbers of one that it has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stepwarp.files.lps import flip_map
from stepwarp.geometry import Affine

#: A class of SimpleITK, its parameters and its fixed ones.
_Known = tuple[str, np.ndarray, np.ndarray]

#: How many parameters each may have, and how many fixed ones.
NUMBERS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "AffineTransform": ((12,), (3,)),
    "MatrixOffsetTransformBase": ((12,), (3,)),
    "ScalableAffineTransform": ((12,), (3,)),
    "FixedCenterOfRotationAffineTransform": ((12, 15), (3,)),
    "CenteredAffineTransform": ((15,), (3,)),
    "Rigid3DTransform": ((12,), (3,)),
    "Euler3DTransform": ((6,), (3, 4)),
    "CenteredEuler3DTransform": ((9,), (3, 4)),
    "QuaternionRigidTransform": ((7,), (3,)),
    "VersorTransform": ((3,), (3,)),
    "VersorRigid3DTransform": ((6,), (3,)),
    "Similarity3DTransform": ((7,), (3,)),
    "ScaleVersor3DTransform": ((9,), (3,)),
    "ScaleSkewVersor3DTransform": ((15,), (3,)),
    "ComposeScaleSkewVersor3DTransform": ((12,), (3,)),
    "ScaleTransform": ((3,), (3,)),
    "ScaleLogarithmicTransform": ((3,), (3,)),
    "TranslationTransform": ((3,), (0,)),
    "IdentityTransform": ((0,), (0,)),
}
#: Their first three parameters are the axis of a turn times the sine of half its angle; ITK shortens what is longer.
VERSORS = [name for name in NUMBERS if "Versor" in name or name.startswith("Similarity")]


def _matrix(p: np.ndarray, fixed: np.ndarray) -> _Known:
    """A matrix and a translation; where three numbers follow them, ITK writes them and never looks at them."""
    return "AffineTransform", p[:12], fixed


def _euler(p: np.ndarray, fixed: np.ndarray) -> _Known:
    """Angles and a translation; after the centre comes in which order to turn, which older files leave out."""
    return "Euler3DTransform", p, np.append(fixed, 0)[:4]


def _similarity(p: np.ndarray, fixed: np.ndarray) -> _Known:
    """From a quaternion, which ITK does not shorten to a length of 1: its square scales space."""
    length = np.linalg.norm(p[:4])
    versor = p[:3] * np.copysign(1 / max(length, np.finfo(float).tiny), p[3])
    return "Similarity3DTransform", np.concatenate([versor, p[4:], [length**2]]), fixed


_TOLD_AS: dict[str, Callable[[np.ndarray, np.ndarray], _Known]] = {
    "MatrixOffsetTransformBase": _matrix,
    "ScalableAffineTransform": _matrix,
    "FixedCenterOfRotationAffineTransform": _matrix,
    "Rigid3DTransform": _matrix,
    "CenteredAffineTransform": lambda p, _: ("AffineTransform", np.delete(p, slice(9, 12)), p[9:12]),
    "Euler3DTransform": _euler,
    "CenteredEuler3DTransform": lambda p, fixed: _euler(np.delete(p, slice(3, 6)), np.append(p[3:6], fixed[3:])),
    "QuaternionRigidTransform": _similarity,
    "ScaleLogarithmicTransform": lambda p, fixed: ("ScaleTransform", np.exp(p), fixed),
    "IdentityTransform": lambda p, fixed: ("TranslationTransform", np.zeros(3), fixed),
}


def affine_of(name: str, parameters: np.ndarray, fixed: np.ndarray) -> Affine:
    """The map, RAS mm, of a transform of `NUMBERS` with that many numbers. ValueError if it cannot be inverted."""
    import SimpleITK

    if name in _TOLD_AS:
        name, parameters, fixed = _TOLD_AS[name](parameters, fixed)
    kind = getattr(SimpleITK, name)
    transform = kind(3) if name in ("AffineTransform", "ScaleTransform", "TranslationTransform") else kind()
    try:
        transform.SetFixedParameters(fixed.tolist())
        transform.SetParameters(parameters.tolist())
    except RuntimeError as error:
        raise ValueError(f"ITK does not take its numbers ({error})") from error
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    ends = np.array([transform.TransformPoint(tuple(axis)) for axis in np.eye(3)])
    matrix = np.eye(4)
    matrix[:3, :3] = (ends - origin).T
    matrix[:3, 3] = origin
    return Affine(flip_map(matrix))
