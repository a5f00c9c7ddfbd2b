"""Training a segmenter: by the label maps of single images, which are those of the pairs, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepwarp.data.scans import Scans
from stepwarp.data.structures import as_classes
from stepwarp.errors import InputError
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.geometry import Grid, LabelMap
from stepwarp.losses.segmentation import segmentation_loss
from stepwarp.networks.segmenter import Segmenter
from stepwarp.registrar.steps import parameters
from stepwarp.registrar.weights import Card
from stepwarp.segment import KnownStructure, save_segmenter
from stepwarp.training.dataset import Dataset
from stepwarp.training.segmenter_config import SegmenterTraining, StructureSettings
from stepwarp.training.start import TrainingStart
from stepwarp.training.trainee import Trainee
from stepwarp.training.validation import Validation, picture_strip

_DIMS = 3
_SIDES = ("fixed", "moving")


class TrainedSegmenter(Trainee):
    """The segmenter of a recipe."""

    module: Segmenter
    objective: SegmenterObjective

    def __init__(self, config: SegmenterTraining, start: TrainingStart | None = None) -> None:
        self.config = config
        self.module = config.segmenter.network.build(_DIMS)
        if start is not None:
            self.module.load_state_dict(start.state)
        self.labels_used = True
        self.objective = SegmenterObjective(self.module, config)

    def look_at(self, data: Dataset) -> None:
        self.known = known_structures(self.config.segmenter.structures, data.training.scans)

    def enter(self, stage: int) -> None:
        self.module.requires_grad_(True)

    @torch.no_grad()
    def judged(self, module: nn.Module, samples: Sequence[Mapping[str, Any]], device: torch.device) -> Validation:
        """segmentation_dice: the mean over the images of the mean Dice of the structures that they show, or that are
        seen where they are not."""
        grid, classes = self.config.data.grid(), self.config.segmenter.classes
        scores, strip = [], None
        for sample in samples:
            for side in _SIDES:
                image, wanted = sample[side][None].to(device), as_classes(sample[f"{side}_labels"], classes)
                found = module(image).argmax(1).cpu()
                truth, guess = (LabelMap(each[0].int(), grid, "structures") for each in (wanted, found))
                scores.append(mean_dice(dice(truth, guess)))
                if strip is None:
                    greys = [each[None].cpu() / max(classes.values()) for each in (wanted, found)]
                    strip = picture_strip(greys[0], image, greys[1])
        assert strip is not None  # there is one sample at least
        said = {"segmentation_dice": float(np.mean(scores))}
        return Validation(said, {}, strip, "wanted, image, found, difference")

    def score(self, measures: Mapping[str, float]) -> float:
        return measures["segmentation_dice"]

    def save(self, path: Path, module: nn.Module, card: Card) -> None:
        """In half precision, which takes half the room; what is added up is added up in single precision anyhow."""
        chosen, (*box, depth) = self.config.segmenter, self.config.data.grid().shape
        save_segmenter(
            path,
            {name: weights.half() for name, weights in module.state_dict().items()},
            self.known,
            card,
            channels=chosen.channels,
            convolutions=chosen.convolutions,
            mm=self.config.data.spacing_mm,
            box=(box[0], box[1], depth),
            overwrite=True,
        )

    def described(self, grid: Grid) -> str:
        count = len(self.config.segmenter.structures)
        return f"Segmenter of {count} structures, on {grid!r}: {parameters(self.module):,} parameters"

    def losses(self) -> str:
        return "labels: cross-entropy and 1 - Dice"

    def stage_in_words(self, stage: int) -> tuple[str, str, str]:
        return "all", "0", "labels"


class SegmenterObjective(nn.Module):
    """A segmenter with the loss that it is trained by, which counts every voxel. Half precision, where the recipe wants
    it, is for the network alone."""

    def __init__(self, network: nn.Module, config: SegmenterTraining) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, batch: Mapping[str, Tensor], stage_number: int, seed: int = 0) -> dict[str, Tensor]:
        """The loss of both images, under "loss" and by its name. batch: fixed, moving, fixed_labels and moving_labels
        (B, 1, *grid)."""
        each = [self._of(batch[side], batch[f"{side}_labels"]) for side in _SIDES]
        loss = torch.stack(each).mean()
        return {"loss": loss, "segmentation": loss}

    def _of(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.network(images)
        wanted = as_classes(labels, self.config.segmenter.classes)
        return segmentation_loss(logits, wanted, torch.ones_like(wanted, dtype=torch.bool))


def known_structures(structures: Sequence[StructureSettings], scans: Scans) -> list[KnownStructure]:
    """What is to be known of the structures: the least and the most of each in the label maps of the scans, which are
    measured in their own world, and where it lies in their mean head.

    Raises InputError for a structure that is in none of them."""
    classes = {label: number for number, each in enumerate(structures, 1) for label in each.own_labels}
    measured = []
    for name in scans.about:
        scan = scans[name]
        values = as_classes(scan.labelled().values()[0, 0], classes)
        measured.append(measured_classes(values, len(structures), scan.matrix.numpy() @ scans.grid.affine))
    return described_structures(structures, measured)


def measured_classes(values: Tensor, count: int, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the classes 1 to count of a map (*shape) int64: millilitres (count,) and centres of mass (count, 3), not a
    number for one that is nowhere, in the world that `affine` leads to, mm."""
    flat = values.flatten()
    voxels = torch.bincount(flat, minlength=1 + count)[1:].double()
    lines = torch.meshgrid(*(torch.arange(n, device=values.device).double() for n in values.shape), indexing="ij")
    sums = [torch.bincount(flat, line.flatten(), 1 + count)[1:] for line in lines]
    centres = (torch.stack(sums, 1) / voxels[:, None]).cpu().numpy()
    millilitres = voxels.cpu().numpy() * abs(np.linalg.det(affine[:3, :3])) / 1000
    return millilitres, centres @ affine[:3, :3].T + affine[:3, 3]


def described_structures(
    structures: Sequence[StructureSettings], measured: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[KnownStructure]:
    """The structures with what `measured_classes` says of each head."""
    volumes, centres = (np.array(each) for each in zip(*measured, strict=True))
    missing = [each.name for each, most in zip(structures, volumes.max(0), strict=True) if not most > 0]
    if missing:
        raise InputError(f"structure '{missing[0]}': is in no label map of the training. Check its labels.")
    centres = centres - np.nanmean(centres, 1, keepdims=True)
    middle = np.nanmean(centres, 0)
    least, most = volumes.min(0).round(2), volumes.max(0).round(2)
    return [
        KnownStructure(
            id=each.id,
            name=each.name,
            brain=each.brain,
            millilitres=(float(low), float(high)),
            centre=tuple(point.round(1).tolist()),
        )
        for each, low, high, point in zip(structures, least, most, middle, strict=True)
    ]
