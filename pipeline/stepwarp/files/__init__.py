"""Files in and out: what is read is checked, what is written is whole."""

from stepwarp.files.atomic import atomic_path, write_text
from stepwarp.files.landmarks import Landmarks, read_landmarks, write_landmarks
from stepwarp.files.parts import sha256
from stepwarp.files.placement import Trust
from stepwarp.files.transforms import read_transform, write_affine, write_composite, write_displacement
from stepwarp.files.volumes import as_image, as_labels, read_image, read_labels, require_grid_of, write_volume

__all__ = [
    "Landmarks",
    "Trust",
    "as_image",
    "as_labels",
    "atomic_path",
    "read_image",
    "read_labels",
    "read_landmarks",
    "read_transform",
    "require_grid_of",
    "sha256",
    "write_affine",
    "write_composite",
    "write_displacement",
    "write_landmarks",
    "write_text",
    "write_volume",
]
