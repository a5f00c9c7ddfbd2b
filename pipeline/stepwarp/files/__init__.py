"""Files in and out: what is read is checked, what is written is whole."""

from stepwarp.files.atomic import atomic_path, check_file_target, write_text
from stepwarp.files.landmarks import Landmarks, read_landmarks, write_landmarks
from stepwarp.files.parts import sha256
from stepwarp.files.sources import as_either, as_image, as_labels, as_mask, each_of, given_back, stated_kind
from stepwarp.files.transforms import read_transform, unbracketed, write_affine, write_composite, write_displacement
from stepwarp.files.trust import Trust, TrustRules
from stepwarp.files.volumes import (
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
    "as_either",
    "as_image",
    "as_labels",
    "as_mask",
    "atomic_path",
    "check_file_target",
    "each_of",
    "given_back",
    "on_grid_of",
    "read_either",
    "read_image",
    "read_labels",
    "read_landmarks",
    "read_mask",
    "read_transform",
    "sha256",
    "stated_kind",
    "unbracketed",
    "write_affine",
    "write_composite",
    "write_displacement",
    "write_landmarks",
    "write_text",
    "write_volume",
]
