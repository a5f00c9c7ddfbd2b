"""Files in and out: what is read is checked, what is written is whole."""

from stepwarp.files.atomic import atomic_path, write_text
from stepwarp.files.landmarks import Landmarks, read_landmarks, write_landmarks
from stepwarp.files.parts import sha256
from stepwarp.files.transforms import read_transform, write_affine, write_composite, write_displacement
from stepwarp.files.trust import Trust, TrustRules
from stepwarp.files.volumes import (
    as_image,
    as_labels,
    as_mask,
    on_grid_of,
    read_either,
    read_image,
    read_labels,
    read_mask,
    write_volume,
)
from stepwarp.files.voxels import Voxels

__all__ = [
    "Landmarks",
    "Trust",
    "TrustRules",
    "Voxels",
    "as_image",
    "as_labels",
    "as_mask",
    "atomic_path",
    "on_grid_of",
    "read_either",
    "read_image",
    "read_labels",
    "read_landmarks",
    "read_mask",
    "read_transform",
    "sha256",
    "write_affine",
    "write_composite",
    "write_displacement",
    "write_landmarks",
    "write_text",
    "write_volume",
]
