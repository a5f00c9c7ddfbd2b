"""What the page of a pair shows, and the same prepared for display: upright, centred, intensities matched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stepwarp.geometry import DisplacementField, Image, Transform
from stepwarp.report.pictures import Tone
from stepwarp.report.views import Orientation, View, centre_of_mass


@dataclass(frozen=True, eq=False)
class StepView:
    """How things stood after one step. transform: fixed world -> moving world. facts: lines below its picture. used:
    whether the result came by this way."""

    title: str
    transform: Transform
    facts: tuple[str, ...]
    used: bool = True


@dataclass(frozen=True, eq=False)
class PairPage:
    """One registered pair. All images and fields lie on the fixed grid, which is three-dimensional.

    fixed, moved: the fixed image, and the moving one after the whole registration.
    moving_before: the moving image before any, resampled with nothing but the start that `start` names in words.
    record: the content of registration.json. Keys that it lacks are left out of the page: inputs, settings, version,
    device, threads, stages [{name, seconds, peak_mib, gpu_peak_mib (on a GPU)}], loss [{stage, level_mm, iteration,
    loss}] (level_mm may be None), measures (nested numbers), verdict {status: pass | check | fail, reasons: [str]},
    self_check.
    affine_moved: the moving image under the affine part alone.
    warp: the deformable part, voxels of the fixed grid. jacobian: the determinant, float, grid.shape. mask: bool,
    grid.shape, where the determinant is shown (everywhere by default).
    truth: for a demonstration with a known answer, row label -> (value before, value after).
    moving: the moving image on its own grid. steps: of the way to the result, in their order; they need `moving`."""

    fixed: Image
    moving_before: Image
    moved: Image
    record: Mapping[str, Any]
    start: str = "header position"
    affine_moved: Image | None = None
    warp: DisplacementField | None = None
    jacobian: Tensor | None = None
    mask: Tensor | None = None
    truth: Mapping[str, tuple[Any, Any]] | None = None
    moving: Image | None = None
    steps: tuple[StepView, ...] = ()

    def __post_init__(self) -> None:
        grid = self.fixed.grid
        if grid.ndim != 3:
            raise ValueError(f"the page shows three-dimensional images, not {grid}")
        for other in (self.moving_before, self.moved, self.affine_moved, self.warp):
            if other is not None and other.grid != grid:
                raise ValueError(f"all that the page shows lies on the fixed grid {grid}, not on {other.grid}")
        if self.steps and self.moving is None:
            raise ValueError("the steps are shown on the moving image, which is missing")
        for tensor in (self.jacobian, self.mask):
            if tensor is not None and tuple(tensor.shape) != grid.shape:
                raise ValueError(f"a map of shape {tuple(tensor.shape)} does not fit {grid}")


class Scene:
    """A pair made ready for display: volumes in RAS order, slices as (rows from the top, columns from the left).

    moving: the states of the moving image in the order of the run, key -> (name, volume)."""

    def __init__(self, page: PairPage) -> None:
        self.page = page
        self.turned = Orientation(page.fixed.grid)
        self.fixed = self.turned.turn(page.fixed.data)
        states = {
            "before": (f"Before ({page.start})", page.moving_before),
            "affine": ("Affine", page.affine_moved),
            "moved": ("Registered", page.moved),
        }
        self.moving = {
            key: (name, self.turned.turn(image.data)) for key, (name, image) in states.items() if image is not None
        }
        self._fixed_tone = Tone(self.fixed)
        self._moving_tone = self._fixed_tone.matched(self.fixed, self.moving["moved"][1])
        self.centre = centre_of_mass(self.fixed, self._fixed_tone)

    def fixed_slice(self, view: View, index: int | None = None) -> np.ndarray:
        """A slice of the fixed image in 0..1, through the centre by default."""
        return self._fixed_tone(self._cut(self.fixed, view, index))

    def moving_slice(self, key: str, view: View, index: int | None = None) -> np.ndarray:
        """A slice of the moving image in one of its states, in 0..1 and matched to the fixed one."""
        return self._moving_tone(self._cut(self.moving[key][1], view, index))

    def step_slice(self, step: StepView, view: View) -> np.ndarray:
        """The central slice of the moving image as it stood after a step, matched to the fixed one; only that slice is
        interpolated."""
        assert self.page.moving is not None
        plane = self.turned.plane(self.page.fixed.grid, view, self.centre[view.axis])
        moved = self.page.moving.warp(step.transform, plane)
        return self._moving_tone(view.cut(self.turned.turn(moved.data), 0))

    def central_slice(self, values: Tensor, view: View) -> np.ndarray:
        """The slice through the centre of values on the fixed grid."""
        return self._cut(self.turned.turn(values), view)

    def _cut(self, volume: np.ndarray, view: View, index: int | None = None) -> np.ndarray:
        return view.cut(volume, self.centre[view.axis] if index is None else index)
