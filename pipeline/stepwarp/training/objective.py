"""The registrar in training: from a batch of pairs to the terms of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from stepwarp.data.structures import as_classes
from stepwarp.geometry import Grid, Transform
from stepwarp.losses.consistency import gradicon, inverse_consistency, scattered
from stepwarp.losses.overlap import soft_dice
from stepwarp.losses.regularity import REGULARITIES, folding
from stepwarp.losses.segmentation import segmentation_loss
from stepwarp.losses.supervision import field_distance
from stepwarp.registrar.steps import Images, Segmented, Step, TwoStep
from stepwarp.registrar.steps.segmented import BRAIN
from stepwarp.training.config import LossGrid, LossSettings, Stage, TrainingConfig, pooling


class TrainingObjective(nn.Module):
    """A registrar with the loss that it is trained by. Half precision, where the recipe wants it, is for the registrar
    alone.

    grid: of the data. ignore_labels: left out of the Dice term. structures: label -> class of the segmenter, 0 of all
    labels that it lacks."""

    def __init__(
        self,
        step: Step,
        config: TrainingConfig,
        ignore_labels: Iterable[int] = (),
        structures: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.step = step
        self.config = config
        self.grid = config.data.grid()
        self.similarity = config.loss.similarity.build()
        self.ignore_labels = frozenset({0, *ignore_labels})
        self.structures = dict(structures or {})

    def forward(self, batch: Mapping[str, Tensor], stage_number: int, seed: int = 0) -> dict[str, Tensor]:
        """The weighted terms of the loss by their names, and their sum under "loss".

        batch: fixed and moving (B, 1, *grid.shape), and where the loss wants them fixed_labels, moving_labels, teacher.
        seed: for the points at which GradICON is measured."""
        stage = self.config.curriculum[stage_number]
        if stage.segmenter:
            segmentation = self._segmentation(batch)
            return {"loss": segmentation, "segmentation": segmentation}
        fixed, moving = (Images(batch[side], self.grid) for side in ("fixed", "moving"))
        step = first_steps(self.step, self.config, stage)
        factor = _pooling(self.grid, stage.spacing_mm or float(self.grid.spacing[0]))
        seen = fixed.pooled(factor), moving.pooled(factor)
        with self._precision(batch):
            found = [step(*seen)]
            if self.config.loss.both_ways:
                found.append(step(*reversed(seen)))
        return self._terms(batch, (fixed, moving), found, stage.grids or self.config.loss.grids, seed)

    def _terms(
        self,
        batch: Mapping[str, Tensor],
        images: tuple[Images, Images],
        found: list[Transform],
        grids: tuple[LossGrid, ...],
        seed: int,
    ) -> dict[str, Tensor]:
        """found: the map fixed -> moving and, if both directions are trained on, the one back."""
        loss = self.config.loss
        finest = self.grid.coarser(_pooling(self.grid, min(grid.mm for grid in grids)))
        fields = [each.on(finest).displacement for each in found]
        terms = {}
        if loss.similarity_weight:
            ends = (images, images[::-1])
            each = [self._similarity(a, b, phi, grids) for (a, b), phi in zip(ends, found, strict=False)]
            terms["similarity"] = loss.similarity_weight * _mean(each)
        if loss.regularity_weight:
            energy = REGULARITIES[loss.regularity]
            terms["regularity"] = loss.regularity_weight * _mean([energy(field, finest) for field in fields])
        if loss.folding:
            terms["folding"] = loss.folding * _mean([folding(field) for field in fields])
        if len(fields) == 2:
            terms |= _consistency(loss, fields, finest, seed)
        if loss.dice:
            terms["dice"] = loss.dice * self._dice(batch, found[0])
        if loss.supervision:
            own = found[0].on(self.grid).displacement
            weight = (batch["fixed"] > 0).float()
            terms["supervision"] = loss.supervision * field_distance(own, batch["teacher"], self.grid, weight)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def _precision(self, batch: Mapping[str, Tensor]) -> torch.autocast:
        half = self.config.precision == "bf16"
        return torch.autocast(batch["fixed"].device.type, torch.bfloat16, enabled=half)

    def _segmentation(self, batch: Mapping[str, Tensor]) -> Tensor:
        """How badly both images are segmented."""
        assert isinstance(self.step, Segmented)  # the recipe was checked
        each = []
        for side in ("fixed", "moving"):
            image = batch[side]
            with self._precision(batch):
                logits = self.step.segmenter(image)
            wanted = as_classes(batch[f"{side}_labels"], self.structures)
            each.append(segmentation_loss(logits, wanted, image > BRAIN))
        return _mean(each)

    def _similarity(self, fixed: Images, moving: Images, found: Transform, grids: tuple[LossGrid, ...]) -> Tensor:
        """The mean over the batch of the weighted dissimilarities on each grid."""
        total = fixed.data.new_zeros(())
        for grid in grids:
            factor = _pooling(self.grid, grid.mm)
            target, moved = fixed.pooled(factor).data, moving.pooled(factor).warp(found).data
            each = [self.similarity(a, b) for a, b in zip(target.split(1), moved.split(1), strict=True)]
            total = total + grid.weight * _mean(each)
        return total / sum(grid.weight for grid in grids)

    def _dice(self, batch: Mapping[str, Tensor], found: Transform) -> Tensor:
        same_grid = torch.eye(self.grid.ndim + 1, dtype=torch.float64)
        labels = batch["fixed_labels"], batch["moving_labels"]
        return soft_dice(*labels, found.on(self.grid).displacement, same_grid, self.ignore_labels)


def first_steps(step: Step, config: TrainingConfig, stage: Stage) -> Step:
    """The part of a registrar that takes part in a stage: its first steps.

    A registrar of several steps is built nested to the left, so that its first ones are a step of their own."""
    left_out = _left_out(config, stage)
    if isinstance(step, Segmented):
        return step.around(_first(step.step, left_out)) if left_out else step
    return _first(step, left_out)


def train_only(step: Step, config: TrainingConfig, stage: Stage) -> None:
    """Let gradients reach the weights that a stage trains, and no others.

    A weight that frozen and trained steps share stays frozen."""
    step.requires_grad_(False)
    if isinstance(step, Segmented):
        step.segmenter.requires_grad_(stage.segmenter)
        step = step.step
    if stage.segmenter:
        return
    _first(step, _left_out(config, stage)).requires_grad_(True)
    if stage.frozen:
        _first(step, config.step_count - stage.frozen).requires_grad_(False)


def _left_out(config: TrainingConfig, stage: Stage) -> int:
    return config.step_count - (stage.steps or config.step_count)


def _first(step: Step, left_out: int) -> Step:
    for _ in range(left_out):
        assert isinstance(step, TwoStep)
        step = step.first
    return step


def _consistency(loss: LossSettings, fields: list[Tensor], grid: Grid, seed: int) -> dict[str, Tensor]:
    """Both orders of the two maps, at the same points."""
    orders = fields, fields[::-1]
    terms = {}
    if loss.inverse_consistency:
        terms["inverse_consistency"] = loss.inverse_consistency * _mean(
            [inverse_consistency(a, b, grid) for a, b in orders]
        )
    if loss.gradicon:
        generator = torch.Generator(fields[0].device).manual_seed(seed)
        points = scattered(fields[0], generator=generator)
        terms["gradicon"] = loss.gradicon * _mean([gradicon(a, b, grid, points) for a, b in orders])
    return terms


def _pooling(grid: Grid, mm: float) -> int:
    factor = pooling(float(grid.spacing[0]), mm)
    assert factor is not None  # the recipe was checked
    return factor


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
