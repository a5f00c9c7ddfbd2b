"""Write the model cards of the weights that come with stepwarp, from what the weights themselves say.

python benchmarks/model_cards.py            # rewrite pipeline/stepwarp/weights/README.md
python benchmarks/model_cards.py --check    # exit 1 if it would change: what the tests run"""

from __future__ import annotations

import sys
from pathlib import Path

from stepwarp.evaluation.metrics import METRICS
from stepwarp.registrar.steps import describe, parameters
from stepwarp.registrar.weights import SHIPPED, SHIPPED_SEGMENTERS, Card, load_weights, weights_path
from stepwarp.segment import load_segmenter

CARDS = Path(__file__).parents[1] / "pipeline" / "stepwarp" / "weights" / "README.md"
_METRICS = {
    "mean_dice": "Dice on the network's grid",
    "segmentation_dice": "Dice of its segmentation there",
    "loss": "local correlation, as a loss",
    **{key: METRICS[key].column for key in ("folds_percent", "std_log_jacobian")},
}
_RANGES = {
    "lncc_after_affine": "local correlation after the affine",
    "lncc_gain": "what the network adds to it",
    "displacement_mm": "mean displacement, mm",
}


def cards() -> str:
    parts = ["# Weights that come with stepwarp", "Written by `benchmarks/model_cards.py` from the files themselves."]
    named = sorted([*SHIPPED, *SHIPPED_SEGMENTERS])
    return (
        "\n\n".join([*parts, *(_segmenter(name) if name in SHIPPED_SEGMENTERS else _card(name) for name in named)])
        + "\n"
    )


def _card(name: str) -> str:
    registrar = load_weights(weights_path(name))
    card = registrar.card
    ranges = ", ".join(
        f"{words} {low:.3g} to {high:.3g}"
        for key, words in _RANGES.items()
        if key in card.expects
        for low, high in [card.expects[key]]
    )
    table = _table(card, {"expects": ranges, **_file(name, SHIPPED[name], parameters(registrar.step))})
    return f"## {name}\n\n{table}\n\n```\n{describe(registrar.step)}\n```"


def _segmenter(name: str) -> str:
    segmenter = load_segmenter(name)
    known = "\n".join(
        f"| {each.id} | {each.name} | {each.millilitres[0]:g} to {each.millilitres[1]:g} |"
        for each in segmenter.structures
    )
    count = sum(weights.numel() for weights in segmenter.network.parameters())
    measured = {"Dice of its structures": f"{segmenter.header.card.metrics['dice_of_structures']:.3f}"}
    table = _table(segmenter.header.card, measured | _file(name, SHIPPED_SEGMENTERS[name], count))
    return f"## {name}\n\n{table}\n\n| id | structure, left and right | ml in the maps |\n|---|---|---|\n{known}"


def _table(card: Card, more: dict[str, str]) -> str:
    assert card.seconds is not None
    settings = card.training["settings"]
    assert isinstance(settings, dict)
    measured = ", ".join(f"{words} {card.metrics[key]:.4g}" for key, words in _METRICS.items() if key in card.metrics)
    rows = {
        "for": card.notes,
        "trained on": card.data,
        "labels": "used in the training" if card.labels_used else "not used in the training",
        "licence of the data": card.licence,
        "recipe": f"`{settings['name']}`, {card.training['iteration']} iterations, seed {card.seed}, "
        f"{settings['precision']}",
        "training took": f"{card.seconds / 60:.0f} min on {card.machine}",
        **({"on the held-out training pairs": measured} if measured else {}),
        **more,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _file(name: str, digest: str, count: int) -> dict[str, str]:
    path = weights_path(name)
    about = f"`{path.name}`, {path.stat().st_size / 2**20:.1f} MiB, {count:,} parameters"
    return {"file": about, "SHA-256": f"`{digest}`"}


def main() -> None:
    text = cards()
    if "--check" in sys.argv[1:]:
        sys.exit(CARDS.read_text() != text)
    CARDS.write_text(text)


if __name__ == "__main__":
    main()
