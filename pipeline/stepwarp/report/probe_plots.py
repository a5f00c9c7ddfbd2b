"""Lines over steps with the interval of each mean as a band: one inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from stepwarp.report.figures import FAINT, INK

_TONES = ("#4a9eff", "#eba63f", "#35c07a", "#f2605c", "#b78cff", "#5fd0d6", "#d68fb8")


@dataclass(frozen=True)
class Curve:
    """rows: what `probes.statistics.described` says of each step. first: the number of the first row's step."""

    label: str
    rows: Sequence[Mapping[str, Any]]
    first: int = 0


def curves(lines: Sequence[Curve], across: str, up: str) -> str:
    """An SVG element; nothing where there is no line."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not lines:
        return ""
    # Text stays text (the page's own font); a fixed salt gives the same file for the same record.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stepwarp", "font.size": 9.5}):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained", facecolor="none")
        panel = figure.subplots()
        for number, line in enumerate(lines):
            _draw(panel, line, _TONES[number % len(_TONES)])
        panel.set_facecolor("none")
        panel.tick_params(colors=INK, length=0)
        panel.spines[:].set_visible(False)
        panel.grid(axis="y", color=FAINT, linewidth=0.8)
        panel.set_xlabel(across, color=INK)
        panel.set_ylabel(up, color=INK)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.margins(x=0.02)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=8.5)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _draw(panel: Any, line: Curve, tone: str) -> None:
    steps = np.arange(line.first, line.first + len(line.rows))
    means = np.array([np.nan if row["mean"] is None else row["mean"] for row in line.rows])
    ends = np.array([row["ci95"] or (np.nan, np.nan) for row in line.rows])
    panel.plot(steps, means, color=tone, linewidth=1.6, marker="o", markersize=2.5, label=line.label)
    panel.fill_between(steps, ends[:, 0], ends[:, 1], color=tone, alpha=0.18, linewidth=0)
