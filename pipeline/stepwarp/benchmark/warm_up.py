"""What a computer does once and not again: stepwarp's kernels are compiled at their first use and kept."""

from __future__ import annotations

from typing import Any

from stepwarp.benchmark import child

_SHAPE = (26, 24, 22)


def main(job: dict[str, Any]) -> None:
    """Register two small phantoms with each of the job's `methods`."""
    import torch

    from stepwarp.benchmark.methods import find_method
    from stepwarp.geometry import Grid, Image

    grid = Grid.isotropic(_SHAPE, 4.0)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in _SHAPE), indexing="ij")
    ball = torch.exp(-4 * torch.stack(axes).square().sum(0))
    fixed, moving = Image(ball, grid, "ball"), Image(ball.roll(1, 0) * (1 + axes[1] / 4), grid, "moved ball")
    for name in job["methods"]:
        find_method(name)(fixed, moving, threads=job["threads"], seed=0)


if __name__ == "__main__":
    child.report_errors(main)
