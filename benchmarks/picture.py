"""Draw the README's picture from the demo's result: python benchmarks/picture.py DEMO_FOLDER docs/demo.png"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stepwarp.files import read_image, read_transform
from stepwarp.geometry import Affine, DisplacementField

_EVERY = 6


def main() -> None:
    demo, target = map(Path, sys.argv[1:])
    fixed, moving = read_image(demo / "fixed.nii.gz"), read_image(demo / "moving.nii.gz")
    moved = read_image(demo / "result" / "Warped.nii.gz")
    warp = read_transform(demo / "result" / "1Warp.nii.gz")
    assert isinstance(warp, DisplacementField)
    before = moving.warp(Affine.identity(3), fixed.grid)
    at = fixed.grid.shape[2] * 11 // 20
    panels = {"fixed": fixed, "moving": before, "moved by stepwarp": moved}
    figure = Figure(figsize=(12, 3.9), facecolor="black", layout="constrained")
    axes = figure.subplots(1, 4)
    for ax, (title, image) in zip(axes, panels.items(), strict=False):
        _slice(ax, image.data[:, :, at].numpy(), title)
    _slice(axes[3], moved.data[:, :, at].numpy() * 0.45, "the deformation", top=float(moved.data.max()))
    i, j = np.meshgrid(*map(np.arange, fixed.grid.shape[:2]), indexing="ij")
    u, v = warp.displacement[0, :2, :, :, at].numpy()
    for lines in ((i + u, j + v), ((i + u).T, (j + v).T)):
        for x, y in zip(lines[0][::_EVERY], lines[1][::_EVERY], strict=True):
            axes[3].plot(x, y, color="#5fd0ff", linewidth=0.5)
    axes[3].set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    figure.savefig(target, dpi=100, facecolor="black")


def _slice(ax, values: np.ndarray, title: str, top: float | None = None) -> None:
    high = np.quantile(values[values > 0], 0.995) if top is None else top
    ax.imshow(values.T, cmap="gray", vmin=0, vmax=high, origin="lower", interpolation="bilinear")
    ax.set_title(title, color="white", fontsize=12)
    ax.set_axis_off()


if __name__ == "__main__":
    main()
