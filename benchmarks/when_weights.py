"""When it pays to run shipped weights before the search, and when not: each kind of pair with and without them.

    python benchmarks/when_weights.py [--data FOLDER]

All ordered pairs of the validation people; some of them as small images, and with a moving image that shows a part;
people 1000 and 1001 as whole heads and as stripped brains (heads.py); Colin27 and the MNI template onto each other; the
average brain in three contrasts. Preset default. Weights: `brain-t1-labels`, and the structures of `brain-any` as a
guide (structures_as_guide.py). They would be a default if on no kind of pair the mean change were below 0, if the lower
end of its interval were above -.001, if no pair lost more than .005 Dice or .1 mm, and if they took less than 3 s.
Intervals are by a bootstrap over people where there are several, since pairs that share one are not independent.

In the end how sure the segmenter of `brain-t1-labels` is of brains of its study and of others: whether that could tell
where to step back.

Cases that are done stay, so it can be interrupted; remove cases.jsonl to begin afresh. Writes results/when_weights/
{cases.jsonl, results.json, table.md}; an hour on one processor."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stepwarp
from stepwarp.data.manifest import Scan, data_root, pairs, read_manifest
from stepwarp.evaluation.bootstrap import interval_over_people
from stepwarp.evaluation.landmarks import target_registration_error
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels, read_landmarks
from stepwarp.geometry import Affine, Composition, Image, LabelMap
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.geometry.orientation import canonical
from stepwarp.networks.segmenter import Segmenter
from stepwarp.registrar.steps.segmented import BRAIN
from stepwarp.registrar.weights import load_weights, weights_path

from contrasts import AVERAGES, concluded, every, laid_out  # isort: skip
from heads import PEOPLE, Person  # isort: skip
from spoilt_scans import cut_off, slab  # isort: skip
from structures_as_guide import guide  # isort: skip

OUT = Path(__file__).parent / "results" / "when_weights"
PRESET, THREADS = "default", 1
WEIGHTS = ("none", "brain-t1-labels", "brain-any")
#: Of the structures' difference beside the correlation, of those that structures_as_guide.py tries the better one.
GUIDED_BY = 10.0
#: Voxels averaged along each axis for a small image.
SMALL = 4
PARTS = {"upper half outside the field of view": cut_off, "a third of the slices": slab}
SURE = "how sure the segmenter is"
TEMPLATES = ("templates/tpl-MNIColin27_brain_T1w.nii.gz", "templates/tpl-MNI152NLin2009cAsym_brain_T1w.nii.gz")
#: What must hold of a default besides a mean not below 0: the lower end of its interval, the worst pair, seconds.
LEAST_LOWER, WORST, MOST_SECONDS = -0.001, {"dice": -0.005, "mm": -0.1}, 3.0


def cases(root: Path) -> Iterator[tuple[dict[str, str], Callable[[], dict[str, Any]]]]:
    """(what it is, how it is made) of every case."""
    manifest = read_manifest("oasis")
    chosen = pairs(manifest, root, "validation", verify=False)
    scans = {scan.id: scan for pair in chosen for scan in (pair.fixed, pair.moving)}
    people = cache(lambda: [Person(root, scans[name]) for name in PEOPLE])
    for weights in WEIGHTS:
        for a, b in itertools.permutations(scans, 2):
            what = {"kind": "as scanned", "pair": f"{a}_{b}", "unit": "dice", "weights": weights}
            yield what, partial(brains, scans[a], scans[b], weights, manifest.ignore_labels)
        for pair, (kind, change) in itertools.product(chosen, {"small": small, **PARTS}.items()):
            what = {"kind": kind, "pair": pair.id, "unit": "dice", "weights": weights}
            yield what, partial(brains, pair.fixed, pair.moving, weights, manifest.ignore_labels, change)
        for seen, (a, b) in itertools.product(itertools.product(("whole", "stripped"), repeat=2), ((0, 1), (1, 0))):
            if "whole" in seen:
                what = {"kind": f"{seen[0]} <- {seen[1]}", "pair": f"{PEOPLE[a]}_{PEOPLE[b]}", "unit": "dice"}
                yield what | {"weights": weights}, partial(heads, people, a, b, seen, weights, manifest.ignore_labels)
        for a, b in itertools.permutations(("colin27", "mni2009c")):
            what = {"kind": "Colin27 and MNI", "pair": f"{a}_{b}", "unit": "mm", "weights": weights}
            yield what, partial(templates, root, a, b, weights)
        for a, b in itertools.permutations(AVERAGES, 2):
            what = {"kind": "averages of other contrasts", "pair": f"{a}_{b}", "unit": "mm", "weights": weights}
            yield what, partial(averages, root / "multimodal", a, b, weights)
    names = [*TEMPLATES, *(f"multimodal/avg152{name}.nii.gz" for name in AVERAGES)]
    for name, path in {**{scan.id: scan.image for scan in scans.values()}, **{n: root / n for n in names}}.items():
        yield {"kind": SURE, "pair": name, "unit": "probability", "weights": "brain-t1-labels"}, partial(sure, path)


def sure(path: Path) -> dict[str, Any]:
    """The mean probability, over a brain, of what the segmenter takes each voxel for."""
    registrar = load_weights(weights_path("brain-t1-labels"))
    (segmenter,) = (part for part in registrar.step.modules() if isinstance(part, Segmenter))
    image = canonical(read_image(path))
    seen = registrar.recipe.prepare(image, image, Affine.identity(3)).fixed.data
    likeliest = segmenter.expected(seen[None, None], torch.eye(segmenter.classes))[0].amax(0)
    return {"value": round(float(likeliest[seen > BRAIN].mean()), 4)}


def small(image: Image, labels: LabelMap) -> tuple[Image, LabelMap]:
    return image.coarser(SMALL), labels


def brains(
    fixed: Scan,
    moving: Scan,
    weights: str,
    ignored: tuple[int, ...],
    change: Callable[[Image, LabelMap], tuple[Image, LabelMap]] | None = None,
) -> dict[str, Any]:
    """change: of the moving image; a small one meets a fixed image as small."""
    f, m, a, b = (
        read_image(fixed.image),
        read_image(moving.image),
        read_labels(fixed.labels),
        read_labels(moving.labels),
    )
    if change is not None:
        m, b = change(m, b)
    if change is small:
        f = f.coarser(SMALL)
    found, told = registered(f, m, weights)
    shown = LabelMap(torch.ones_like(b.data), b.grid).warp(found.transform, a.grid).data > 0
    both = (LabelMap(torch.where(shown, each.data, 0), a.grid) for each in (a, b.warp(found.transform, a.grid)))
    return {"value": round(mean_dice(dice(*both, ignore=ignored)), 5), **told}


def heads(
    people: Callable[[], list[Person]], a: int, b: int, seen: tuple[str, str], weights: str, ignored: tuple[int, ...]
) -> dict[str, Any]:
    one, other = people()[a], people()[b]
    found, told = registered(read_image(one.images[seen[0]]), read_image(other.images[seen[1]]), weights)
    parts = [other.to_labels[seen[1]], found.transform, one.from_labels[seen[0]]]
    whole = Composition.of(*(part for part in parts if part is not None))
    moved = other.labels.warp(whole, one.labels.grid)
    return {"value": round(mean_dice(dice(one.labels, moved, ignored)), 5), **told}


def templates(root: Path, fixed: str, moving: str, weights: str) -> dict[str, Any]:
    scans = read_manifest("templates").scans(root, "validation", verify=False)
    f, m = (next(scan for scan in scans if scan.id == name) for name in (fixed, moving))
    found, told = registered(read_image(f.image), read_image(m.image), weights)
    assert f.landmarks is not None
    assert m.landmarks is not None
    there, theirs = (read_landmarks(scan.landmarks, scan.landmark_space) for scan in (f, m))
    assert there.names == theirs.names
    errors = target_registration_error(found.transform, there.points, theirs.points)
    return {"value": round(float(errors.mean()), 4), **told}


def averages(folder: Path, fixed: str, moving: str, weights: str) -> dict[str, Any]:
    f, m = (read_image(folder / f"avg152{name}.nii.gz") for name in (fixed, moving))
    found, told = registered(f, m, weights)
    points = f.grid.world((scale_intensities(f).data > 0.1).nonzero().numpy())
    return {"value": round(float(np.linalg.norm(found.transform(points) - points, axis=1).mean()), 4), **told}


def registered(fixed: Image, moving: Image, weights: str) -> tuple[stepwarp.Registration, dict[str, Any]]:
    given: dict[str, Any] = {"none": {}, "brain-any": {"weights": guide(GUIDED_BY)}}.get(weights, {"weights": weights})
    cpu = time.process_time()
    found = stepwarp.register(fixed, moving, preset=PRESET, escalate=False, threads=THREADS, **given)
    cpu = time.process_time() - cpu
    network = found.record["network"]
    return found, {
        "used": network and network["used"],
        "verdict": found.record["verdict"]["status"],
        "cpu_seconds": round(cpu, 2),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each kind of pair and weights, where more is better of a change; then how sure it is of what."""
    certain = [["brain", "mean probability of the likeliest structure"], ["---"] * 2]
    certain += [[Path(row["pair"]).name, f"{row['value']:.3f}"] for row in rows if row["kind"] == SURE]
    rows = [row for row in rows if row["kind"] != SURE]
    lines = [
        ["pairs", "weights", "used", "without", "with", "change: mean (interval)", "worst pair", "more CPU s", "fit"]
    ]
    lines.append(["---"] * len(lines[0]))
    lines += [
        line_of(rows, kind, weights) for kind in dict.fromkeys(row["kind"] for row in rows) for weights in WEIGHTS[1:]
    ]
    return f"{laid_out(lines)}\n\n{laid_out(certain)}\n"


def line_of(rows: list[dict[str, Any]], kind: str, weights: str) -> list[str]:
    without, own = (
        {row["pair"]: row for row in rows if row["kind"] == kind and row["weights"] == each}
        for each in ("none", weights)
    )
    unit = next(iter(own.values()))["unit"]
    before, after = (np.array([each[pair]["value"] for pair in own]) for each in (without, own))
    gain = (after - before) * (1 if unit == "dice" else -1)
    more = float(np.mean([own[pair]["cpu_seconds"] - without[pair]["cpu_seconds"] for pair in own]))
    digits = 4 if unit == "dice" else 3
    said, fits = (
        f"{gain.mean():+.{digits}f}",
        bool(gain.mean() >= 0 and gain.min() >= WORST[unit] and more < MOST_SECONDS),
    )
    people = [(a, b) for a, b in (pair.split("_") for pair in own)]
    if kind == "as scanned":
        found = interval_over_people(gain, people)
        assert found is not None
        low, high = found
        said, fits = f"{said} ({low:+.4f} to {high:+.4f})", fits and low > LEAST_LOWER
    return [
        f"{kind} ({len(own)})",
        f"`{weights}`",
        f"{sum(row['used'] for row in own.values())} of {len(own)}",
        *(f"{values.mean():.{digits}f}{'' if unit == 'dice' else ' mm'}" for values in (before, after)),
        said,
        f"{gain.min():+.{digits}f}",
        f"{more:+.1f}",
        "yes" if fits else "no",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    rows = every(OUT / "cases.jsonl", cases(data_root(parser.parse_args().data, "oasis")))
    concluded(OUT, table(rows), PRESET, THREADS)


if __name__ == "__main__":
    main()
