"""What `register` gives back: a registered pair that carries other files along, shows itself and is saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwarp.errors import InputError
from stepwarp.progress import Progress, silent
from stepwarp.workflow import in_hand, outputs
from stepwarp.workflow.apply import Space
from stepwarp.workflow.journey import Side
from stepwarp.workflow.reading import Interpolation
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

        Parameters
        ----------
        what : image, label map, points or path
            Whatever `register` takes, on any grid. Points: an array or tensor (N, 3) in RAS+ mm, or a file of
            landmarks.
        source, target : {"fixed", "moving"}, optional
            The image that it belongs to and the one it is brought to; by default from moving to fixed, points as well.
        reference : image or path, optional
            An image on whose grid volumes land; by default that of the image `target`.
        interpolation : {"auto", "linear", "nearest", "cubic", "sinc"}
            As in `workflow.apply.apply`: "auto" reads label maps, known by their type or their values, from the nearest
            voxel, and images linearly.
        labels : bool
            As there: it is a label map.
        outside : float, optional
            As there: what an image becomes where its own grid ends.
        space : {"ras", "lps", "voxel"}, optional
            The world of points: "lps" for those of ITK.
        trust : str or sequence of str, optional
            Which statement of a header to believe, see `files.TrustRules`.

        Returns
        -------
        image, label map or points
            Of the kind that was given; what was a path comes back as an Image, LabelMap or Landmarks.

        Raises
        ------
        InputError
            As `register`, and for a volume of which nothing falls on the new grid.
        """
        return in_hand.carry(self, what, source, target, reference, interpolation, labels, outside, space, trust)

    def to_nibabel(self) -> Nifti1Image:
        """The moved image as an image of nibabel.

        Returns
        -------
        Nifti1Image
            On the fixed grid, RAS+ mm.
        """
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
        """Write everything into a folder, read it back with SimpleITK, and compare: see `workflow.outputs`.

        Parameters
        ----------
        out : str or Path
            The folder, which may be new.
        overwrite : bool
            Replace the results of an earlier registration there.
        progress : callable
            Is told the stages, as `ProgressReport`.
        truth : dict, optional
            Rows for the report of a pair whose answer is known: label -> (before, after).
        place : Path, optional
            The folder to work in, where the caller has claimed `out` already by `outputs.claimed`.

        Returns
        -------
        Path
            `out`.

        Raises
        ------
        OutputError
            If it cannot be written, or holds results that may not be replaced, or files that stepwarp did not write.
        VerificationError
            If SimpleITK reads something else than was computed; then nothing is left under the final names.
        """
        return outputs.save(self, Path(out), overwrite=overwrite, progress=progress, truth=truth, place=place)

    def save_trace(self, folder: str | Path, *, overwrite: bool = False, place: Path | None = None) -> None:
        """Write the field after each step and trace.json: see `workflow.trace`.

        Parameters
        ----------
        folder : str or Path
            Where to, which may be new.
        overwrite : bool
            Replace an earlier trace there.
        place : Path, optional
            The folder to work in, where the caller has claimed `folder` already.

        Raises
        ------
        InputError
            For a registration that was made without a trace.
        OutputError
            If it cannot be written.
        """
        if not self.trace:
            raise InputError(f"{folder}: there is no trace to write; register with trace=True")
        save_trace(list(self.trace), Path(folder), overwrite, place)
