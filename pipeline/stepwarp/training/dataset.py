"""The pairs of a training and of its validation, from a manifest: aligned, on the network's box, ready to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwarp.data import manifest as manifests
from stepwarp.data.augment import Augmentation, left_right_partners
from stepwarp.data.manifest import Manifest, Pair, Scan
from stepwarp.data.pairs import FixedPairs, PairTable, VariedPairs, training_pairs, validation_pairs
from stepwarp.data.scans import CachedScans, HeldScans
from stepwarp.data.settings import DataSettings
from stepwarp.data.structures import structures
from stepwarp.data.synthesis import FREESURFER_PARTNERS, Synthesis
from stepwarp.data.teachers import Teachers
from stepwarp.errors import InputError
from stepwarp.progress import Progress, ProgressReport, silent
from stepwarp.registrar.weights.recipe import Recipe, Spacing, Tissue
from stepwarp.training.config import TrainingConfig
from stepwarp.training.prepare import align

#: Around the subject, about what the box leaves around MNI152's brain.
_MARGIN_MM = 12.0


@dataclass(frozen=True, eq=False)
class Dataset:
    """training: an endless sequence of varied pairs. validation: fixed samples as of `FixedPairs`, painted where images
    are synthesised; none where nothing is held out.

    recipe: what the images went through, which whoever uses the weights must repeat. structures: label -> class, for a
    network that segments; empty without one."""

    manifest: Manifest
    training: VariedPairs
    validation: list[dict[str, Any]]
    recipe: Recipe
    structures: dict[int, int]


def open_dataset(
    config: TrainingConfig,
    root: Path | None,
    cache: Path,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Dataset:
    """Align what is not aligned yet, and read all scans onto the box.

    root: where the manifest's paths begin, see `data.manifest.data_root`. cache: for alignments and scans, unless the
    settings name a place of their own. Raises InputError for anything in the data that cannot be trained on."""
    settings = config.data
    manifest = manifests.read_manifest(settings.manifest)
    root = manifests.data_root(root, settings.manifest)
    cache = settings.cache or cache
    classes = structures_of(config, manifest, root)
    chosen = scans_of(manifest, settings, root)
    alignments = align(chosen, cache / "alignments", device, progress)
    recipe = network_recipe(config)
    labelled = settings.labels or settings.synthesis is not None
    kept = CachedScans(
        chosen,
        alignments,
        settings.grid(),
        recipe,
        labels=labelled,
        image_type=settings.image_type,
        cache=cache / "scans",
    )
    scans = _held(kept, progress)
    listed = listed_pairs(manifest, root)
    drawn = training_pairs(settings, scans.about, listed)
    partners = _partners(manifest, settings, root)
    synthesis = None if settings.synthesis is None else Synthesis(settings.synthesis, partners)
    training = VariedPairs(
        scans,
        drawn,
        seed=settings.seed,
        # Labels that only validation looks at need not be moved with every image.
        labels=config.trains_with_labels,
        augmentation=None if settings.augment is None else Augmentation(settings.augment, scans.grid, partners),
        synthesis=synthesis,
        teachers=_teachers(settings, drawn, listed, alignments, cache),
    )
    judged = validation_pairs(settings, scans.about, listed)
    count = min(len(judged), config.validation.pairs)
    if synthesis is None:
        validation: FixedPairs | VariedPairs = FixedPairs(scans, judged, settings.labels)
    else:
        validation = VariedPairs(scans, judged, seed=settings.seed, labels=settings.labels, synthesis=synthesis)
    return Dataset(
        manifest,
        training,
        [validation[number] for number in range(count)],
        recipe,
        classes,
    )


def network_recipe(config: TrainingConfig) -> Recipe:
    """What is done to an image before a network that is trained by this recipe sees it."""
    grid = Spacing(mm=config.data.spacing_mm, margin_mm=_MARGIN_MM)
    return Recipe(intensities=Tissue(), grid=grid, precision=config.precision)


def structures_of(config: TrainingConfig, manifest: Manifest, root: Path) -> dict[int, int]:
    """Label -> class of the segmenter, where one is trained. InputError where the recipe counts other classes than the
    manifest has."""
    if config.segmenter is None or not config.trains_segmenter:
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


def listed_pairs(manifest: Manifest, root: Path) -> list[Pair]:
    """The pairs that the manifest lists, if any."""
    return manifests.pairs(manifest, root, verify=False) if manifest.pairs else []


def _held(scans: CachedScans, progress: Progress) -> HeldScans:
    held = {}
    for number, name in enumerate(scans.about):
        progress(ProgressReport("read scans", number, len(scans.about)))
        held[name] = scans[name]
    progress(ProgressReport("read scans", len(held), len(held)))
    return HeldScans(scans.grid, dict(scans.about), held)


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
