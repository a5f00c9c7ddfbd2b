"""What pairs and seeds say about a probe's number, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from stepwarp.evaluation.bootstrap import interval

_RESAMPLES, _SEED = 4000, 0


def described(values: Any) -> dict[str, Any]:
    """{n, seeds, mean, sd, median, ci95} of one number per pair, (pairs,) or (seeds, pairs); not finite ones are left
    out and counted in `missing`. None in place of what cannot be said.

    ci95: of the mean. Of pairs alone by `evaluation.bootstrap.interval`; with seeds both the seeds and the pairs are
    drawn anew, independently, since all seeds are tested on the same pairs (the percentile interval)."""
    table = np.atleast_2d(np.asarray(values, float))
    finite = np.isfinite(table)
    known = table[finite]
    if not known.size:
        return {
            "n": 0,
            "seeds": len(table),
            "missing": table.size,
            "mean": None,
            "sd": None,
            "median": None,
            "ci95": None,
        }
    return {
        "n": int(finite.any(0).sum()),
        "seeds": len(table),
        "missing": int((~finite).sum()),
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if known.size > 1 else None,
        "median": float(np.median(known)),
        "ci95": _interval(table, known),
    }


def described_rows(values: Any) -> list[dict[str, Any]]:
    """`described` of each row of (steps, pairs), or of each step of (seeds, steps, pairs)."""
    values = np.asarray(values, float)
    return [described(values[..., row, :]) for row in range(values.shape[-2])]


def differs(values: Any, other: Any) -> dict[str, Any]:
    """`described` of the difference on the same pairs (and seeds), with `apart`: True where its ci95 excludes 0, None
    where there is no interval."""
    found = described(np.asarray(values, float) - np.asarray(other, float))
    ends = found["ci95"]
    return found | {"apart": None if ends is None else bool(ends[0] > 0 or ends[1] < 0)}


def jsonable(value: Any) -> Any:
    """Arrays, tensors, dataclasses and numbers of numpy as JSON has them; what is not finite becomes None."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, 7) if np.isfinite(value) else None
    return value


def _interval(table: np.ndarray, known: np.ndarray) -> list[float] | None:
    if known.size < 2:
        return None
    seeds, pairs = table.shape
    if min(seeds, pairs) == 1:
        return list(interval(known))
    of_seeds, of_pairs = _draws(seeds, pairs)
    finite = np.isfinite(table)
    totals = ((of_pairs @ np.where(finite, table, 0).T) * of_seeds).sum(1)
    counts = ((of_pairs @ finite.T) * of_seeds).sum(1)
    low, high = np.quantile(totals[counts > 0] / counts[counts > 0], [0.025, 0.975])
    return [float(low), float(high)]


@lru_cache(maxsize=4)
def _draws(seeds: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each pair was drawn, (resamples, seeds) and (resamples, pairs).

    With these, all means of all resamples are two matrix products."""
    draw = np.random.default_rng(_SEED)
    of_seeds, of_pairs = (draw.multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float) for n in (seeds, pairs))
    return of_seeds, of_pairs
