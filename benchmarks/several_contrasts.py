"""Whether a second contrast of both subjects, registered along, is not worse than the better one alone.

    python benchmarks/several_contrasts.py [--data FOLDER] [--split validation]

Pairs of T1 brains, and beside each a second pair of images: of both scans with other greys, as a second contrast of
both subjects; of the fixed scan and a moving one with other greys; of both scans with noise of their own. Dice of the
first pair alone, of the second alone, and of both together. Preset fast, voxels of 2 mm. How the pairs are weighed was
chosen on the training pairs. Cases that are done stay, so it can be interrupted; remove cases.jsonl to begin afresh.

Writes results/several_contrasts/{SPLIT.jsonl, results.json, SPLIT.md}."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stepwarp
from contrasts import FACTOR, KINDS, PRESET, SHOWN, THREADS, concluded, every, scores, shown
from stepwarp.data.manifest import Pair, data_root, pairs, read_manifest
from stepwarp.files import read_image
from stepwarp.geometry import Image
from stepwarp.geometry.intensities import scale_intensities

OUT = Path(__file__).parent / "results" / "several_contrasts"
GREYS = KINDS["abs(x - .6)"]
#: Standard deviation of noise, of bright tissue.
NOISE = 0.2


def noisy(image: Image, seed: int) -> Image:
    scaled = scale_intensities(image)
    noise = torch.randn(scaled.data.shape, generator=torch.Generator().manual_seed(seed))
    return Image(torch.where(scaled.data > SHOWN, scaled.data + NOISE * noise, 0), image.grid, image.name)


#: The second pair, of the first.
SECOND: dict[str, Callable[[Image, Image], tuple[Image, Image]]] = {
    "both as abs(x - .6)": lambda fixed, moving: (shown(fixed, GREYS), shown(moving, GREYS)),
    "moving as abs(x - .6)": lambda fixed, moving: (fixed, shown(moving, GREYS)),
    "both with noise of a fifth": lambda fixed, moving: (noisy(fixed, 1), noisy(moving, 2)),
}


def cases(chosen: list[Pair]) -> Iterator[tuple[dict[str, str], Callable[[], dict[str, Any]]]]:
    """(what it is, how it is made) of every case."""
    for pair in chosen:
        yield {"pair": pair.id, "second": "none", "used": "first"}, partial(registered, pair, None, "first")
        for second in SECOND:
            for used in ("second", "both"):
                what = {"pair": pair.id, "second": second, "used": used}
                yield what, partial(registered, pair, second, used)


def registered(pair: Pair, second: str | None, used: str) -> dict[str, Any]:
    images = [tuple(read_image(scan.image).coarser(FACTOR) for scan in (pair.fixed, pair.moving))]
    if second is not None:
        images.append(SECOND[second](*images[0]))
    fixed, moving = zip(*(images[1:] if used == "second" else images), strict=True)
    found = stepwarp.register(list(fixed), list(moving), preset=PRESET, escalate=False, threads=THREADS)
    return scores(found, pair.fixed, pair.moving, pair.ignore_labels)


def table(rows: list[dict[str, Any]]) -> str:
    def mean(second: str, used: str, key: str) -> float:
        return float(np.mean([row[key] for row in rows if (row["second"], row["used"]) == (second, used)]))

    first = {row["pair"]: row["value"] for row in rows if row["used"] == "first"}
    lines = [["second pair", "first alone", "second alone", "both", "both - first, each", "std log J"], ["---"] * 6]
    for second in SECOND:
        both = {row["pair"]: row["value"] for row in rows if (row["second"], row["used"]) == (second, "both")}
        change = [both[pair] - first[pair] for pair in first]
        values = (mean("none", "first", "value"), mean(second, "second", "value"), mean(second, "both", "value"))
        spread = f"{min(change):+.4f} to {max(change):+.4f}"
        rough = f"{mean('none', 'first', 'std_log_jacobian'):.3f}, {mean(second, 'both', 'std_log_jacobian'):.3f}"
        lines.append([second, *(f"{value:.4f}" for value in values), spread, rough])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    parser.add_argument("--split", default="validation", help="which pairs; validation by default")
    given = parser.parse_args()
    chosen = pairs(read_manifest("oasis"), data_root(given.data, "oasis"), given.split, verify=False)
    rows = every(OUT / f"{given.split}.jsonl", cases(chosen))
    concluded(OUT, table(rows), PRESET, THREADS, given.split)


if __name__ == "__main__":
    main()
