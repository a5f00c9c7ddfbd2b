"""See `kernels.sampling`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stepwarp.kernels.gpu import reading
from stepwarp.kernels.gpu.cells import channel, index, slope
from stepwarp.kernels.gpu.launching import beside, launch, programs, room

#: What is read receives in the order in which the card comes to it.
ANY_ORDER = ("sample_adjoint", "warp_adjoint", "compose_adjoint", "resize_displacement_adjoint")
#: So many channels are read at a time: for each number a kernel is compiled.
_CHANNELS = 16


def sample(
    image: Tensor, coords: Tensor, mode: str = "linear", outside: str = "zero", *, out: Tensor | None = None
) -> Tensor:
    """Coordinates of any shape are a line of them."""
    result = room(out, (max(len(image), len(coords)), image.shape[1], *coords.shape[2:]), image)
    _read(image, _line(coords), None, outside, _line(result), indexed=False)
    return result


def sample_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], image: Tensor, coords: Tensor, mode: str, outside: str
) -> tuple[Tensor | None, Tensor | None]:
    """To the image and to the coordinates."""
    to_image, to_coords = _read_adjoint(_line(gradient), wanted, image, _line(coords), None, outside, indexed=False)
    return to_image, None if to_coords is None else to_coords.reshape(coords.shape)


def warp(
    image: Tensor,
    displacement: Tensor,
    matrix: Tensor,
    mode: str = "linear",
    outside: str = "zero",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Several channels with one computation of where they are read."""
    shape = (max(len(image), len(displacement)), image.shape[1], *displacement.shape[2:])
    return _read(image, displacement, matrix, outside, room(out, shape, image))


def warp_adjoint(
    gradient: Tensor,
    wanted: tuple[bool, ...],
    image: Tensor,
    displacement: Tensor,
    matrix: Tensor,
    mode: str,
    outside: str,
) -> tuple[Tensor | None, Tensor | None]:
    """To the image and to the displacement."""
    return _read_adjoint(gradient, wanted, image, displacement, matrix, outside)


def warp_linear(
    image: Tensor, matrix: Tensor, shape: tuple[int, ...], outside: str = "zero", *, out: Tensor | None = None
) -> Tensor:
    """Without a displacement, for all matrices at once."""
    return _read(image, None, matrix, outside, room(out, (len(matrix), 1, *shape), image))


def warp_linear_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], image: Tensor, matrix: Tensor, shape: tuple[int, ...], outside: str
) -> tuple[None, Tensor]:
    """To the matrix."""
    voxels = gradient.shape[2:].numel()
    parts = torch.empty(len(matrix), programs(voxels), 3, 4, device=image.device)
    given = (_laid(image)[0], beside(matrix, image), gradient.contiguous(), parts, *image.shape[2:], *shape[1:], voxels)
    launch(reading.sum_for_matrix, voxels, len(matrix), *given, border=outside == "border")
    result = torch.zeros_like(matrix)
    result[:, :3] = parts.sum(1, dtype=matrix.dtype)
    return None, result


def compose(outer: Tensor, inner: Tensor, matrix: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """Reading, turning the vectors and adding in one pass."""
    shape = (max(len(outer), len(inner)), *inner.shape[1:])
    return _read_vectors(outer, inner, matrix, room(out, shape, outer))


def compose_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], outer: Tensor, inner: Tensor, matrix: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """To both displacements; the inner one is also added."""
    turned = gradient if matrix is None else _turned_back(gradient, matrix)
    to_outer, to_inner = _read_adjoint(turned, wanted, outer, inner, matrix, "border")
    return to_outer, None if to_inner is None else to_inner.add_(gradient.sum_to_size(inner.shape))


def resize_displacement(
    displacement: Tensor, shape: tuple[int, ...], matrix: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """As is composed, but with nothing inside."""
    return _read_vectors(displacement, None, matrix, room(out, (*displacement.shape[:2], *shape), displacement))


def resize_displacement_adjoint(
    gradient: Tensor, wanted: tuple[bool, ...], displacement: Tensor, shape: tuple[int, ...], matrix: Tensor
) -> tuple[Tensor | None]:
    """To the displacement."""
    turned = _turned_back(gradient, matrix)
    return _read_adjoint(turned, (wanted[0], False), displacement, None, matrix, "border")[:1]


def compose_step(
    displacement: Tensor, step: Tensor, scale: Tensor | float, longest: float, *, out: Tensor | None = None
) -> Tensor:
    """A scale that is on the device stays there."""
    result = room(out, (max(len(displacement), len(step)), *step.shape[1:]), step)
    (u, u_step), (s, s_step) = _laid(displacement), _laid(step)
    stored = isinstance(scale, Tensor) and scale.device == step.device
    voxels = step.shape[2:].numel()
    given = (u, s, scale if stored else float(scale), result, float(longest), *step.shape[2:], voxels)
    launch(reading.read_at_step, voxels, len(result), *given, u_step, s_step, 3 * voxels, stored=stored)
    return result


def scaled_gradient(factor: Tensor, image: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The three differences at a voxel at once."""
    result = room(out, (len(image), 3, *image.shape[2:]), image)
    voxels = image.shape[1:].numel()
    launch(_scaled_gradient, voxels, len(image), factor.contiguous(), image.contiguous(), result, *image.shape[2:])
    return result


@triton.jit
def _scaled_gradient(factor, image, out, n0, n1, n2, block: tl.constexpr):
    x = tl.program_id(0) * block + tl.arange(0, block)
    voxels, sample = n0 * n1 * n2, tl.program_id(1)
    factor, image = channel(factor, sample, voxels), channel(image, sample, voxels)
    out = channel(out, 3 * sample, voxels)
    i, j, k = index(x, n1, n2)
    wanted = x < voxels
    by = tl.load(factor + x, wanted, 0.0)
    tl.store(out + x, by * slope(image, x, i, n0, n1 * n2, wanted), wanted)
    tl.store(channel(out, 1, voxels) + x, by * slope(image, x, j, n1, n2, wanted), wanted)
    tl.store(channel(out, 2, voxels) + x, by * slope(image, x, k, n2, 1, wanted), wanted)


def _line(points: Tensor) -> Tensor:
    """(B, C, *any) -> (B, C, 1, 1, points)."""
    return points.flatten(2)[:, :, None, None]


def _laid(tensor: Tensor) -> tuple[Tensor, int]:
    """The tensor as the kernels read it, and how far it is from one sample to the next: a batch of one serves all."""
    tensor = tensor.detach().contiguous()
    return tensor, 0 if len(tensor) == 1 else tensor.shape[1:].numel()


def _placing(displacement: Tensor | None, matrix: Tensor | None, image: Tensor) -> tuple[Tensor, int, Tensor, dict]:
    """The displacement, how far its samples are apart, the matrix (the image for what there is not, which is not read)
    and what `reading` has to know of both."""
    u, step = (image, 0) if displacement is None else _laid(displacement)
    m = image if matrix is None else beside(matrix, image)
    return u, step, m, {"moved": displacement is not None, "mapped": matrix is not None}


def _groups(channels: int) -> list[tuple[int, int]]:
    """The first of the channels that are read at a time, and how many they are."""
    return [(first, min(_CHANNELS, channels - first)) for first in range(0, channels, _CHANNELS)]


def _read(
    image: Tensor,
    displacement: Tensor | None,
    matrix: Tensor | None,
    outside: str,
    result: Tensor,
    *,
    indexed: bool = True,
) -> Tensor:
    """Images (B, C, *grid) at the positions of another grid, into (B, C, *out)."""
    images, image_step = _laid(image)
    u, u_step, m, how = _placing(displacement, matrix, images)
    voxels = result.shape[2:].numel()
    steps = (image_step, u_step, 16 if matrix is not None and matrix.ndim == 3 else 0, result.shape[1:].numel())
    sizes = (*image.shape[2:], *result.shape[3:], voxels, *steps)
    how |= {"indexed": indexed, "border": outside == "border"}
    for first, channels in _groups(image.shape[1]):
        given = (images[:, first:], u, m, result[:, first:], *sizes)
        launch(reading.read_values, voxels, len(result), *given, channels=channels, **how)
    return result


def _read_vectors(outer: Tensor, inner: Tensor | None, matrix: Tensor | None, result: Tensor) -> Tensor:
    """Displacements at the positions of another grid, in voxels of that grid, added to what moves it."""
    vectors, outer_step = _laid(outer)
    u, u_step, m, how = _placing(inner, matrix, vectors)
    turn = m if matrix is None else torch.linalg.inv_ex(m).inverse.contiguous()
    voxels = result.shape[2:].numel()
    sizes = (*outer.shape[2:], *result.shape[3:], voxels, outer_step, u_step, result.shape[1:].numel())
    launch(reading.read_vectors, voxels, len(result), vectors, u, m, turn, result, *sizes, **how)
    return result


def _turned_back(gradient: Tensor, matrix: Tensor) -> Tensor:
    """The adjoint of expressing vectors in another grid's voxels."""
    turn = torch.linalg.inv_ex(matrix[:3, :3]).inverse.to(gradient)
    return torch.einsum("ba,nb...->na...", turn, gradient)


def _read_adjoint(
    gradient: Tensor,
    wanted: tuple[bool, ...],
    image: Tensor,
    displacement: Tensor | None,
    matrix: Tensor | None,
    outside: str,
    *,
    indexed: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """To the image and to the displacement. Of what was read for several samples, the sum."""
    gradient, (images, image_step) = gradient.contiguous(), _laid(image)
    u, u_step, m, how = _placing(displacement, matrix, images)
    batch, voxels = len(gradient), gradient.shape[2:].numel()
    sizes = (*image.shape[2:], *gradient.shape[3:], voxels, image_step, u_step, gradient.shape[1:].numel())
    how |= {"indexed": indexed, "border": outside == "border"}
    to_image = torch.zeros_like(images) if wanted[0] else None
    to_displacement: list[Tensor] = []
    for first, channels in _groups(image.shape[1]):
        received = gradient[:, first:]
        if to_image is not None:
            given = (u, m, received, to_image[:, first:], *sizes)
            launch(reading.add_back, voxels, batch, *given, channels=channels, **how)
        if displacement is not None and wanted[1]:
            part = torch.empty(batch, 3, *displacement.shape[2:], device=image.device)
            given = (images[:, first:], u, m, received, part, *sizes, part.shape[1:].numel())
            launch(reading.read_slopes, voxels, batch, *given, channels=channels, **how)
            to_displacement.append(part)
    if displacement is None or not to_displacement:
        return to_image, None
    return to_image, sum(to_displacement[1:], to_displacement[0]).sum_to_size(displacement.shape)
