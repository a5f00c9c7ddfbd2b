"""The network between the affine and the refinement: what it finds is used only if it helps, and the record says why
it was not."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stepwarp import files
from stepwarp.config import SimilarityName
from stepwarp.errors import InputError
from stepwarp.evaluation.regularity import regularity
from stepwarp.evaluation.similarity import similarities
from stepwarp.geometry import Affine, DisplacementField, Grid, Image
from stepwarp.geometry.orientation import canonical
from stepwarp.printable import counted
from stepwarp.progress import is_over
from stepwarp.registrar.steps import Step, parameters
from stepwarp.registrar.steps.structure import MOST_STEPS, finest_spacing, repeats, steps_run
from stepwarp.registrar.weights import Card, Registrar, load_weights, weights_path
from stepwarp.registrar.weights.recipe import Prepared
from stepwarp.workflow.clock import now
from stepwarp.workflow.trace import Recorder
from stepwarp.workflow.verdict import FOLD_SHARE_FAIL, foreground, lowered

#: Further than so many times the grid's longest side no point is moved by anything that has seen the images.
_FURTHEST = 10
#: How far outside of what a card expects is still like it, as a share of what it expects.
_LEAST_SLACK = 0.25
#: What a record repeats of the card.
_OF_THE_CARD = {"data", "licence", "labels_used", "seed", "seconds", "machine", "metrics", "notes"}


@dataclass(frozen=True, eq=False)
class Network:
    """A registrar ready to run. described: what a record says of it before it ran."""

    registrar: Registrar
    described: dict[str, Any]

    @property
    def card(self) -> Card:
        return self.registrar.card


@dataclass(frozen=True, eq=False)
class Attempt:
    """What a network made of a pair.

    warp: fixed world -> fixed world, before the affine, on the network's grid; None where it is not to be used.
    finest_mm: voxels of the finest grid that it looked at. record: for registration.json. notes, checks: sentences for
    the verdict, to be known and to be looked at."""

    warp: DisplacementField | None
    finest_mm: float
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()

    def dropped(self, reason: str) -> Attempt:
        """The same, not to be used after all."""
        return replace(
            self,
            warp=None,
            record=self.record | {"used": False, "reason": reason},
            notes=(f"the network {self.record['name']} was not used, direct optimisation ran without it: {reason}",),
            checks=(),
        )


def read_network(source: str | Path | Registrar, steps: int | None, device: torch.device) -> Network:
    """The network in a file, or of the name of shipped weights, or given as it is, on the device.

    steps: how often each step that repeats itself is run. Raises InputError for a file that cannot be used, and for
    steps where nothing is repeated; a registrar that is given is copied, not changed."""
    if isinstance(source, Registrar):
        path, registrar = None, replace(source, step=copy.deepcopy(source.step))
    else:
        path = weights_path(source)
        registrar = load_weights(path)
    name = registrar.card.name
    axes = {weights.ndim - 2 for weights in registrar.step.parameters() if weights.ndim > 2}
    if axes - {3}:
        raise InputError(f"{path or name}: is a network of images of {min(axes)} axes. Give one of volumes.")
    registrar.step.to(device).eval()
    if steps is not None:
        _repeat(registrar, steps, str(path or name))
    return Network(
        registrar,
        {
            "name": name,
            "path": None if path is None else str(path.resolve()),
            "sha256": None if path is None else files.sha256(path),
            "card": registrar.card.model_dump(include=_OF_THE_CARD),
            "parameters": parameters(registrar.step),
            "steps": steps_run(registrar.step),
        },
    )


def bytes_for(network: Network, fixed: Image) -> int:
    """What running it for a scaled fixed image takes, about: on the grid of each step the widest convolution, with what
    goes in and comes out, each laid out twice; besides, images and fields on its own grid."""
    registrar = network.registrar
    try:
        grid = registrar.recipe.grid.grid(fixed)
    except InputError:
        return 0  # it will not be run, and that is said
    return 4 * (2 * _widest(registrar.step, grid) + 16 * math.prod(grid.shape))


def _widest(step: Step, grid: Grid) -> int:
    """The most values of a convolution in one of the steps on a grid."""
    inner = [child for child in step.children() if isinstance(child, Step)]
    if inner:
        return max(_widest(child, step.inner_grid(grid)) for child in inner)
    widths = [
        module.in_channels + module.out_channels
        for module in step.modules()
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d)
    ]
    return max(widths, default=0) * math.prod(grid.shape)


def attempt(
    network: Network,
    fixed: Image,
    moving: Image,
    affine: Affine,
    similarity: SimilarityName,
    *,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    deadline: float | None = None,
    recorder: Recorder | None = None,
) -> Attempt:
    """Run a network from an affine, and judge what it found.

    fixed, moving: as read; they are prepared as the network's recipe says. Masks: on the grids of the canonical images;
    what they exclude is background to the network. similarity: that of the preset: what the network finds may lower
    neither it nor the local correlation. deadline: a `time.monotonic()` after which no further step starts. recorder:
    is told of every step."""
    started = now(network.registrar.device)
    registrar = network.registrar
    if is_over(deadline):
        return Attempt(None, 0.0, _record(network, started)).dropped("the time budget was spent before it")
    try:
        fixed, moving = (
            _trusted(image.to(registrar.device), mask) for image, mask in ((fixed, fixed_mask), (moving, moving_mask))
        )
        prepared = registrar.recipe.prepare(fixed, moving, affine)
        warp, steps = _run(registrar, prepared, deadline, recorder)
    except InputError as error:
        return Attempt(None, 0.0, _record(network, started)).dropped(str(error))
    record = _record(network, started)
    grid = prepared.fixed.grid
    finest = finest_spacing(registrar.step, grid)
    record |= {
        "grid": {"shape": list(grid.shape), "spacing_mm": [round(float(s), 4) for s in grid.spacing]},
        "finest_mm": round(finest, 4),
    }
    cut = (
        ""
        if steps == record["steps"]
        else f"the time budget ended the network after {steps} of {counted(record['steps'], 'step')}"
    )
    record["steps"] = steps
    if not warp.displacement.isfinite().all():
        return Attempt(warp, finest, record).dropped("its map holds values that are not numbers")
    if float(warp.displacement.abs().max()) > _FURTHEST * max(grid.shape):
        return Attempt(warp, finest, record).dropped("its map leads far out of the images")
    judged = _judged(Attempt(warp, finest, record), network.card, prepared, similarity)
    return replace(judged, checks=(*judged.checks, cut)) if cut else judged


def _record(network: Network, started: float) -> dict[str, Any]:
    return network.described | {
        "seconds": round(now(network.registrar.device) - started, 3),
        "used": True,
        "reason": None,
        "unlike": [],
    }


def _run(
    registrar: Registrar, prepared: Prepared, deadline: float | None, recorder: Recorder | None
) -> tuple[DisplacementField, int]:
    """What was found, and in how many steps: fewer than there are where the deadline comes before."""
    if recorder is None and deadline is None:
        return registrar.found(prepared), steps_run(registrar.step)
    if recorder is not None:
        recorder.begin()
    fields: Iterator[DisplacementField] = registrar.found_by_step(prepared)
    for steps, warp in enumerate(fields, 1):  # noqa: B007  # both are what is returned
        if recorder is not None:
            recorder.add("network", warp.to("cpu"))
        if is_over(deadline):
            break
    return warp, steps


def _judged(tried: Attempt, card: Card, prepared: Prepared, similarity: SimilarityName) -> Attempt:
    """The attempt with its measures, dropped where it does harm; all on the network's grid."""
    assert tried.warp is not None
    inside = foreground(prepared.fixed, None)
    before = similarities(prepared.fixed, prepared.moving, inside)
    after = similarities(prepared.fixed, prepared.moving.warp(tried.warp), inside)
    smooth = regularity(tried.warp, inside)
    lengths = tried.warp.lengths()[inside]
    measured: dict[str, Any] = {
        "similarity_before": before,
        "similarity_after": after,
        "folds": vars(smooth.folds),
        "corner_folds": vars(smooth.corner_folds),
        "std_log_jacobian": smooth.std_log_jacobian,
        "displacement_mm": {"mean": round(float(lengths.mean()), 4), "max": round(float(lengths.max()), 4)},
    }
    harm = _harm(measured, similarity)
    seen = {"lncc_after_affine": before["lncc"]}
    if harm is None:
        seen |= {
            "lncc_gain": after["lncc"] - before["lncc"],
            "displacement_mm": measured["displacement_mm"]["mean"],
        }
    unlike = _unlike(card, seen)
    name, steps = tried.record["name"], tried.record["steps"]
    gain = f"the network {name} raised the local correlation on its grid from {before['lncc']:.2f} to "
    gain += f"{after['lncc']:.2f} in {counted(steps, 'step')}"
    judged = replace(
        tried,
        record=tried.record | measured | {"unlike": unlike},
        notes=(gain,),
        checks=tuple(f"this pair is unlike the training of the network {name}: {what}" for what in unlike),
    )
    return judged if harm is None else judged.dropped(harm)


def _harm(measured: dict[str, Any], similarity: SimilarityName) -> str | None:
    """Why a map must not be used; None if it may."""
    before, after = (measured[f"similarity_{when}"] for when in ("before", "after"))
    if not after["lncc"] >= before["lncc"]:
        return f"it lowered the local correlation from {before['lncc']:.3f} to {after['lncc']:.3f}"
    if lowered({"similarity_affine": before, "similarity": after}, similarity):
        return f"it lowered what the preset measures ({similarity})"
    folds = measured["corner_folds"]["share"]
    if folds > FOLD_SHARE_FAIL:  # no start for anything
        return f"its map has corner folds in {folds:.2%} of the subject"
    return None


def _unlike(card: Card, seen: dict[str, float]) -> list[str]:
    """A sentence for each number that lies outside of what the card expects: by more than half of that range, and by
    more than a quarter of its ends, since a range over a few pairs of one study is a narrow one."""
    words = {
        "lncc_after_affine": "local correlation after the affine",
        "lncc_gain": "local correlation gained by the network",
        "displacement_mm": "mean displacement in mm",
    }
    found = []
    for name, (low, high) in card.expects.items():
        slack = max((high - low) / 2, _LEAST_SLACK * max(abs(low), abs(high)))
        if name in seen and not low - slack <= seen[name] <= high + slack:
            found.append(f"{words[name]} {seen[name]:.3g}, there {low:.3g} to {high:.3g}")
    return found


def _trusted(image: Image, mask: Image | None) -> Image:
    """The canonical image with nothing but background, its darkest trusted value, outside the mask."""
    image = canonical(image)
    if mask is None:
        return image
    trusted = mask.data.to(image.data.device) > 0
    return Image(torch.where(trusted, image.data, image.data[trusted].min()), image.grid, image.name)


def _repeat(registrar: Registrar, steps: int, name: str) -> None:
    repeated = repeats(registrar.step)
    if not repeated:
        raise InputError(f"{name}: repeats none of its steps, so there is no number of steps to set.")
    if steps < 1:
        raise InputError(f"{steps} steps are none. Give at least 1, or use no network.")
    for repeat in repeated:
        repeat.n = steps
    if steps_run(registrar.step) > MOST_STEPS:
        raise InputError(f"{name}: would run {steps_run(registrar.step)} steps; at most {MOST_STEPS} are. Give fewer.")
