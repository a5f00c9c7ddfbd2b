"""What `register` gives back: a registered pair that carries other files along, shows itself and is saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwarp.errors import InputError
from stepwarp.progress import Progress, silent
from stepwarp.workflow import in_hand, outputs
from stepwarp.workflow.apply import Interpolation, Space
from stepwarp.workflow.journey import Side
from stepwarp.workflow.registered import RegisteredPair
from stepwarp.workflow.trace import save_trace

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image


class Registration(RegisteredPair):
    """A registered pair: see `RegisteredPair` for what it holds."""

    def apply(
        self,
        what: Any,
        *,
        source: Side | None = None,
        target: Side | None = None,
        reference: Any = None,
        interpolation: Interpolation = "auto",
        labels: bool = False,
        outside: float | None = None,
        space: Space | None = None,
        trust: str | Sequence[str] | None = None,
    ) -> Any:
        """Carry an image, a label map or points from one image's space to the other's; it comes back as its own kind.

        what: whatever `register` takes, on any grid: what was a path comes back as an Image or LabelMap. Points: an
        array or tensor (N, 3) in RAS+ mm, or a file of landmarks, which comes back as Landmarks. source, target: the
        image that it belongs to ("fixed" or "moving") and the one it is brought to; by default from moving to fixed,
        points as well. reference: an image on whose grid volumes land; by default that of the image `target`.

        interpolation, labels, outside: as in `workflow.apply.apply`; "auto" reads label maps, known by their type or
        their values, from the nearest voxel, and images linearly. space: "lps" for points of ITK. Raises InputError
        as `register`, and for a volume of which nothing falls on the new grid."""
        return in_hand.carry(self, what, source, target, reference, interpolation, labels, outside, space, trust)

    def to_nibabel(self) -> Nifti1Image:
        """The moved image, on the fixed grid, as an image of nibabel."""
        return self.moved.to_nibabel()

    def __repr__(self) -> str:
        measures = self.record["measures"]
        alike = measures.get("similarity", measures["similarity_affine"])["lncc"]
        folds = "" if self.warp is None else f", {measures['regularity']['corner_folds']['count']} corner folds"
        found = f"{self.record['verdict']['status']}, local correlation {alike:.2f}{folds}"
        return f"Registration({self.moving.name} -> {self.fixed.name}: {found}; onto {self.fixed.grid.described})"

    def _repr_html_(self) -> str:
        from stepwarp.report.notebook import shown

        return shown(self.fixed, self.moved, repr(self))

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        progress: Progress = silent,
        truth: dict[str, tuple[Any, Any]] | None = None,
        place: Path | None = None,
    ) -> Path:
        """Write everything into the folder `out`, read it back with SimpleITK, and compare: see `workflow.outputs`."""
        return outputs.save(self, Path(out), overwrite=overwrite, progress=progress, truth=truth, place=place)

    def save_trace(self, folder: str | Path, *, overwrite: bool = False, place: Path | None = None) -> None:
        """Write the field after each step and trace.json into `folder`: see `workflow.trace`.

        Raises InputError for a registration that was made without a trace."""
        if not self.trace:
            raise InputError(f"{folder}: there is no trace to write; register with trace=True")
        save_trace(list(self.trace), Path(folder), overwrite, place)
