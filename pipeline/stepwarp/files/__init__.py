"""Files in and out: what is read is checked, what is written is whole."""

from stepwarp.files.atomic import atomic_path, write_text
from stepwarp.files.landmarks import Landmarks, read_landmarks, write_landmarks
from stepwarp.files.placement import Trust
from stepwarp.files.sources import as_either, as_image, as_labels, as_mask, given_back, stated_kind
from stepwarp.files.transforms import read_transform, write_affine, write_composite, write_displacement
from stepwarp.files.volumes import (
    read_either,
    read_image,
    read_labels,
    read_mask,
    require_grid_of,
    sha256,
    write_volume,
)
from stepwarp.files.voxels import Voxels

__all__ = [
    "Landmarks",
    "Trust",
    "Voxels",
    "as_either",
    "as_image",
    "as_labels",
    "as_mask",
    "atomic_path",
    "given_back",
    "read_either",
    "read_image",
    "read_labels",
    "read_landmarks",
    "read_mask",
    "read_transform",
    "require_grid_of",
    "sha256",
    "stated_kind",
    "write_affine",
    "write_composite",
    "write_displacement",
    "write_landmarks",
    "write_text",
    "write_volume",
]
