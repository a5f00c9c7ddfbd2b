"""Probe c: of which objective the steps are a descent, by regression, judged on pairs that it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.losses.similarities.ncc import NCC
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes.objective import Candidate, blurred, of_moved, of_regularity
from stepwarp.probes.trajectory import Taken, others


def candidates(blur: Sequence[float] = (1.0, 2.0)) -> dict[str, Candidate]:
    """The gradients of SSD, SSD of blurred images, NCC, LNCC, diffusion and bending. More can be added, such as
    `of_moved(lambda fixed, moved: -classifier(moved)[:, 5])`, and any can be `smoothed`."""
    return {
        "SSD": of_moved(SSD().values),
        **{f"SSD blurred {sigma:g}": blurred(SSD(), sigma) for sigma in blur},
        "NCC": of_moved(NCC().values),
        "LNCC": of_moved(LNCC(epsilon=1e-4).values),
        "diffusion": of_regularity("diffusion"),
        "bending": of_regularity("bending"),
    }


def inner_objective(
    steps: Iterable[Taken], gradients: Mapping[str, Candidate], train: Sequence[int], test: Sequence[int]
) -> dict[str, Any]:
    """psi_k = -sum_c w_c g_c(state k) with w_c >= 0: the weights by non-negative least squares over all voxels of the
    pairs `train` (numbers within the batch), judged on the pairs `test`.

    steps: of `trajectory.walk`, on a batch of all these pairs. Returns, of C candidates, K steps and T test pairs:

    names: the candidates. weights: {"pooled": (C,), "by_step": (K, C)}, times the root mean square of their gradients
    over that of the steps, so that they compare. r2: {"pooled": (K, T), "by_step": (K, T), "all": (T,)}, which is
    1 - |psi - fit|^2 / |psi|^2 on held-out pairs: 1 explains every vector, 0 is no better than a step that stands
    still. "pooled" has one set of weights for all steps, as the descent of one objective with one step size has, and
    "all" is that over all steps at once; the other keys are of this kind too. r2_train: to see overfitting.
    alone: candidate -> (T,), with it alone. without: candidate -> (T,), with all others; what is missing then is what
    nothing else can stand for.
    Control: a step that is a descent by construction (tests). Null: "null", (T,), where every pair is given the
    gradients of the next one, with weights of their own. NaN for a pair that is not moved."""
    names = list(gradients)
    sums = _Sums.of(steps, list(gradients.values()))
    every = range(len(names))
    pooled = sums.fit(train, every)
    each = [step.fit(train, every) for step in sums.single_steps()]
    swapped = sums.of_others()
    units = sums.units(train)
    return {
        "names": names,
        "weights": {"pooled": pooled * units, "by_step": np.stack(each) * units},
        "r2": {
            "pooled": sums.r2(pooled)[:, test],
            "by_step": np.concatenate([s.r2(w)[:, test] for s, w in zip(sums.single_steps(), each, strict=True)]),
            "all": sums.r2_of_all(pooled)[test],
        },
        "r2_train": sums.r2_of_all(pooled)[train],
        "alone": {name: sums.r2_of_all(sums.fit(train, [c]))[test] for c, name in enumerate(names)},
        "without": {
            name: sums.r2_of_all(sums.fit(train, [c for c in every if c != left]))[test]
            for left, name in enumerate(names)
        },
        "null": swapped.r2_of_all(swapped.fit(train, every))[test],
    }


@dataclass(frozen=True, eq=False)
class _Sums:
    """The sums over voxels that a least-squares fit needs, of each step and pair.

    gram: (K, P, C, C) of the negative gradients. cross, cross_of_others: (K, P, C) of them, and of the next pair's,
    with psi. squares: (K, P) of psi."""

    gram: np.ndarray
    cross: np.ndarray
    cross_of_others: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, steps: Iterable[Taken], gradients: Sequence[Candidate]) -> _Sums:
        rows = []
        for taken in steps:
            psi = taken.psi.flatten(1).double()
            downhill = torch.stack([-gradient(taken.state).flatten(1).double() for gradient in gradients], 1)
            elsewhere = others(downhill) if len(psi) > 1 else torch.full_like(downhill, torch.nan)
            sums = (
                torch.einsum("pcn,pdn->pcd", downhill, downhill),
                torch.einsum("pcn,pn->pc", downhill, psi),
                torch.einsum("pcn,pn->pc", elsewhere, psi),
                psi.square().sum(1),
            )
            rows.append([each.cpu().numpy() for each in sums])
        gram, cross, cross_of_others, squares = (np.stack(column) for column in zip(*rows, strict=True))
        return cls(gram, cross, cross_of_others, squares)

    def single_steps(self) -> list[_Sums]:
        parts = (self.gram, self.cross, self.cross_of_others, self.squares)
        return [_Sums(*(part[k : k + 1] for part in parts)) for k in range(len(self.squares))]

    def of_others(self) -> _Sums:
        """With every pair's gradients replaced by the next one's."""
        return _Sums(np.roll(self.gram, 1, 1), self.cross_of_others, self.cross_of_others, self.squares)

    def units(self, pairs: Sequence[int]) -> np.ndarray:
        """Root mean squares of the gradients over that of psi, (C,)."""
        squares = np.einsum("kpcc->c", self.gram[:, pairs])
        return np.sqrt(squares / max(self.squares[:, pairs].sum(), 1e-300))

    def fit(self, pairs: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
        """The weights (C,), 0 for those not chosen. The problem is solved through a square root of the normal matrix,
        after its columns were brought to one length: gradients differ by orders of magnitude."""
        weights = np.zeros(self.cross.shape[-1])
        index = np.array(chosen, int)
        if not len(index) or not np.isfinite(self.cross[:, pairs]).all():
            return weights
        gram = self.gram[:, pairs].sum((0, 1))[np.ix_(index, index)]
        lengths = np.sqrt(np.maximum(np.diag(gram), 1e-300))
        values, vectors = np.linalg.eigh(gram / np.outer(lengths, lengths))
        kept = values > 1e-10 * values.max()
        root = np.sqrt(values[kept])
        right = vectors[:, kept].T @ (self.cross[:, pairs].sum((0, 1))[index] / lengths) / root
        weights[index] = nnls(root[:, None] * vectors[:, kept].T, right)[0] / lengths
        return weights

    def r2(self, weights: np.ndarray) -> np.ndarray:
        """Of each step and pair, (K, P)."""
        left, whole = self._left(weights)
        return 1 - left / np.where(whole > 0, whole, np.nan)

    def r2_of_all(self, weights: np.ndarray) -> np.ndarray:
        """Of each pair over all its steps, (P,)."""
        left, whole = (part.sum(0) for part in self._left(weights))
        return 1 - left / np.where(whole > 0, whole, np.nan)

    def _left(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fitted = np.einsum("c,kpcd,d->kp", weights, self.gram, weights)
        return self.squares - 2 * self.cross @ weights + fitted, self.squares
