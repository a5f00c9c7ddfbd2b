"""The drawn figures: lines of the deformed grid and the loss curves, both as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from itertools import groupby

import numpy as np
from contourpy import contour_generator
from torch import Tensor

from stepwarp.report.views import Orientation, View

#: Distances between grid lines to choose from, in mm, and how many lines the longest side should have about.
LINE_STEPS, LINES = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50), 30

INK, FAINT, CURVE = "#c9ced6", "#2b313a", "#4a9eff"


def line_distance(shape: Sequence[int], spacing: np.ndarray) -> float:
    """A round number of mm between grid lines for a volume of this shape."""
    wanted = float((np.array(shape) * spacing).max()) / LINES
    return min(LINE_STEPS, key=lambda step: abs(np.log(step / wanted)))


def grid_lines(displacement: Tensor, turned: Orientation, view: View, index: int, distance: float) -> str:
    """SVG paths of a regular grid of the moving space, `distance` mm apart, pulled back onto one slice.

    displacement: (1, 3, *grid) voxels of its grid. The lines are where x + u(x) has a constant coordinate, so they are
    bent exactly as the moved image is."""
    paths = [_iso_lines(*_coordinate(displacement, turned, view, index, axis), distance) for axis in view.plane_axes()]
    return "".join(f'<path d="{path}"/>' for path in paths)


def _coordinate(
    displacement: Tensor, turned: Orientation, view: View, index: int, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """x and x + u(x) along one RAS axis in mm, on a slice."""
    source = turned.source[axis]
    grid = displacement.shape[2:]
    rest = np.arange(grid[source], dtype=np.float32).reshape([-1 if a == source else 1 for a in range(3)])
    rest_slice = view.cut(turned.turn(np.broadcast_to(rest, grid)), index)
    moved_slice = rest_slice + view.cut(turned.turn(displacement[0, source]), index)
    return rest_slice * turned.spacing[axis], moved_slice * turned.spacing[axis]


def _iso_lines(rest: np.ndarray, moved: np.ndarray, distance: float) -> str:
    """The SVG path data of moved = k * distance; pixels (column, row), a pixel's centre at its index."""
    if min(moved.shape) < 2 or not np.isfinite(moved).all():
        return ""
    lowest, highest = max(rest.min(), moved.min()) / distance, min(rest.max(), moved.max()) / distance
    levels = np.arange(np.ceil(lowest), highest) * distance
    if levels.size == 0:
        return ""
    contours = contour_generator(z=moved)
    lines = [np.asarray(line) for level in levels for line in contours.lines(level)]
    return "".join(_path(line) for line in lines if len(line) > 1)


def _path(line: np.ndarray) -> str:
    """Path data in tenths of a pixel, each point relative to the one before: a third of the size of absolute ones."""
    tenths = np.rint(line * 10).astype(int)
    steps = np.diff(tenths, axis=0)
    steps = steps[steps.any(1)]
    start = "M{} {}".format(*tenths[0])
    return start + "l" + " ".join(f"{x} {y}" for x, y in steps.tolist()) if len(steps) else ""


def loss_curves(rows: Sequence[dict]) -> str:
    """Loss against iteration, one panel per stage, its levels told apart by lines and labels: one SVG element.

    rows: {stage, level_mm, iteration, loss} in the order of the run."""
    import matplotlib
    from matplotlib.figure import Figure

    stages = [(name, list(group)) for name, group in groupby(rows, key=lambda row: row["stage"])]
    # Text stays text (the page's own font); a fixed salt gives the same file for the same record.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stepwarp", "font.size": 9.5}):
        figure = Figure(figsize=(7.4, 2.7), layout="constrained", facecolor="none")
        widths = [max(1.0, len(group) ** 0.5) for _, group in stages]
        panels = figure.subplots(1, len(stages), squeeze=False, width_ratios=widths)[0]
        for panel, (name, group) in zip(panels, stages, strict=True):
            _loss_panel(panel, str(name), group)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _loss_panel(panel, title: str, rows: Sequence[dict]) -> None:
    panel.set_title(_literal(title), color=INK, fontsize=10, loc="left", pad=16)
    panel.set_facecolor("none")
    panel.tick_params(colors=INK, length=0)
    panel.spines[:].set_visible(False)
    panel.grid(axis="y", color=FAINT, linewidth=0.8)
    panel.set_xlabel("iteration", color=INK)
    panel.margins(x=0)
    start = 0
    for level, group in groupby(rows, key=lambda row: row["level_mm"]):
        losses = [row["loss"] for row in group]
        panel.plot(range(start, start + len(losses)), losses, color=CURVE, linewidth=1.6)
        panel.axvline(start, color=FAINT, linewidth=0.8)
        label = "" if level is None else f"{level:g} mm"
        panel.text(start, 1.02, label, transform=panel.get_xaxis_transform(), color=INK, fontsize=8.5)
        start += len(losses)


def _literal(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
