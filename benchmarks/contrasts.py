"""Whether images of different contrasts are known as such, and how far a registration of them comes.

    python benchmarks/contrasts.py [--data FOLDER]

The people of the validation split; the greys of the moving image are replaced by a function of them, or it is brighter,
noisy, or under a bias. First, on all ordered pairs, whether `--similarity auto` takes the two for different contrasts.
Then, on the pairs of the split, Dice of `auto` beside what can be chosen by hand. The average brain in three contrasts,
where the identity is right and every deformation is harm, stands beside them: the mm by which its points are off. In
the end one of them is bent by known smooth fields of 4 mm in the mean.
Preset fast, voxels of 2 mm; the limits of `registrar.contrast` were set on training pairs. Cases that are done stay,
so it can be interrupted; remove cases.jsonl to begin afresh.

Writes results/contrasts/{cases.jsonl, results.json, table.md}."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stepwarp
from stepwarp.data.manifest import Scan, data_root, pairs, read_manifest
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels
from stepwarp.geometry import DisplacementField, Grid, Image, Transform
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.kernels import smoothing
from stepwarp.machine import machine

OUT = Path(__file__).parent / "results" / "contrasts"
PRESET, FACTOR, THREADS = "fast", 2, 1
AVERAGES = ("T1", "T2", "PD")
#: By how much an average brain is bent in the mean, and how smoothly; by several fields.
BENT_MM, SMOOTH_MM, FIELDS = 4.0, 25.0, 2
#: Brighter than this, of bright tissue, is what has greys; the rest is background.
SHOWN = 0.02


def steps(x: Tensor) -> Tensor:
    """One grey for each of three tissues, in no order."""
    return torch.where(x < 0.35, 0.9, torch.where(x < 0.72, 0.3, 0.6))


def noisy(x: Tensor) -> Tensor:
    return x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def biased(x: Tensor) -> Tensor:
    return x * torch.linspace(-0.6, 0.6, x.shape[2]).exp()


@dataclass(frozen=True)
class Greys:
    """What becomes of the moving image's greys, and whether it is another contrast then."""

    change: Callable[[Tensor], Tensor]
    other: bool


KINDS = {
    "as scanned": Greys(lambda x: x, False),
    "square root": Greys(torch.sqrt, False),
    "squared": Greys(torch.square, False),
    "noise of a fifth": Greys(noisy, False),
    "bias of 3.3": Greys(biased, False),
    "abs(x - .6)": Greys(lambda x: (x - 0.6).abs(), True),
    "inverted": Greys(lambda x: (1.05 - x).clamp_min(0), True),
    "a grey per tissue": Greys(steps, True),
}
SIMILARITIES = ("auto", "mi", "mind", "lncc")


def shown(image: Image, greys: Greys) -> Image:
    scaled = scale_intensities(image)
    data = torch.where(scaled.data > SHOWN, greys.change(scaled.data.clamp_min(0)), 0)
    return Image(data, image.grid, image.name)


def cases(root: Path) -> Iterator[tuple[dict[str, str], Callable[[], dict[str, Any]]]]:
    """(what it is, how it is made) of every case."""
    manifest = read_manifest("oasis")
    chosen = pairs(manifest, root, "validation", verify=False)
    scans = {scan.id: scan for pair in chosen for scan in (pair.fixed, pair.moving)}
    for (a, b), kind in itertools.product(itertools.permutations(scans, 2), KINDS):
        what = {"part": "choice", "pair": f"{a}_{b}", "kind": kind}
        yield what, partial(choice, scans[a], scans[b], KINDS[kind])
    others = ["as scanned", *(kind for kind, greys in KINDS.items() if greys.other)]
    for pair, kind, similarity in itertools.product(chosen, others, SIMILARITIES):
        what = {"part": "dice", "pair": pair.id, "kind": kind, "similarity": similarity}
        yield what, partial(registered, pair.fixed, pair.moving, KINDS[kind], similarity, manifest.ignore_labels)
    for (a, b), similarity in itertools.product(itertools.permutations(AVERAGES, 2), SIMILARITIES):
        what = {"part": "average", "pair": f"{a}_{b}", "kind": "average", "similarity": similarity}
        yield what, partial(average, root / "multimodal", a, b, similarity)
    for (a, b), field in itertools.product(itertools.product(AVERAGES, repeat=2), range(FIELDS)):
        what = {"part": "bent", "pair": f"{a}_{b}", "kind": f"field {field}", "similarity": "auto"}
        yield what, partial(average, root / "multimodal", a, b, "auto", field)


def choice(fixed: Scan, moving: Scan, greys: Greys) -> dict[str, Any]:
    f, m = (read_image(scan.image).coarser(FACTOR) for scan in (fixed, moving))
    found = stepwarp.register(f, shown(m, greys), preset=PRESET, affine_only=True, escalate=False, threads=THREADS)
    return {"other": greys.other, **found.record["contrast"]}


def registered(fixed: Scan, moving: Scan, greys: Greys, similarity: str, ignored: tuple[int, ...]) -> dict[str, Any]:
    f, m = (read_image(scan.image).coarser(FACTOR) for scan in (fixed, moving))
    found = stepwarp.register(f, shown(m, greys), preset=PRESET, similarity=similarity, escalate=False, threads=THREADS)
    return scores(found, fixed, moving, ignored)


def scores(found: stepwarp.Registration, fixed: Scan, moving: Scan, ignored: tuple[int, ...]) -> dict[str, Any]:
    """Dice after the affine and in the end, on the scans' own grids."""
    assert fixed.labels is not None
    assert moving.labels is not None
    a, b = read_labels(fixed.labels), read_labels(moving.labels)

    def overlap(transform: Transform) -> float:
        return round(mean_dice(dice(a, b.warp(transform, a.grid), ignored)), 5)

    return {"affine": overlap(found.affine), "value": overlap(found.transform), **quality(found)}


def average(folder: Path, fixed: str, moving: str, similarity: str, field: int | None = None) -> dict[str, Any]:
    """field: the number of that by which the moving image is bent, None for none."""
    f, m = (read_image(folder / f"avg152{name}.nii.gz") for name in (fixed, moving))
    there = points = f.grid.world((scale_intensities(f).data > 0.1).nonzero().numpy())
    if field is not None:
        bending = smooth_field(f.grid, field, points)
        m, points = m.warp(bending, m.grid), bending(points)
    found = stepwarp.register(f, m, preset=PRESET, similarity=similarity, escalate=False, threads=THREADS)

    def off(transform: Transform) -> float:
        return round(float(np.linalg.norm(transform(points) - there, axis=1).mean()), 4)

    return {"affine": off(found.affine), "value": off(found.transform), **quality(found)}


def smooth_field(grid: Grid, seed: int, points: np.ndarray) -> DisplacementField:
    """A random one, BENT_MM long in the mean at these points."""
    noise = torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(seed))
    shape = smoothing.gaussian(noise, SMOOTH_MM / float(grid.spacing.mean()))
    length = float(np.linalg.norm(DisplacementField(shape, grid)(points) - points, axis=1).mean())
    return DisplacementField(shape * (BENT_MM / length), grid)


def quality(found: stepwarp.Registration) -> dict[str, Any]:
    return {
        "std_log_jacobian": round(found.record["measures"]["regularity"]["std_log_jacobian"], 4),
        "verdict": found.record["verdict"]["status"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["greys of the moving image", "pairs", "taken for another contrast"], ["---"] * 3]
    for kind in KINDS:
        own = [row for row in rows if row["part"] == "choice" and row["kind"] == kind]
        lines.append([kind, str(len(own)), str(sum(not row["alike"] for row in own))])
    parts = [laid_out(lines)]
    for part, title in (("dice", "Dice, mean of the pairs"), ("average", "mm off, the average brain")):
        lines = [[title, "affine of `auto`", *(f"`{name}`" for name in SIMILARITIES)], ["---"] * 6]
        of_part = [row for row in rows if row["part"] == part]
        key = "kind" if part == "dice" else "pair"
        for name in dict.fromkeys(row[key] for row in of_part):
            own = [row for row in of_part if row[key] == name]
            linear = np.mean([row["affine"] for row in own if row["similarity"] == "auto"])
            each = [np.mean([row["value"] for row in own if row["similarity"] == name]) for name in SIMILARITIES]
            lines.append([name.replace("_", " <- "), *(f"{value:.3f}" for value in (linear, *each))])
        parts.append(laid_out(lines))
    lines = [[f"mm off, the average brain bent by {BENT_MM:g} mm", "affine of `auto`", "`auto`"], ["---"] * 3]
    bent = [row for row in rows if row["part"] == "bent"]
    for name in dict.fromkeys(row["pair"] for row in bent):
        own = [row for row in bent if row["pair"] == name]
        lines.append(
            [name.replace("_", " <- "), *(f"{np.mean([row[key] for row in own]):.3f}" for key in ("affine", "value"))]
        )
    parts.append(laid_out(lines))
    return "\n\n".join(parts) + "\n"


def laid_out(lines: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def every(kept: Path, all_cases: Iterable[tuple[dict[str, str], Callable[[], dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The rows of all cases; those that a file keeps already are not made again, the others are added to it."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = [row.items() for row in rows]
    for what, make in all_cases:
        if not any(what.items() <= row for row in done):
            rows.append(what | make())
            with kept.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    return rows


def concluded(out: Path, text: str, preset: str, threads: int, name: str = "table") -> None:
    """Write a table, and on what machine it was made, beside the file that keeps its rows; and print it."""
    (out / "results.json").write_text(json.dumps({"preset": preset, "machine": machine(threads)}, indent=1) + "\n")
    (out / f"{name}.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    rows = every(OUT / "cases.jsonl", cases(data_root(parser.parse_args().data, "oasis")))
    concluded(OUT, table(rows), PRESET, THREADS)


if __name__ == "__main__":
    main()
