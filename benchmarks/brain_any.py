"""Make the weights `brain-any` from what a training left that was not `stepwarp train brain_any`.

python benchmarks/brain_any.py STATE.safetensors SYNTHSEG_FOLDER OUT.safetensors

STATE: the state_dict of the segmenter. SYNTHSEG_FOLDER: the label maps that it was trained on, training_seg_*.nii.gz
(Apache-2.0), of which the volumes and places of the structures are taken; the structures are those of the recipe."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file

from stepwarp.data.structures import as_classes
from stepwarp.files import read_labels
from stepwarp.registrar.weights import Card
from stepwarp.segment import save_segmenter
from stepwarp.training.config import read_config
from stepwarp.training.segmenter import described_structures, measured_classes
from stepwarp.training.segmenter_config import SegmenterTraining

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


def main() -> None:
    state, folder, out = map(Path, sys.argv[1:])
    recipe = read_config("brain_any")
    assert isinstance(recipe, SegmenterTraining)
    chosen, count = recipe.segmenter, len(recipe.segmenter.structures)
    maps = [read_labels(path) for path in sorted(folder.glob("*.nii.gz"))]
    measured = [measured_classes(as_classes(each.data, chosen.classes), count, each.grid.affine) for each in maps]
    known = described_structures(chosen.structures, measured)
    shape = {"channels": chosen.channels, "convolutions": chosen.convolutions, "mm": recipe.data.spacing_mm}
    save_segmenter(out, load_file(state), known, CARD, box=recipe.data.grid().shape, **shape)


if __name__ == "__main__":
    main()
