"""The probes of a trained registrar on a manifest's validation pairs, from files to files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from stepwarp import files
from stepwarp.data import manifest as manifests
from stepwarp.data.manifest import Manifest
from stepwarp.data.pairs import FixedPairs, PairTable, validation_pairs
from stepwarp.data.scans import About, CachedScans
from stepwarp.data.settings import DataSettings
from stepwarp.errors import ForeignError, InputError, OutputError
from stepwarp.evaluation.bootstrap import INTERVAL
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import check_file_target
from stepwarp.files.json import refuse_foreign_json, write_json
from stepwarp.files.lock import refuse_links
from stepwarp.geometry import DisplacementField, LabelMap
from stepwarp.kernels import sampling
from stepwarp.machine import device_name
from stepwarp.probes import study
from stepwarp.probes.findings import QUESTIONS, findings
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.statistics import jsonable
from stepwarp.probes.study import ProbedSubject
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.registrar.steps import Images, describe
from stepwarp.registrar.steps.structure import steps_run
from stepwarp.registrar.weights import Recipe, Registrar, load_weights, weights_path
from stepwarp.report.probes import render
from stepwarp.training.config import TrainingConfig
from stepwarp.training.dataset import listed_pairs
from stepwarp.training.prepare import align
from stepwarp.version import __version__
from stepwarp.workflow.device import chosen_device, use_threads

JSON, PAGE = "probes.json", "probes.html"
#: Key of QUESTIONS -> the probe.
_PROBES = {
    "a": study.per_step_probe,
    "b": study.direction_probe,
    "e": study.path_probe,
    "f": study.optimum_probe,
    "h": study.retarget_probe,
    "contrast": study.contrast_probe,
}


@dataclass(frozen=True, eq=False)
class _Probed:
    """names: of the pairs. labels: (fixed, moving) of each pair, int (1, *grid), or None."""

    names: tuple[str, ...]
    fixed: Images
    moving: Images
    labels: list[tuple[torch.Tensor, torch.Tensor]] | None


def probe_weights(
    weights: str | Path,
    manifest: str | Path,
    out: Path,
    *,
    root: Path | None = None,
    pairs: int = 5,
    cache: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Probe a registrar and write probes.json and probes.html into `out`; returns what the JSON holds.

    weights: a file of stepwarp, or the name of shipped ones. pairs: how many, at least two; those that were held out of
    its training where the manifest is the one it was trained on, else those of the split "validation", or all. root:
    where the manifest's paths begin. cache: of alignments and scans, such as that of the training; by default in `out`.

    Raises InputError for weights that do not say how they were trained, a manifest without two pairs, and files that
    cannot be used; OutputError where results exist and may not be replaced."""
    started = time.perf_counter()
    if pairs < 2:
        raise InputError(f"{pairs} pair is too few: the nulls compare pairs. Probe 2 or more.")
    _claim(out, overwrite)
    place, used = chosen_device(device), use_threads(threads)
    path = weights_path(weights)
    registrar = load_weights(path)
    config = _config(registrar, path)
    probed = _read(config, registrar.recipe, manifest, root, pairs, cache or out / "cache", place, progress)
    registrar.step.to(place).eval()
    subject = ProbedSubject(
        registrar.step,
        probed.fixed,
        probed.moving,
        _objective(config),
        None if probed.labels is None else _Overlap(probed, manifests.read_manifest(manifest).ignore_labels),
        seed,
    )
    record = {
        "stepwarp": __version__,
        "weights": {"name": registrar.card.name, "sha256": files.sha256(path), "data": registrar.card.data},
        "manifest": manifests.read_manifest(manifest).name,
        "pairs": probed.names,
        "registrar": describe(registrar.step, probed.fixed.grid),
        "steps": steps_run(registrar.step),
        "grid": {"shape": probed.fixed.grid.shape, "spacing_mm": probed.fixed.grid.spacing},
        "objective": _in_words(config),
        "accuracy": None if probed.labels is None else "mean Dice of the labels on the grid",
        "interval": INTERVAL,
        "seed": seed,
        "device": device_name(place),
        "threads": used,
        "probes": _run(subject, progress),
    }
    record = jsonable(record | {"seconds": round(time.perf_counter() - started, 1)})
    write_json(out / JSON, record, overwrite)
    files.write_text(out / PAGE, render(record), overwrite)
    return record


def _claim(out: Path, overwrite: bool) -> None:
    """The folder, made, and without results that may not be replaced: before minutes are spent."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({error.strerror}). Choose another --out.") from error
    for name in (JSON, PAGE):
        refuse_links(out / name)
        check_file_target(out / name, overwrite)
    refuse_foreign_json(out / JSON, ("stepwarp", "weights", "probes"), "result of stepwarp probe")
    if (out / PAGE).exists() and not (out / JSON).exists():
        raise ForeignError(f"{out / PAGE}: is there already, and no {JSON} beside it. Move it away.")


def _run(subject: ProbedSubject, progress: Progress) -> dict[str, Any]:
    found = {}
    for number, (key, probe) in enumerate(_PROBES.items()):
        progress(ProgressReport("probe", number, len(_PROBES)))
        numbers = probe(subject)
        found[key] = {**asdict(QUESTIONS[key]), "findings": findings(key, numbers), "numbers": numbers}
    progress(ProgressReport("probe", len(_PROBES), len(_PROBES)))
    return found


def _config(registrar: Registrar, path: Path) -> TrainingConfig:
    """The recipe of the training, which the card holds."""
    settings = registrar.card.training.get("settings")
    if not isinstance(settings, dict):
        raise InputError(
            f"{path}: does not say how it was trained, so its objective is not known. Give weights that "
            "stepwarp trained."
        )
    try:
        return TrainingConfig.model_validate(settings)
    except ValidationError as error:
        raise InputError(
            f"{path}: the recipe in its card cannot be understood. Is it of a later version? {error}"
        ) from error


def _objective(config: TrainingConfig) -> PairObjective:
    loss = config.loss
    if not loss.similarity_weight:
        raise InputError(f"'{config.name}' was trained without a similarity of images: there is no objective to probe")
    return PairObjective(loss.similarity.build(), loss.regularity, loss.regularity_weight / loss.similarity_weight)


def _in_words(config: TrainingConfig) -> str:
    loss = config.loss
    weight = loss.regularity_weight / loss.similarity_weight
    return f"{loss.similarity.kind} + {weight:g} {loss.regularity}, on one grid"


def _read(
    config: TrainingConfig,
    recipe: Recipe,
    source: str | Path,
    root: Path | None,
    count: int,
    cache: Path,
    device: torch.device,
    progress: Progress,
) -> _Probed:
    manifest = manifests.read_manifest(source)
    root = manifests.data_root(root, source)
    table = _pairs(config, manifest, root, count)
    # The other scans of the manifest need not be there.
    needed = {name: entry for name, entry in manifest.images.items() if name in table.scans()}
    scans = manifest.model_copy(update={"images": needed}).scans(root)
    labelled = all(scan.labels is not None for scan in scans)
    held = CachedScans(
        scans,
        align(scans, cache / "alignments", device, progress),
        config.data.grid(),
        recipe,
        labels=labelled,
        image_type=config.data.image_type,
        cache=cache / "scans",
    )
    samples = FixedPairs(held, table, labels=labelled)
    read = []
    for number in range(len(table)):
        progress(ProgressReport("read", number, len(table)))
        read.append(samples[number])
    grid = config.data.grid()
    fixed, moving = (
        Images(torch.stack([each[side] for each in read]).to(device), grid) for side in ("fixed", "moving")
    )
    labels = [(each["fixed_labels"], each["moving_labels"]) for each in read] if labelled else None
    return _Probed(tuple(each["pair"] for each in read), fixed, moving, labels)


def _pairs(config: TrainingConfig, manifest: Manifest, root: Path, count: int) -> PairTable:
    """The first `count` pairs to probe on: see `probe_weights`."""
    data = config.data
    if manifest.name != data.manifest or not (data.held_out or data.validation_split):
        data = _elsewhere(data, manifest)
    about = {name: About(name, scan.split, scan.subject) for name, scan in manifest.images.items()}
    table = validation_pairs(data, about, listed_pairs(manifest, root))
    if len(table) < 2:
        raise InputError(f"manifest '{manifest.name}': has fewer than two pairs to probe on. Add scans to it.")
    ids = None if table.ids is None else table.ids[:count]
    return PairTable(table.names, table.fixed[:count], table.moving[:count], ids)


def _elsewhere(data: DataSettings, manifest: Manifest) -> DataSettings:
    """Settings by which the pairs of a manifest are drawn that the network was not trained on."""
    splits = {scan.split for scan in manifest.images.values()}
    if "validation" in splits:
        return data.model_copy(update={"held_out": (), "split": "", "validation_split": "validation"})
    if len(splits) > 1:
        named = ", ".join(sorted(str(split) for split in splits))
        raise InputError(f"manifest '{manifest.name}': has no split 'validation', but {named}. Call one of them so.")
    return data.model_copy(
        update={"held_out": tuple(manifest.images), "split": next(iter(splits)), "validation_split": None}
    )


class _Overlap:
    """The mean Dice of each pair's labels under a map."""

    def __init__(self, probed: _Probed, ignore: Sequence[int]) -> None:
        assert probed.labels is not None
        self.labels, self.grid, self.ignore = probed.labels, probed.fixed.grid, ignore

    def __call__(self, found: DisplacementField) -> np.ndarray:
        return np.array([self._dice(*labels, u) for labels, u in zip(self.labels, found.displacement, strict=True)])

    def _dice(self, fixed: torch.Tensor, moving: torch.Tensor, displacement: torch.Tensor) -> float:
        still = torch.eye(self.grid.ndim + 1, dtype=torch.float64)
        warped = sampling.warp(moving[None], displacement[None].cpu(), still, "nearest")
        maps = (LabelMap(fixed[0], self.grid, "fixed labels"), LabelMap(warped[0, 0], self.grid, "moved labels"))
        return mean_dice(dice(*maps, self.ignore))
