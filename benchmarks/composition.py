"""What collapsing a chain of steps onto the grid costs in accuracy, and what it saves.

    python benchmarks/composition.py

n smooth random fields at 2 mm, as the steps of a registrar find them, composed in two ways: collapsed onto the grid
after every step, and lazily, every reading sampling all fields anew. As in registration, the moving image is warped
after each step. Writes results/composition.json: how far apart the two maps are in mm, how far each is from the chain
evaluated in double precision, how often displacements and images were sampled, and the seconds that it took."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import stepwarp  # noqa: F401  # before torch: it sets how idle threads wait

# isort: split
import torch
from torch import Tensor

from stepwarp.geometry import Composition, DisplacementField, Grid, Transform
from stepwarp.kernels import sampling
from stepwarp.kernels.smoothing import gaussian
from stepwarp.machine import load, machine
from stepwarp.registrar.steps import Images, Repeat, Step

RESULT = Path(__file__).parent / "results" / "composition.json"
SHAPE, MM = (80, 96, 80), 2.0
STEPS = (2, 4, 8, 16)
#: Of the fields, in voxels: what they were smoothed with, and how far all n together move a voxel (quadratic mean).
SIGMA, LENGTH = 4.0, 2.0
REPEATS = 3


class Given(Step):
    """Finds one given field after the other."""

    def __init__(self, fields: list[DisplacementField]) -> None:
        super().__init__()
        self.fields = fields
        self.found = 0

    def forward(self, fixed: Images, moving: Images) -> DisplacementField:
        self.found += 1
        return self.fields[(self.found - 1) % len(self.fields)]


def main() -> None:
    grid = Grid.isotropic(SHAPE, MM)
    image = Images(gaussian(torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0)), 1.0), grid)
    rows = [measure(n, grid, image) for n in STEPS]
    result = {
        "grid": {"shape": SHAPE, "mm": MM},
        "fields": {"sigma_voxels": SIGMA, "rms_voxels_of_all_together": LENGTH},
        "machine": machine(torch.get_num_threads()),
        "load": load(),
        "steps": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


def measure(n: int, grid: Grid, image: Images) -> dict[str, object]:
    fields = [random_field(grid, seed, LENGTH / n**0.5) for seed in range(n)]
    maps: dict[str, Transform] = {}
    row: dict[str, object] = {"n": n}
    for name in ("collapsed", "lazy"):
        registrar = Repeat(Given(fields), n, lazy=name == "lazy")
        register = partial(registrar, image, image)
        maps[name], seconds = timed(register, image)
        row[name] = seconds | counted(lambda register=register: image.warp(register()))
    inside = (..., *(slice(8, -8) for _ in SHAPE))
    exact = [DisplacementField(field.displacement.double(), grid) for field in fields]
    truth = Composition.of(*exact).on(grid).displacement
    displacements = {name: each.on(grid).displacement.double() for name, each in maps.items()}
    row["difference_mm"] = spread(displacements["collapsed"] - displacements["lazy"])
    row["difference_mm_inside"] = spread((displacements["collapsed"] - displacements["lazy"])[inside])
    row["lazy_rounding_mm"] = spread(displacements["lazy"] - truth)
    row["displacement_mm"] = spread(truth)
    return row


def random_field(grid: Grid, seed: int, length: float) -> DisplacementField:
    """Gaussian noise smoothed, with that root mean square length in voxels."""
    margin = round(3 * SIGMA)
    shape = [n + 2 * margin for n in grid.shape]
    noise = torch.randn(1, grid.ndim, *shape, generator=torch.Generator().manual_seed(seed))
    # Without the margin, where repeated border values make larger waves.
    smooth = gaussian(noise, SIGMA)[(..., *[slice(margin, -margin)] * grid.ndim)].contiguous()
    return DisplacementField(smooth * (length / smooth.square().sum(1).mean().sqrt()), grid)


def timed(register: Callable[[], Transform], image: Images) -> tuple[Transform, dict[str, float]]:
    """A registration and the last warp, and its seconds: on the clock and of all processors, medians."""
    seconds, cpu_seconds = [], []
    for _ in range(REPEATS + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        found = register()
        image.warp(found)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    medians = {"seconds": statistics.median(seconds[1:]), "cpu_seconds": statistics.median(cpu_seconds[1:])}
    return found, {name: round(value, 3) for name, value in medians.items()}


def counted(run: Callable[[], object]) -> dict[str, int]:
    """How often `sampling` was asked for values, apart from what it asks of itself."""
    counts, depth = {"fields_sampled": 0, "images_sampled": 0}, 0
    names = ("sample", "warp", "compose", "resize_displacement")
    originals = {name: getattr(sampling, name) for name in names}

    def counting(name: str) -> Callable[..., Tensor]:
        def call(read: Tensor, *rest: object, **options: object) -> Tensor:
            nonlocal depth
            if depth == 0:
                counts["images_sampled" if read.shape[1] == 1 else "fields_sampled"] += 1
            depth += 1
            try:
                return originals[name](read, *rest, **options)
            finally:
                depth -= 1

        return call

    try:
        for name in names:
            setattr(sampling, name, counting(name))
        run()
    finally:
        for name, original in originals.items():
            setattr(sampling, name, original)
    return counts


def spread(vectors: Tensor) -> dict[str, float]:
    """Lengths of vectors (1, D, *any) in voxels, in mm."""
    lengths = vectors.square().sum(1).sqrt().flatten() * MM
    values = {"mean": lengths.mean(), "p99": lengths.kthvalue(int(0.99 * lengths.numel())).values, "max": lengths.max()}
    return {name: float(f"{float(value):.3g}") for name, value in values.items()}


if __name__ == "__main__":
    main()
