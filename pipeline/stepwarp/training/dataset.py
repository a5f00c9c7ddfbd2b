"""The pairs of a training and of its validation, from a manifest: aligned, on the network's box, ready to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwarp.data import manifest as manifests
from stepwarp.data.augment import Augmentation, left_right_partners
from stepwarp.data.manifest import Manifest, Pair, Scan
from stepwarp.data.pairs import FixedPairs, PairTable, VariedPairs, training_pairs, validation_pairs
from stepwarp.data.scans import About, CachedScans, HeldScans
from stepwarp.data.settings import DataSettings
from stepwarp.data.structures import structures
from stepwarp.data.synthesis import FREESURFER_PARTNERS, Synthesis
from stepwarp.data.teachers import Teachers
from stepwarp.errors import InputError
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.registrar.weights.recipe import Recipe, Spacing, Tissue
from stepwarp.training.config import AnyTraining
from stepwarp.training.prepare import align, in_own_size
from stepwarp.training.segmenter_config import SegmenterTraining
from stepwarp.training.settings import TrainingRecipe

#: Around the subject, about what the box leaves around MNI152's brain.
_MARGIN_MM = 12.0


@dataclass(frozen=True, eq=False)
class Dataset:
    """training: an endless sequence of varied pairs, made on the training's device. validation: fixed samples as of
    `FixedPairs`, on the CPU, painted where images are synthesised; none where nothing is held out.

    recipe: what the images went through, which whoever uses the weights must repeat. structures: label -> class, for a
    network that segments; empty without one."""

    manifest: Manifest
    training: VariedPairs
    validation: list[dict[str, Any]]
    recipe: Recipe
    structures: dict[int, int]


def open_dataset(
    config: AnyTraining,
    root: Path | None,
    cache: Path,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Dataset:
    """Align what is not aligned yet, read all scans onto the box, and bring them to the device.

    root: where the manifest's paths begin, see `data.manifest.data_root`. cache: for alignments and scans, unless the
    settings name a place of their own. Raises InputError for anything in the data that cannot be trained on."""
    settings = config.data
    manifest = manifests.read_manifest(settings.manifest)
    root = manifests.data_root(root, settings.manifest)
    cache = settings.cache or cache
    classes = structures_of(config, manifest, root)
    chosen = scans_of(manifest, settings, root)
    about = {scan.id: About(scan.id, scan.split, scan.subject) for scan in chosen}
    listed = listed_pairs(manifest, root)
    drawn, judged = training_pairs(settings, about, listed), validation_pairs(settings, about, listed)
    needed = [scan for scan in chosen if scan.id in {*drawn.scans(), *judged.scans()}]
    alignments = align(needed, cache / "alignments", device, progress)
    if isinstance(config, SegmenterTraining):
        # It is going to see heads as large as they are.
        alignments = {name: in_own_size(each, settings.grid().centre) for name, each in alignments.items()}
    held = partial(_held, config, needed, alignments, cache, progress)
    partners = _partners(manifest, settings, root)
    training = varied_pairs(
        config,
        held(drawn, settings.scan_mm).to(device),
        drawn,
        partners,
        # Labels that only validation looks at need not be moved with every image.
        labels=config.trains_with_labels,
        teachers=_teachers(settings, drawn, listed, alignments, cache),
    )
    labels = settings.labels or config.trains_with_labels
    if settings.synthesis is None:
        samples: FixedPairs | VariedPairs = FixedPairs(held(judged, settings.spacing_mm), judged, labels)
    else:
        # A segmenter is for images that are spoilt.
        augmented = isinstance(config, SegmenterTraining)
        scans = held(judged, settings.scan_mm).to(device)
        samples = varied_pairs(config, scans, judged, partners, labels=labels, augmented=augmented)
    validation = [_on_cpu(samples[number]) for number in range(judged_pairs(config, judged))]
    return Dataset(manifest, training, validation, network_recipe(config), classes)


def varied_pairs(
    config: TrainingRecipe,
    scans: HeldScans,
    pairs: PairTable,
    partners: Mapping[int, int],
    *,
    labels: bool,
    augmented: bool = True,
    teachers: Teachers | None = None,
) -> VariedPairs:
    """Pairs as the recipe varies them, augmented unless that is not wanted, made where the scans lie, which are on
    `DataSettings.scan_grid`. partners: label -> label of the other side."""
    settings, augmentation, synthesis = config.data, None, None
    if settings.augment is not None and augmented:
        augmentation = Augmentation(settings.augment, scans.grid, partners, scans.device)
    if settings.synthesis is not None:
        synthesis = Synthesis(settings.synthesis, partners, settings.detail)
    return VariedPairs(
        scans,
        pairs,
        seed=settings.seed,
        labels=labels,
        augmentation=augmentation,
        synthesis=synthesis,
        teachers=teachers,
        detail=settings.detail,
    )


def network_recipe(config: TrainingRecipe, mm: float | None = None) -> Recipe:
    """What is done to an image before a network that is trained by this recipe sees it; or before it is kept on voxels
    of `mm`."""
    grid = Spacing(mm=config.data.spacing_mm if mm is None else mm, margin_mm=_MARGIN_MM)
    return Recipe(intensities=Tissue(), grid=grid, precision=config.precision)


def structures_of(config: AnyTraining, manifest: Manifest, root: Path) -> dict[int, int]:
    """Label -> class of a registrar's segmenter, where one is trained. InputError where the recipe counts other classes
    than the manifest has."""
    if isinstance(config, SegmenterTraining) or config.segmenter is None or not config.trains_segmenter:
        return {}
    found = structures(manifests.label_names(manifest, root), manifest.ignore_labels)
    if not found:
        raise InputError(f"manifest '{manifest.name}': names no labels to segment. Give it label_names.")
    classes = 1 + len(set(found.values()))
    if classes != config.segmenter.classes:
        raise InputError(
            f"manifest '{manifest.name}': names {classes - 1} structures, left and right counted once. Set "
            f"steps.segmenter.classes to {classes}, the background among them, not {config.segmenter.classes}."
        )
    return found


def scans_of(manifest: Manifest, settings: DataSettings, root: Path, verify: bool = True) -> list[Scan]:
    """The scans of both splits. InputError as `Manifest.scans`."""
    splits = [split for split in (settings.split, settings.validation_split) if split is not None]
    return [scan for split in splits for scan in manifest.scans(root, split, verify)]


def judged_pairs(config: TrainingRecipe, held_out: PairTable) -> int:
    """How many pairs are validated on."""
    wanted, there_are = config.validation.pairs, len(held_out)
    return wanted if config.data.synthesis is not None and there_are else min(wanted, there_are)


def listed_pairs(manifest: Manifest, root: Path) -> list[Pair]:
    """The pairs that the manifest lists, if any."""
    return manifests.pairs(manifest, root, verify=False) if manifest.pairs else []


def _held(
    config: AnyTraining,
    scans: Sequence[Scan],
    alignments: Mapping[str, np.ndarray],
    cache: Path,
    progress: Progress,
    pairs: PairTable,
    mm: float,
) -> HeldScans:
    """The scans of the pairs in memory, on voxels of `mm`, which are the network's or the scans'."""
    settings, names = config.data, set(pairs.scans())
    kept = CachedScans(
        [scan for scan in scans if scan.id in names],
        alignments,
        settings.scan_grid() if mm == settings.scan_mm else settings.grid(),
        network_recipe(config, mm),
        labels=config.trains_with_labels or settings.labels or settings.synthesis is not None,
        image_type=settings.image_type,
        cache=cache / "scans",
    )
    held = {}
    for number, name in enumerate(kept.about):
        progress(ProgressReport("read scans", number, len(kept.about)))
        held[name] = kept[name]
    progress(ProgressReport("read scans", len(held), len(held)))
    return HeldScans(kept.grid, dict(kept.about), held)


def _on_cpu(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in sample.items()}


def _partners(manifest: Manifest, settings: DataSettings, root: Path) -> dict[int, int]:
    """Which labels are each other's other side: by their names, or FreeSurfer's where nothing is named."""
    names = manifests.label_names(manifest, root)
    if names:
        return left_right_partners(names)
    return dict(FREESURFER_PARTNERS) if settings.synthesis is not None else {}


def _teachers(
    settings: DataSettings,
    pairs: PairTable,
    listed: Sequence[Pair],
    alignments: Mapping[str, np.ndarray],
    cache: Path,
) -> Teachers | None:
    if settings.teacher is None:
        return None
    taught = {pair.id: pair for pair in listed}
    files = {}
    for number in range(len(pairs)):
        name, fixed, moving = pairs[number]
        files[name] = taught[name].transforms[settings.teacher], alignments[fixed], alignments[moving]
    return Teachers(files, settings.grid(), cache / "teachers")
