"""The figures of the original experiment: the course of the training, pairs before and after, and all nine steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stepwarp.mnist import drawing, store
from stepwarp.mnist.drawing import COLOURS, INK, SOFT
from stepwarp.mnist.models import STRANGE, TIED, TRAINED
from stepwarp.mnist.study import MnistStudy
from stepwarp.mnist.training import OUTSIDE
from stepwarp.probes.trajectory import identity, trajectory
from stepwarp.registrar.steps import Images, Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pairs in the grid, in each strip, and in each row of the animation.
_GRID, _STRIP, _ANIMATED = 8, 3, 5
_LIMIT = 1.0


def draw_registrations(study: MnistStudy, summary: dict[str, Any]) -> list[str]:
    """Draw what needs trained networks alone. Returns the names of the files in the folder `figures`."""
    step = study.network(TIED, 0)
    fives, sevens = study.held_out(TRAINED), study.held_out(STRANGE)
    judge = None
    if "classifier" in summary:
        judge = study.instruments.probability
    made = {
        "training.png": training(study, summary),
        "pairs.png": grid(step, fives, study.digits.source),
        "strip_5.png": strip(step, fives, study.settings.steps, study.digits.source, judge, TRAINED),
        "strip_7.png": strip(step, sevens, study.settings.steps, study.digits.source, judge, STRANGE),
    }
    for name, each in made.items():
        drawing.save(each, study.out / store.FIGURES / name)
    frames = animation(step, (fives, sevens), study.settings.steps)
    drawing.save_animation(frames, study.out / store.FIGURES / "steps.gif", study.digits.source)
    return [*made, "steps.gif"]


def training(study: MnistStudy, summary: dict[str, Any]) -> Figure:
    """Loss against iteration: of the original network, and of every network of the study."""
    made = drawing.figure(9.6, 3.3, study.digits.source)
    left, right = made.subplots(1, 2)
    curve = study.training(TIED, 0)["curve"]
    drawing.panel(left, "Trained on 5s (seed 0)", "iteration", "loss")
    for name, label, colour in (
        ("loss", "loss", COLOURS[0]),
        ("ssd", "SSD", COLOURS[1]),
        ("diffusion", "diffusion, weighted", COLOURS[2]),
    ):
        left.plot(curve["iteration"], curve[name], color=colour, label=label, linewidth=1.6)
    left.set_ylim(0)
    drawing.legend(left)
    drawing.panel(right, "All networks (seed 0)", "iteration", "loss")
    for (name, each), colour in zip(summary["networks"].items(), COLOURS, strict=False):
        right.plot(each["curve"]["iteration"], each["curve"]["loss"], color=colour, label=name, linewidth=1.3)
    right.set_ylim(0)
    if summary["networks"]:
        drawing.legend(right, ncols=2)
    return made


@torch.no_grad()
def grid(step: Step, pairs: tuple[Images, Images], source: str) -> Figure:
    """Moving, fixed, moved, difference before and after, and the deformed grid, a column for each held-out pair."""
    fixed, moving = (_first(images, _GRID) for images in pairs)
    found = step(fixed, moving)
    moved, u = moving.warp(found, OUTSIDE).data, found.on(fixed.grid).displacement
    rows: dict[str, Tensor] = {
        "moving": moving.data,
        "fixed": fixed.data,
        "moved": moved,
        "moving - fixed": moving.data - fixed.data,
        "moved - fixed": moved - fixed.data,
        "deformed grid": moved,
    }
    made = drawing.figure(9.6, 7.4, source)
    axes = made.subplots(len(rows), len(fixed.data), squeeze=False)
    for (name, images), line in zip(rows.items(), axes, strict=True):
        for number, (each, place) in enumerate(zip(images[:, 0].numpy(), line, strict=True)):
            drawing.picture(place, each, limit=_LIMIT if " - " in name else None)
            if name == "deformed grid":
                drawing.bent_lines(place, u[number].numpy())
        line[0].set_ylabel(name, color=INK, fontsize=9)
    return made


@torch.no_grad()
def strip(step: Step, pairs: tuple[Images, Images], count: int, source: str, judge: Any, digit: int) -> Figure:
    """The moving image, the image after every step and the fixed image, a row for each pair; below each image P(5),
    where there is a judge, `Instruments.probability`."""
    fixed, moving = (_first(images, _STRIP) for images in pairs)
    maps = [identity(fixed), *trajectory(step, fixed, moving, count)]
    seen = [*(moving.warp(found, OUTSIDE).data for found in maps), fixed.data]
    titles = ["moving", *(f"step {k}" for k in range(1, count + 1)), "fixed"]
    made = drawing.figure(11.5, 1.2 * len(fixed.data) + 0.6, source)
    made.suptitle(f"{digit} to {digit}, trained on {TRAINED}s", color=INK, fontsize=10, x=0.005, ha="left")
    axes = made.subplots(len(fixed.data), len(seen), squeeze=False)
    for column, (title, images) in enumerate(zip(titles, seen, strict=True)):
        chances = None if judge is None else judge(images, TRAINED)
        for row in range(len(fixed.data)):
            place = drawing.picture(axes[row, column], images[row, 0].numpy(), title if row == 0 else "")
            if chances is not None:
                place.set_xlabel(f"P(5) {chances[row]:.2f}", color=SOFT, fontsize=7, labelpad=2)
    return made


@torch.no_grad()
def animation(step: Step, sets: tuple[tuple[Images, Images], ...], count: int) -> list[np.ndarray]:
    """A frame for every step: moving, moved and fixed of some pairs side by side, a row for each set of pairs."""
    rows = []
    for pairs in sets:
        fixed, moving = (_first(images, _ANIMATED) for images in pairs)
        maps = [identity(fixed), *trajectory(step, fixed, moving, count)]
        moved = [moving.warp(found, OUTSIDE).data[:, 0].numpy() for found in maps]
        still, start = fixed.data[:, 0].numpy(), moving.data[:, 0].numpy()
        rows.append([_side_by_side(start, each, still) for each in moved])
    return [np.vstack(lines) for lines in zip(*rows, strict=True)]


def _side_by_side(*columns: np.ndarray) -> np.ndarray:
    """For each pair its images (pairs, rows, columns), parted by a line."""
    blocks = []
    for images in zip(*columns, strict=True):
        padded = [np.pad(image, 1, constant_values=0.15) for image in images]
        blocks.append(np.pad(np.hstack(padded), 3, constant_values=0.08))
    return np.hstack(blocks)


def _first(images: Images, count: int) -> Images:
    return Images(images.data[:count], images.grid)
