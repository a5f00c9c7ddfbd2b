"""Make the weights `brain-any` from what a training left.

python benchmarks/brain_any.py STATE.safetensors SYNTHSEG_FOLDER OUT.safetensors

STATE: the state_dict of the segmenter. SYNTHSEG_FOLDER: the label maps that it was trained on, training_seg_*.nii.gz
(Apache-2.0), of which the volumes and places of the structures are taken."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from stepwarp.files import read_labels
from stepwarp.geometry import LabelMap
from stepwarp.registrar.weights import Card
from stepwarp.segment import KnownStructure, save_segmenter

#: FreeSurfer's ids of the classes, from 1 on, with names in which left and right are one.
NAMES = {
    2: "cerebral white matter",
    3: "cerebral cortex",
    4: "lateral ventricle",
    5: "inferior lateral ventricle",
    7: "cerebellar white matter",
    8: "cerebellar cortex",
    10: "thalamus",
    11: "caudate",
    12: "putamen",
    13: "pallidum",
    14: "third ventricle",
    15: "fourth ventricle",
    16: "brain stem",
    17: "hippocampus",
    18: "amygdala",
    26: "accumbens area",
    28: "ventral diencephalon",
    24: "fluid around the brain",
}
FLUID = 24
#: The right side's ids, and lesions of white matter, by the class to which they belong.
SAME = {41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 58: 26, 60: 28, 77: 2}
CARD = Card(
    name="brain-any",
    data="images painted from 18 of the 20 label maps of whole heads issued with SynthSeg; no image of anybody",
    licence="label maps Apache-2.0",
    labels_used=True,
    training={"settings": {"name": "brain-any", "precision": "bf16"}, "iteration": 12583, "samples": 2},
    seed=1,
    seconds=1290,
    machine="NVIDIA H200, shared by two trainings",
    metrics={"dice_of_structures": 0.702},
    notes="The structures of a head in any contrast, whole or skull-stripped, of one person or a template: for "
    "stepwarp segment, and for --strip and --structures of register. It registers nothing by itself. Three of ten "
    "images that it was trained on were roughly T1, one roughly T2, the others of contrasts drawn at random; bias, "
    "thick slices, noise and cut fields of view among them. The Dice is that of painted, spoilt images of the two maps "
    "held out.",
)


def known_structures(folder: Path) -> list[KnownStructure]:
    """The classes, with the least and the most of each in the maps, and where it lies in their mean head."""
    volumes, centres = zip(*(_measured(read_labels(path)) for path in sorted(folder.glob("*.nii.gz"))), strict=True)
    centres = np.array(centres)
    centres -= centres.mean(1, keepdims=True)
    low, high, middle = np.min(volumes, 0), np.max(volumes, 0), centres.mean(0)
    return [
        KnownStructure(
            id=label,
            name=name,
            brain=label != FLUID,
            millilitres=(round(low[n], 2), round(high[n], 2)),
            centre=tuple(middle[n].round(1).tolist()),
        )
        for n, (label, name) in enumerate(NAMES.items())
    ]


def _measured(labels: LabelMap) -> tuple[np.ndarray, np.ndarray]:
    """Of the classes of a map: millilitres, and centres of mass in RAS mm."""
    values, grid = labels.data.long(), labels.grid
    for label, same in SAME.items():
        values = torch.where(values == label, same, values)
    found = [(values == label).nonzero().double().mean(0).numpy() for label in NAMES]
    millilitres = [int((values == label).sum()) * abs(np.linalg.det(grid.linear)) / 1000 for label in NAMES]
    return np.array(millilitres), grid.world(np.array(found))


def main() -> None:
    state, folder, out = map(Path, sys.argv[1:])
    shape = {"channels": (48, 96, 128, 128), "convolutions": 2, "mm": 2.0, "box": (88, 104, 88)}
    save_segmenter(out, load_file(state), known_structures(folder), CARD, **shape)


if __name__ == "__main__":
    main()
