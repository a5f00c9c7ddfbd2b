"""What a registration may be descending: objectives, and their gradients at the state that a step is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwarp.geometry import Grid
from stepwarp.kernels import sampling, smoothing
from stepwarp.kernels.sampling import Outside
from stepwarp.losses.regularity import REGULARITIES
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.losses.similarity import Similarity
from stepwarp.registrar.steps import Images


@dataclass(frozen=True, eq=False)
class State:
    """What one step is given, and how its pairs stand.

    fixed, moved: the images as the step sees them, on its own grid, which a `Downsampled` has made coarser; the moving
    ones as the map so far has warped them. displacement: of the map so far, (B, D, *grid) in voxels of that grid."""

    fixed: Images
    moved: Images
    displacement: Tensor

    @property
    def grid(self) -> Grid:
        return self.fixed.grid


#: The gradient of something at a state, (B, D, *grid), with respect to a displacement v in voxels that is composed on
#: the inside, u o (id + v), at v = 0: where a step against it, which is what a chain composes, lowers that something.
Candidate = Callable[[State], Tensor]


@dataclass(frozen=True, eq=False)
class PairObjective:
    """similarity + weight * regularity of the displacement, per pair, as means over the voxels of the images' grid.

    regularity: a name of `losses.regularity`, in the world's units. outside: what is seen beyond the moving image."""

    similarity: Similarity
    regularity: str = "diffusion"
    weight: float = 0.0
    outside: Outside = "zero"

    def values(self, fixed: Images, moving: Images, displacement: Tensor) -> Tensor:
        """(B,) of displacements (B, D, *grid) in voxels of the images' grid; differentiable in them."""
        still = torch.eye(fixed.grid.ndim + 1, dtype=torch.float64)
        moved = sampling.warp(moving.data, displacement, still, outside=self.outside)
        values = self.similarity.values(fixed.data, moved)
        return values if self.weight == 0 else values + self.weight * self.energies(displacement, fixed.grid)

    def value_and_gradient(self, fixed: Images, moving: Images, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """The values (B,), and of each its derivative with respect to its own pair's displacement, of their shape."""
        displacement = displacement.detach().requires_grad_()
        with torch.enable_grad():
            values = self.values(fixed, moving, displacement)
            (gradient,) = torch.autograd.grad(values.sum(), displacement)
        return values.detach(), gradient

    def energies(self, displacement: Tensor, grid: Grid) -> Tensor:
        """The regularity of each pair, (B,)."""
        return torch.stack([REGULARITIES[self.regularity](each, grid) for each in displacement.split(1)])

    def gradient(self, state: State) -> Tensor:
        """A `Candidate`: of the whole objective."""
        found = of_moved(self.similarity.values)(state)
        return found if self.weight == 0 else found + self.weight * of_regularity(self.regularity)(state)


def of_moved(energy: Callable[[Tensor, Tensor], Tensor]) -> Candidate:
    """The candidate of any energy of the fixed and the moved images, (B, C, *grid) both -> (B,), such as
    `similarity.values` or the log-probability that a classifier gives to the moved ones."""

    def gradient(state: State) -> Tensor:
        moved = state.moved.data.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(energy(state.fixed.data.detach(), moved).sum(), moved)
        return sampling.scaled_gradient(slope, moved.detach())

    return gradient


def of_regularity(name: str) -> Candidate:
    """The candidate of an energy of the displacement so far: "diffusion" or "bending"."""

    def gradient(state: State) -> Tensor:
        return _pulled_back(state.displacement, _slope(name, state.displacement, state.grid))

    return gradient


def smoothed(candidate: Candidate, sigma: float) -> Candidate:
    """The same gradient after a Gaussian of `sigma` voxels: what a descent in a smoother metric follows."""
    return lambda state: smoothing.gaussian(candidate(state), sigma)


def blurred(similarity: Similarity, sigma: float) -> Candidate:
    """The candidate of a similarity of both images after a Gaussian of `sigma` voxels."""
    return of_moved(lambda f, m: similarity.values(smoothing.gaussian(f, sigma), smoothing.gaussian(m, sigma)))


def gauss_newton(state: State, objective: PairObjective, iterations: int = 30, damping: float = 1e-3) -> Tensor | None:
    """The Gauss-Newton step at a state, (B, D, *grid) in voxels: the minimiser of the objective's quadratic model.

    H v = -g by `iterations` conjugate gradients, with H = c grad(m) grad(m)^T + weight * the energy's own Hessian and
    `damping` times the mean of H's diagonal. c is the curvature of the similarity in the moved image: exact for SSD;
    for NCC and LNCC that of SSD after dividing by the (local) standard deviation. None for other similarities."""
    curvature = _curvature(objective.similarity, state)
    if curvature is None:
        return None
    slopes = sampling.scaled_gradient(torch.ones_like(state.moved.data), state.moved.data)
    axes = (1, *range(2, slopes.ndim))
    damp = damping * (curvature * slopes.square()).mean(axes, keepdim=True) + 1e-20

    def hessian(v: Tensor) -> Tensor:
        result = damp * v + curvature * slopes * (slopes * v).sum(1, keepdim=True)
        if objective.weight:
            bent = _slope(objective.regularity, _pushed_forward(state.displacement, v), state.grid)
            result = result + objective.weight * _pulled_back(state.displacement, bent)
        return result

    return _conjugate_gradients(hessian, -objective.gradient(state), iterations)


def _slope(name: str, displacement: Tensor, grid: Grid) -> Tensor:
    """The derivative of each pair's energy with respect to its displacement; linear in it, both are quadratic."""
    displacement = displacement.detach().requires_grad_()
    with torch.enable_grad():
        total = len(displacement) * REGULARITIES[name](displacement, grid)
        (found,) = torch.autograd.grad(total, displacement)
    return found


def _slopes(displacement: Tensor) -> list[Tensor]:
    """du/dx along each axis, (B, D, *grid) each."""
    return [
        torch.gradient(displacement, dim=axis)[0] if displacement.shape[axis] > 1 else torch.zeros_like(displacement)
        for axis in range(2, displacement.ndim)
    ]


def _pulled_back(displacement: Tensor, gradient: Tensor) -> Tensor:
    """(I + du/dx)^T g: a derivative with respect to u as one with respect to a v within, u o (id + v)."""
    turned = [(slope * gradient).sum(1) for slope in _slopes(displacement)]
    return gradient + torch.stack(turned, 1)


def _pushed_forward(displacement: Tensor, v: Tensor) -> Tensor:
    """(I + du/dx) v: by how much u changes where a small v is composed on the inside."""
    slopes = _slopes(displacement)
    return v + torch.stack([slope * v[:, axis : axis + 1] for axis, slope in enumerate(slopes)]).sum(0)


def _curvature(similarity: Similarity, state: State) -> Tensor | None:
    """(B, 1, *grid) or so that broadcasts to it."""
    moved = state.moved.data
    axes = tuple(range(1, moved.ndim))
    voxels = moved[0].numel()
    if isinstance(similarity, SSD):
        return torch.full_like(moved[:, :1], 2 / voxels)
    if isinstance(similarity, NCC):
        return (1 / voxels) / (moved.var(axes, keepdim=True, correction=0) + 1e-8)
    if isinstance(similarity, LNCC):
        mean = smoothing.gaussian(moved, similarity.radius)
        variance = smoothing.gaussian(moved.square(), similarity.radius) - mean.square()
        return (2 / voxels) / (variance.clamp_min(0) + max(similarity.epsilon, 1e-4))
    return None


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """x of H x = b for each sample of a batch."""
    x = torch.zeros_like(right)
    residual = direction = right
    squared = inner(residual, residual)
    for _ in range(iterations):
        applied = apply(direction)
        along = squared / inner(direction, applied).clamp_min(1e-38)
        x = x + along * direction
        residual = residual - along * applied
        following = inner(residual, residual)
        direction = residual + following / squared.clamp_min(1e-38) * direction
        squared = following
    return x


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each pair's vectors, (B, 1, ..., 1): it broadcasts to them."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))
