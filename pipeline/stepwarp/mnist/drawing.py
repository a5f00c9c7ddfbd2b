"""How all figures of the study look, and that each says which digits it is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwarp.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CARD, INK, SOFT, EDGE = "#14171c", "#e4e8ee", "#97a1af", "#232932"
#: Told apart by those who do not see red and green as well.
COLOURS = ("#4a9eff", "#ffb454", "#5fd0a5", "#e879c6", "#c9ced6", "#b59bff", "#f2605c")
_DPI = 110


def figure(width: float, height: float, source: str) -> Figure:
    """An empty figure, inches, with the source of its digits at the foot."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained", facecolor=CARD)
    made.supxlabel(f"Digits: {source}", color=SOFT, fontsize=7.5, x=0.995, ha="right")
    return made


def panel(axes: Axes, title: str, x: str = "", y: str = "") -> Axes:
    """Axes with their words and the look of all others."""
    axes.set_facecolor(CARD)
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(x, color=SOFT, fontsize=9)
    axes.set_ylabel(y, color=SOFT, fontsize=9)
    axes.tick_params(colors=SOFT, labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=EDGE, linewidth=0.8)
    return axes


def legend(axes: Axes, **options: Any) -> None:
    """Names of the lines."""
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, **options)


def band(axes: Axes, curve: dict[str, list[Any]], name: str, colour: str, last: int | None = None, **look: Any) -> None:
    """A mean over the steps with its 95 % interval, up to step `last`."""
    means = np.array(curve["mean"][: None if last is None else last + 1], float)
    axes.plot(np.arange(len(means)), means, color=colour, label=name, linewidth=1.8, **look)
    ends = [end or (np.nan, np.nan) for end in curve["ci95"][: len(means)]]
    low, high = np.array(ends, float).T
    axes.fill_between(np.arange(len(means)), low, high, color=colour, alpha=0.2, linewidth=0)


def picture(axes: Axes, image: np.ndarray, title: str = "", limit: float | None = None) -> Axes:
    """An image (rows, columns): 0 to 1 in grey, or -limit to limit from blue over black to orange."""
    from matplotlib.colors import LinearSegmentedColormap

    if limit is None:
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        diverging = LinearSegmentedColormap.from_list("difference", ["#4a9eff", "#181b21", "#ff9e3d"])
        axes.imshow(image, cmap=diverging, vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(EDGE)
    if title:
        axes.set_title(title, color=SOFT, fontsize=8, pad=3)
    return axes


def bent_lines(axes: Axes, displacement: np.ndarray, every: float = 2.0) -> None:
    """The lines of a regular grid of the moving space, pulled back as the moved image is. displacement: (2, *shape)."""
    shape = displacement.shape[1:]
    where = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")) + displacement
    for axis, n in enumerate(shape):
        axes.contour(where[axis], levels=np.arange(0, n, every), colors="#ffd34d", linewidths=0.6, alpha=0.75)


def save(made: Figure, path: Path) -> None:
    """As a PNG, in place of an older one."""
    with atomic_path(path, overwrite=True) as temporary:
        made.savefig(temporary, format="png", dpi=_DPI, facecolor=CARD)


def save_animation(frames: Sequence[np.ndarray], path: Path, source: str, seconds: float = 0.45) -> None:
    """Frames (rows, columns) of 0 to 1 as a GIF that repeats itself, with the source of its digits below."""
    from PIL import Image, ImageDraw

    made = []
    for frame in frames:
        grey = Image.fromarray((np.clip(frame, 0, 1) * 255).astype(np.uint8), "L")
        grey = grey.resize((3 * grey.width, 3 * grey.height), Image.Resampling.NEAREST)
        page = Image.new("L", (grey.width, grey.height + 16), 20)
        page.paste(grey, (0, 0))
        ImageDraw.Draw(page).text((4, grey.height + 2), f"Digits: {source}", fill=150)
        made.append(page)
    lasting = [round(1000 * seconds)] * len(made)
    lasting[0] = lasting[-1] = round(3000 * seconds)
    with atomic_path(path, overwrite=True) as temporary:
        made[0].save(temporary, "GIF", save_all=True, append_images=made[1:], duration=lasting, loop=0)
