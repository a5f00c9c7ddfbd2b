"""Heads as they come: what a segmenter finds in them, and whether a whole head and a stripped one come together.

    python benchmarks/heads.py [--data FOLDER]

First the masks and structures of the validation brains, beside what was stripped and drawn by hand (left and right
together, as far as both name a structure). Then people 1000 and 1001, each as a stripped brain and as a whole head of
2 mm: Dice of the labels with masks of the brains, without them, and as `register` decides by itself. Preset fast. The
whole heads have a frame of their own; it is brought to that of the labels by a rigid registration of the two scans of
one person, whose error is common to all. Limits were set on these people: a report, no test of strangers.

Writes results/heads/{results.json, table.md}."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stepwarp
from stepwarp.data.manifest import Scan, data_root, pairs, read_manifest
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels
from stepwarp.geometry import Composition, LabelMap, Transform
from stepwarp.machine import machine
from stepwarp.segment import load_segmenter, segment

OUT = Path(__file__).parent / "results" / "heads"
PRESET, THREADS = "fast", 2
PEOPLE = ("1000", "1001")
WAYS: dict[str, bool | None] = {"all that they show": False, "their brains": True, "by itself": None}
#: FreeSurfer's ids, and those of the manual labels that are the same structure, right and left.
SAME = {
    4: (51, 52), 10: (59, 60), 11: (36, 37), 12: (57, 58), 13: (55, 56), 16: (35,), 17: (47, 48), 18: (31, 32),
    26: (23, 30), 28: (61, 62),
}  # fmt: skip


def found(scan: Scan) -> dict[str, Any]:
    """How far mask and structures of a stripped brain agree with what is known of it."""
    image, labels = read_image(scan.image), read_labels(scan.labels)
    seen = segment(image, load_segmenter())
    shown = LabelMap((image.data > 0).to(torch.uint8), image.grid)
    drawn = torch.zeros_like(seen.structures.data)
    for number, theirs in SAME.items():
        drawn[torch.isin(labels.data, torch.tensor(theirs, dtype=labels.data.dtype))] = number
    known = torch.isin(seen.structures.data, torch.tensor(tuple(SAME), dtype=torch.int16))
    ours = LabelMap(torch.where(known, seen.structures.data, 0), image.grid)
    return {
        "scan": scan.id,
        "mask": round(mean_dice(dice(shown, seen.mask, ())), 4),
        "structures": round(mean_dice(dice(LabelMap(drawn, image.grid), ours, ())), 4),
        "certainty": seen.head.certainty,
    }


class Person:
    """One person's two images, their labels, and the way from the frame of each image to that of the labels."""

    def __init__(self, root: Path, scan: Scan) -> None:
        whole = root / "wholehead" / f"{scan.id}_T1w_2mm.nii.gz"
        self.labels = read_labels(scan.labels)
        self.images = {"whole": whole, "stripped": Path(scan.image)}
        same = stepwarp.register(whole, scan.image, transform="rigid", affine_only=True, strip=True, threads=THREADS)
        self.to_labels: dict[str, Transform | None] = {"whole": same.transform, "stripped": None}
        self.from_labels: dict[str, Transform | None] = {"whole": same.transform.inverse(), "stripped": None}


def together(one: Person, other: Person, fixed: str, moving: str, way: str, ignored: tuple[int, ...]) -> dict[str, Any]:
    images = one.images[fixed], other.images[moving]
    result = stepwarp.register(*images, preset=PRESET, strip=WAYS[way], escalate=False, threads=THREADS)

    def overlap(transform: Transform) -> float:
        parts = [other.to_labels[moving], transform, one.from_labels[fixed]]
        whole = Composition.of(*(part for part in parts if part is not None))
        return round(mean_dice(dice(one.labels, other.labels.warp(whole, one.labels.grid), ignored)), 4)

    seconds = {stage["name"]: stage["seconds"] for stage in result.record["stages"]}
    return {
        "fixed": fixed,
        "moving": moving,
        "way": way,
        "affine": overlap(result.affine),
        "dice": overlap(result.transform),
        "verdict": result.record["verdict"]["status"],
        "masks": bool(result.found_masks),
        "seconds_for_structures": seconds.get("structures", 0.0),
    }


def table(scans: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    lines = [["brains", "Dice of the mask", "of the structures"], ["---"] * 3]
    spans = [[row[key] for row in scans] for key in ("mask", "structures")]
    lines.append([str(len(scans)), *(f"{np.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in spans)])
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    lines = [["fixed <- moving", *(f"{way}: affine, in the end, verdicts" for way in WAYS)], ["---"] * (1 + len(WAYS))]
    for fixed, moving in dict.fromkeys((row["fixed"], row["moving"]) for row in rows):
        line = [f"{fixed} <- {moving}"]
        for way in WAYS:
            own = [row for row in rows if (row["fixed"], row["moving"], row["way"]) == (fixed, moving, way)]
            means = ", ".join(f"{np.mean([row[key] for row in own]):.3f}" for key in ("affine", "dice"))
            line.append(f"{means}, {' '.join(row['verdict'] for row in own)}")
        lines.append(line)
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the data root; $STEPWARP_DATA by default")
    root = data_root(parser.parse_args().data, "oasis")
    manifest = read_manifest("oasis")
    chosen = pairs(manifest, root, "validation", verify=False)
    scans = {scan.id: scan for pair in chosen for scan in (pair.fixed, pair.moving)}
    segmented = [found(scan) for scan in scans.values()]
    people = [Person(root, scans[name]) for name in PEOPLE]
    rows = []
    for fixed in ("whole", "stripped"):
        for moving in ("whole", "stripped"):
            for way in WAYS:
                for pair in (people, people[::-1]):
                    rows.append(together(*pair, fixed, moving, way, manifest.ignore_labels))
                    print(rows[-1], flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    result = {"preset": PRESET, "machine": machine(THREADS), "scans": segmented, "pairs": rows}
    (OUT / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (OUT / "table.md").write_text(table(segmented, rows))
    print(table(segmented, rows))


if __name__ == "__main__":
    main()
