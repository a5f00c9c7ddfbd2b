"""Write the README's table from the committed results.

python benchmarks/readme.py            # rewrite the block between the markers
python benchmarks/readme.py --check    # exit 1 if it would change: what the tests run"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)

_METHODS = {
    "ants-affine": "ANTs affine",
    "stepwarp-affine": "**stepwarp** `--affine-only`",
    "ants-syn": "ANTs `SyN`, the ANTsPy default",
    "ants-syn-quick": "ANTs `antsRegistrationSyNQuick[s]`",
    "stepwarp-fast": "**stepwarp** `fast`",
    "stepwarp-default": "**stepwarp** `default`",
    "stepwarp-best": "**stepwarp** `best`",
    "ants-syn-best": "ANTs `antsRegistrationSyN[s]`",
}
_HEAD = ("", "Dice", "TRE mm", "std log J", "folds", "inverse mm, mean / 95 %", "seconds", "CPU seconds")


def block() -> str:
    """The tables, as they belong between the markers."""
    summary = json.loads((RESULTS / "brain_pairs" / "summary.json").read_text())
    machine = _machine()
    parts = [
        "Six pairs of brains of different people (OASIS, 132 manual labels; mean over pairs, folds counted by all "
        "one-sided differences and summed):",
        _table(summary["six pairs of different people"], ("dice",)),
        "The pair among them with 30 human landmarks, with ANTs' slow preset, and Colin27 to MNI152 (32 landmarks):",
        _table(summary["1013_1019"], ("dice", "tre_mm")),
        _table(summary["mni2009c_colin27"], ("tre_mm",)),
        f"{machine['threads']} threads on {machine['cores']} cores ({machine['cpu']}), no GPU; measured from the files "
        "each method wrote, by `benchmarks/brain_pairs.py`. Seconds are of the registration alone; other work shared "
        "the machine, most of all while ANTs' slow preset ran, so compare the processor's: for ANTs those of the "
        "registration, for stepwarp of the whole command with imports, writing, self-check and report.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: dict[str, dict[str, float]], judged_by: tuple[str, ...]) -> str:
    columns = [name for name in _HEAD if not (name == "Dice" and "dice" not in judged_by)]
    columns = [name for name in columns if not (name == "TRE mm" and "tre_mm" not in judged_by)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for method, title in _METHODS.items():
        if method in rows:
            cells = _cells(rows[method])
            lines.append("| " + " | ".join([title, *(cells[name] for name in columns[1:])]) + " |")
    return "\n".join(lines)


def _cells(row: dict[str, float]) -> dict[str, str]:
    deformed = "std_log_jacobian" in row
    return {
        "Dice": f"{row['dice']:.3f}" if "dice" in row else "",
        "TRE mm": f"{row['tre_mm']:.2f}" if "tre_mm" in row else "",
        "std log J": f"{row['std_log_jacobian']:.2f}" if deformed else "",
        "folds": f"{row['corner_folds']:.0f}" if deformed else "",
        "inverse mm, mean / 95 %": f"{row['inverse_mean_mm']:.2f} / {row['inverse_p95_mm']:.2f}" if deformed else "",
        "CPU seconds": f"{row['cpu_seconds']:.0f}",
        "seconds": f"{row['seconds']:.0f}" if row["seconds"] >= 10 else f"{row['seconds']:.1f}",
    }


def _machine() -> dict:
    case = next((RESULTS / "brain_pairs" / "cases").glob("*__stepwarp-default.json"))
    return json.loads(case.read_text())["machine"]


def main() -> None:
    before = README.read_text()
    after = _BLOCK.sub(lambda found: found[1] + block() + found[2], before)
    if "--check" in sys.argv:
        sys.exit(
            0 if before == after else "README.md: its tables are not those of the results; run benchmarks/readme.py"
        )
    README.write_text(after)


if __name__ == "__main__":
    main()
