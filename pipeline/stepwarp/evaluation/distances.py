"""A summary of distances in millimetres, the same for landmarks and for inverse consistency."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class DistanceSummary:
    """count: distances summarised; the rest in mm."""

    count: int
    mean_mm: float
    median_mm: float
    p95_mm: float
    max_mm: float

    @classmethod
    def of(cls, distances: np.ndarray) -> DistanceSummary:
        """Summarise distances (N,) in mm. Raises ValueError when there is none."""
        if distances.size == 0:
            raise ValueError("there are no distances to summarise")
        median, p95 = np.percentile(distances, [50, 95])
        return cls(distances.size, float(distances.mean()), float(median), float(p95), float(distances.max()))

    def as_dict(self) -> dict[str, float | int]:
        """The fields as JSON-ready numbers."""
        return asdict(self)
