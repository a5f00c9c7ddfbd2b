"""Every scan's place in the network's world: an affine alignment to the MNI152 brain, computed once and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from stepwarp.config import preset
from stepwarp.data.manifest import Scan
from stepwarp.data.mni152 import mni152
from stepwarp.data.synthesis import like_t1
from stepwarp.errors import OutputError
from stepwarp.files import atomic_path, read_image, read_labels, sha256
from stepwarp.geometry import Image
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.geometry.orientation import canonical
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.registrar.affine import register_linear

#: Part of every entry: to be counted up when the same files lead to other alignments.
_VERSION = 1
_PRESET = "default"


def align(
    scans: Sequence[Scan], folder: Path, device: torch.device | str = "cpu", progress: Progress = silent
) -> dict[str, np.ndarray]:
    """Scan id -> (4, 4) float64, MNI152 world mm -> scan world mm.

    What is found is kept in `folder`, one JSON per image, named by the image's SHA-256; several processes may share it.
    A scan whose image is its label map (FreeSurfer's labels) is painted as a T1 first.

    Raises InputError for an image that cannot be read, RegistrationError where none of the starts leads to a usable
    transform, OutputError where the folder cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}). Choose another cache.") from error
    matrices = {}
    for number, scan in enumerate(scans):
        progress(ProgressReport("align", number, len(scans)))
        place = folder / f"{sha256(scan.image)}.json"
        matrix = _kept(place)
        if matrix is None:
            matrix, loss = _align(scan, device)
            content = {"version": _VERSION, "reference": "MNI152", "loss": loss, "matrix": matrix.tolist()}
            with atomic_path(place, overwrite=True) as temporary:
                temporary.write_text(json.dumps(content) + "\n")
        matrices[scan.id] = matrix
    progress(ProgressReport("align", len(scans), len(scans)))
    return matrices


def in_own_size(alignment: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """An alignment (4, 4) without its changes of size and shape: the turn nearest to it, with the point `centre` where
    it goes by the alignment."""
    left, _, right = np.linalg.svd(alignment[:3, :3])
    rigid = np.eye(4)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = alignment[:3, :3] @ centre + alignment[:3, 3] - rigid[:3, :3] @ centre
    return rigid


def _align(scan: Scan, device: torch.device | str) -> tuple[np.ndarray, float]:
    settings = preset(_PRESET)
    refine = LNCC(settings.deformable.radius, settings.deformable.epsilon)
    fit = register_linear(_reference(), _image(scan), "affine", NCC(), refine, settings.affine, device=device)
    return fit.transform.matrix, fit.loss


def _image(scan: Scan) -> Image:
    if scan.labels == scan.image:
        return canonical(like_t1(read_labels(scan.image)))
    return scale_intensities(canonical(read_image(scan.image)))


@cache
def _reference() -> Image:
    return mni152().brain


def _kept(place: Path) -> np.ndarray | None:
    """The alignment in a file; None where there is none, or it is of another version or damaged."""
    try:
        content = json.loads(place.read_text())
        matrix = np.array(content["matrix"], dtype=np.float64)
        sound = content["version"] == _VERSION and matrix.shape == (4, 4) and np.isfinite(matrix).all()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return matrix if sound else None
