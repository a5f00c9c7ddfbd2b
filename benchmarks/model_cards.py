"""Write the model cards of the weights that come with stepwarp, from what the weights themselves say.

python benchmarks/model_cards.py            # rewrite pipeline/stepwarp/weights/README.md
python benchmarks/model_cards.py --check    # exit 1 if it would change: what the tests run"""

from __future__ import annotations

import sys
from pathlib import Path

from stepwarp.evaluation.metrics import METRICS
from stepwarp.registrar.steps import describe, parameters
from stepwarp.registrar.weights import SHIPPED, load_weights, weights_path

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
    return "\n\n".join([*parts, *(_card(name) for name in sorted(SHIPPED))]) + "\n"


def _card(name: str) -> str:
    path = weights_path(name)
    registrar = load_weights(path)
    card = registrar.card
    assert card.seconds is not None
    settings = card.training["settings"]
    assert isinstance(settings, dict)
    measured = ", ".join(f"{words} {card.metrics[key]:.4g}" for key, words in _METRICS.items() if key in card.metrics)
    ranges = ", ".join(
        f"{words} {low:.3g} to {high:.3g}"
        for key, words in _RANGES.items()
        if key in card.expects
        for low, high in [card.expects[key]]
    )
    rows = {
        "for": card.notes,
        "trained on": card.data,
        "labels": "used in the training" if card.labels_used else "not used in the training",
        "licence of the data": card.licence,
        "recipe": f"`{settings['name']}`, {card.training['iteration']} iterations, seed {card.seed}, "
        f"{settings['precision']}",
        "training took": f"{card.seconds / 60:.0f} min on {card.machine}",
        **({"on the held-out training pairs": measured} if measured else {}),
        "expects": ranges,
        "file": f"`{path.name}`, {path.stat().st_size / 2**20:.1f} MiB, {parameters(registrar.step):,} parameters",
        "SHA-256": f"`{SHIPPED[name]}`",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
    return f"## {name}\n\n{table}\n\n```\n{describe(registrar.step)}\n```"


def main() -> None:
    text = cards()
    if "--check" in sys.argv[1:]:
        sys.exit(CARDS.read_text() != text)
    CARDS.write_text(text)


if __name__ == "__main__":
    main()
