"""Segmenting one image: what the command of that name does between reading and writing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepwarp import files
from stepwarp.errors import InputError
from stepwarp.files.json import write_json
from stepwarp.files.tables import csv_text
from stepwarp.geometry import Image
from stepwarp.kernels.precision import without_tf32
from stepwarp.layout import MASK, SEGMENTATION, SEGMENTED, STRUCTURES, VOLUMES
from stepwarp.machine import device_name
from stepwarp.progress import Progress, silent
from stepwarp.segment import Segmentation, load_segmenter, segment
from stepwarp.segment.segmenters import SHIPPED_SEGMENTER
from stepwarp.version import __version__
from stepwarp.workflow.anatomy import described_segmenter, require_head, shipped_segmenter
from stepwarp.workflow.clock import Clock
from stepwarp.workflow.device import chosen_device, use_threads
from stepwarp.workflow.kinds import kind_of
from stepwarp.workflow.result_folder import ResultFolder
from stepwarp.workflow.subjects import Source, described_image

_RESULT = ResultFolder("segmentation", SEGMENTED, SEGMENTATION)


@dataclass(frozen=True, eq=False)
class SegmentedImage:
    """A head with what was found in it. record: what segmentation.json holds."""

    segmentation: Segmentation
    record: dict[str, Any]

    def save(
        self, out: str | Path, *, overwrite: bool = False, progress: Progress = silent, place: Path | None = None
    ) -> Path:
        """Write structures, mask, volumes and record into a folder, all or nothing, and return it.

        place: of `claimed`, if that holds the folder already. Raises OutputError if it cannot be written, or holds
        results that may not be replaced, or files that stepwarp did not write."""
        out = Path(out)
        with nullcontext(place) if place is not None else claimed(out, overwrite) as partial:
            clock = Clock(progress, self.record["stages"])
            with clock.stage("write"):
                files.write_volume(partial / STRUCTURES, self.segmentation.structures)
                files.write_volume(partial / MASK, self.segmentation.mask)
                files.write_text(partial / VOLUMES, csv_text(self._volumes()))
            self.record["outputs"] = {path.name: files.sha256(path) for path in sorted(partial.iterdir())}
            write_json(partial / SEGMENTATION, self.record)
            _RESULT.publish(partial, out, overwrite)
        return out

    def _volumes(self) -> list[tuple[object, ...]]:
        ids = {each.name: each.id for each in self.segmentation.known}
        rows = [(ids.get(name, ""), name, volume) for name, volume in self.segmentation.volumes.items()]
        return [("id", "name", "ml"), *rows]


def claimed(out: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """Lend a folder to work in for a segmentation, as `ResultFolder.claimed`."""
    return _RESULT.claimed(out, overwrite)


@without_tf32()
def segment_image(
    source: Source,
    *,
    weights: str | Path = SHIPPED_SEGMENTER,
    device: str = "auto",
    threads: int | None = None,
    trust: str | Sequence[str] | None = None,
    progress: Progress = silent,
) -> SegmentedImage:
    """The structures, the brain and their volumes in an image of a head.

    Parameters
    ----------
    source : path or image
        As `register` takes them: of any contrast, spacing and orientation, whole or skull-stripped.
    weights : path or str
        A segmenter that `stepwarp train` wrote, or the name of a shipped one.
    device, threads, trust
        As of `register`.
    progress : callable
        Is told the stages, as `ProgressReport`.

    Returns
    -------
    SegmentedImage
        On the image's own grid.

    Raises
    ------
    InputError
        For an image that cannot be used, for one that shows no head, for a label map in its place, and for weights that
        are no segmenter's.
    """
    place = chosen_device(device)
    used = use_threads(threads)
    clock, rules = Clock(progress, device=place), files.TrustRules.of(trust)
    with clock.stage("read"):
        shipped = weights == SHIPPED_SEGMENTER
        segmenter = shipped_segmenter(place) if shipped else load_segmenter(weights, place)
        image = files.as_image(source, trust=rules, unnamed="the image")
        _refuse_labels(image)
    with clock.stage("structures"):
        found = segment(image, segmenter)
        require_head(found)
    with clock.stage("grid"):
        volumes = found.volumes
    record = {
        "version": __version__,
        "input": described_image(source, image),
        "trusted": rules.record(),
        "segmenter": described_segmenter(segmenter, weights),
        "device": device_name(place),
        "threads": used,
        "stages": clock.stages,
        "head": found.head.as_dict(),
        "volumes_ml": volumes,
    }
    return SegmentedImage(found, record)


def _refuse_labels(image: Image) -> None:
    """InputError for a label map, which may well look like a head."""
    values = image.data.numpy()
    if np.array_equal(values, np.trunc(values)) and kind_of(values.astype(np.int64)) == "labels":
        raise InputError(f"{image.name}: holds labels, whole numbers in patches. Give the scan that they are of.")
