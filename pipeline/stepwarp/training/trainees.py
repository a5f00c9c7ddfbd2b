"""Which trainee a recipe is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stepwarp.training.config import AnyTraining
from stepwarp.training.registrar import TrainedRegistrar
from stepwarp.training.segmenter import TrainedSegmenter
from stepwarp.training.segmenter_config import SegmenterTraining
from stepwarp.training.start import TrainingStart
from stepwarp.training.trainee import Trainee


def trainee_of(
    config: AnyTraining,
    start: TrainingStart | None = None,
    ignore_labels: Iterable[int] = (),
    structures: Mapping[int, int] | None = None,
) -> Trainee:
    """What a recipe trains, untrained or as its start says. ignore_labels, structures: of a registrar."""
    if isinstance(config, SegmenterTraining):
        return TrainedSegmenter(config, start)
    return TrainedRegistrar(config, start, ignore_labels, structures)
