"""What each kernel costs, beside what it could cost at best: on one processor or one GPU, on every back end there is.

    python benchmarks/kernels.py [--device cuda] [--sizes 64 128 192 256] [--threads 2]

The floor of a kernel is the time of a copy that reads and writes as many bytes as all its inputs and outputs together
hold, as measured on the same machine. Beside ours stand torch's grid_sample, SimpleITK's warp and Gaussian on a
processor, and FireANTs' operators where they are installed; a row of what cannot run here says why. Each time is the
median of several calls after some that are not counted, on images made for it.

Writes results/kernels/MACHINE.{json, md, png}, one after each size, so that it can be interrupted."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stepwarp.kernels import backend, correlation, descriptors, information, jacobian, sampling, smoothing
from stepwarp.machine import device_name, machine, versions
from stepwarp.workflow.device import chosen_device, use_threads

OUT = Path(__file__).parent / "results" / "kernels"
SIZES = (64, 128, 192, 256)
#: A kernel is called until it has taken so many seconds, and so often at least and at most.
SECONDS, LEAST, MOST = 1.0, 3, 50
#: Of the similarity and of the Gaussian, as the presets have them.
RADIUS, EPSILON, SIGMA, BINS = 2, 1e-6, 1.2, 32
BACKENDS = {"cpu": ("reference", "cpu"), "cuda": ("reference", "gpu")}


@dataclass(frozen=True)
class Inputs:
    """Images (1, 1, n, n, n) of 0 to 1 and smooth displacements (1, 3, n, n, n) of some voxels."""

    fixed: Tensor
    moving: Tensor
    outer: Tensor
    inner: Tensor
    matrix: Tensor

    @classmethod
    def made(cls, size: int, device: torch.device) -> Inputs:
        generator = torch.Generator().manual_seed(size)
        noise = torch.randn(2, 4, size, size, size, generator=generator)
        smooth = smoothing.gaussian(noise, 2.0)
        images = (0.5 + smooth[:, :1] / (6 * smooth[:, :1].std())).clamp(0, 1)
        fields = 2 * smooth[:, 1:] / smooth[:, 1:].std()
        images, fields = images.to(device), fields.to(device)
        return cls(images[:1], images[1:], fields[:1], fields[1:], torch.eye(4, dtype=torch.float64))


@dataclass(frozen=True)
class Kernel:
    """A primitive. maps: how many numbers per voxel it reads and writes at least."""

    call: Callable[[Inputs], Any]
    maps: int


KERNELS = {
    "warp": Kernel(lambda g: sampling.warp(g.moving, g.inner, g.matrix), 5),
    "compose": Kernel(lambda g: sampling.compose(g.outer, g.inner), 9),
    "compose_step": Kernel(lambda g: sampling.compose_step(g.outer, g.inner, 0.1, 0.25), 9),
    "gaussian": Kernel(lambda g: smoothing.gaussian(g.outer, SIGMA), 6),
    "LNCC forces": Kernel(lambda g: correlation.forces(g.fixed, g.moving, None, RADIUS, EPSILON), 8),
    "joint_histogram": Kernel(lambda g: information.joint_histogram(g.fixed, g.moving, None, BINS), 2),
    "self_similarity": Kernel(lambda g: descriptors.self_similarity(g.fixed, None, 2, 0.8), 13),
    "smallest_corner_determinant": Kernel(lambda g: jacobian.smallest_corner_determinant(g.outer), 4),
    "volume_change_gradient": Kernel(lambda g: jacobian.volume_change_gradient(g.outer), 6),
    "invert": Kernel(lambda g: jacobian.invert(g.outer), 6),
}


def others(given: Inputs, device: torch.device) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(kernel that it is like, whose, how it is called)."""
    identity = F.affine_grid(torch.eye(3, 4, device=device)[None], list(given.moving.shape), align_corners=True)
    half = (torch.tensor(given.inner.shape[2:], device=device) - 1) / 2
    places = identity + (given.inner.movedim(1, -1) / half).flip(-1)
    yield "warp", "grid_sample, its grid given", lambda: F.grid_sample(given.moving, places, align_corners=True)
    if device.type == "cpu":
        yield from _itk(given)
    else:
        yield from _fireants(given)


def _itk(given: Inputs) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(given.moving[0, 0].numpy().T.copy())
    field = given.inner[0].numpy().transpose(3, 2, 1, 0).astype(np.float64)
    transform = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(field, isVector=True))
    vectors = sitk.GetImageFromArray(given.outer[0].numpy().transpose(3, 2, 1, 0).copy(), isVector=True)
    yield "warp", "SimpleITK", lambda: sitk.Resample(image, transform, sitk.sitkLinear, 0.0)
    yield (
        "gaussian",
        "SimpleITK, three channels",
        lambda: [
            sitk.DiscreteGaussian(sitk.VectorIndexSelectionCast(vectors, axis), [SIGMA**2] * 3) for axis in range(3)
        ],
    )


def _fireants(given: Inputs) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    try:
        from fireants.losses.cc import LocalNormalizedCrossCorrelationLoss
    except ImportError as error:
        reason = str(error)

        def absent() -> None:
            raise RuntimeError(reason)

        yield "LNCC forces", "FireANTs", absent
        return
    loss = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=2 * RADIUS + 1)

    def with_gradient() -> Tensor:
        moved = given.moving.clone().requires_grad_()
        return torch.autograd.grad(loss(moved, given.fixed), moved)[0]

    yield "LNCC forces", "FireANTs, to one image", with_gradient


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The median of several calls, of which the first two, that compile and warm up, are not counted."""
    spent: list[float] = []
    for n in range(MOST + 2):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        if n >= 2:
            spent.append(time.perf_counter() - started)
        if len(spent) >= LEAST and sum(spent) > SECONDS:
            break
    return statistics.median(spent)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copied_per_second(device: torch.device) -> float:
    """Bytes that a copy reads and writes, together, in a second; of a volume that no cache holds."""
    source = torch.rand(2**27, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def measured(size: int, device: torch.device, copy: float) -> Iterator[dict[str, Any]]:
    given = Inputs.made(size, device)
    for name, kernel in KERNELS.items():
        floor = 4 * kernel.maps * size**3 / copy
        for back_end in BACKENDS[device.type]:
            with backend.use(back_end):
                yield _row(size, name, back_end, floor, partial(kernel.call, given), device)
    for name, whose, call in others(given, device):
        yield _row(size, name, whose, 4 * KERNELS[name].maps * size**3 / copy, call, device)


def _row(
    size: int, name: str, whose: str, floor: float, call: Callable[[], Any], device: torch.device
) -> dict[str, Any]:
    row: dict[str, Any] = {"size": size, "kernel": name, "by": whose, "floor_ms": round(1e3 * floor, 4)}
    try:
        spent = seconds(call, device)
    except Exception as error:  # whatever it is, the others are measured
        return row | {"ms": None, "why": " ".join(str(error).split())[:200]}
    return row | {"ms": round(1e3 * spent, 4), "ratio": round(spent / floor, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    sizes = sorted({row["size"] for row in rows})
    head = ["kernel", "by", *(f"{n}³: ms (of the floor)" for n in sizes)]
    lines = [head, ["---"] * len(head)]
    for kernel, whose in dict.fromkeys((row["kernel"], row["by"]) for row in rows):
        own = {row["size"]: row for row in rows if (row["kernel"], row["by"]) == (kernel, whose)}
        lines.append([kernel, whose, *(_cell(own.get(n)) for n in sizes)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return row["why"] if row["ms"] is None else f"{row['ms']:.3g} ({row['ratio']:.1f})"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 5), layout="constrained")
    axes = figure.subplots()
    largest = max(row["size"] for row in rows)
    shown = [row for row in rows if row["size"] == largest and row["ms"] is not None]
    for whose in dict.fromkeys(row["by"] for row in shown):
        own = [row for row in shown if row["by"] == whose]
        axes.plot([row["ratio"] for row in own], [row["kernel"] for row in own], "o", label=whose)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_xlabel(f"times the floor, a copy of as many bytes; {largest} voxels along each axis")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    device = chosen_device(arguments.device)
    threads = use_threads(arguments.threads)
    about = machine(threads, device_name(device) if device.type == "cuda" else "cpu")
    name = re.sub(r"[^a-z0-9]+", "-", (about["device"] if device.type == "cuda" else about["cpu"]).lower()).strip("-")
    copy = copied_per_second(device)
    about |= {"copy_gb_per_s": round(copy / 1e9, 1), "packages": versions(("torch", "triton", "numba", "SimpleITK"))}
    OUT.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for size in arguments.sizes:
        for row in measured(size, device, copy):
            rows.append(row)
            print(row, flush=True)
        (OUT / f"{name}.json").write_text(json.dumps({"machine": about, "kernels": rows}, indent=1) + "\n")
        (OUT / f"{name}.md").write_text(table(rows))
        plot(rows, OUT / f"{name}.png")


if __name__ == "__main__":
    main()
