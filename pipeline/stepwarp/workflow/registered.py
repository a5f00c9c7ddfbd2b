"""What a registration found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stepwarp.geometry import Affine, Composition, DisplacementField, Image, LabelMap, Transform
from stepwarp.workflow.reading import read_by
from stepwarp.workflow.subjects import interpolation_of
from stepwarp.workflow.trace import TraceStep


@dataclass(frozen=True, eq=False)
class RegisteredPair:
    """Two images, and the way between them. Worlds are RAS+ mm.

    Parameters
    ----------
    fixed, moving : Image
        The images as read.
    affine : Affine
        Fixed world -> moving world.
    warp, inverse_warp : DisplacementField or None
        warp: fixed world -> fixed world on the fixed grid, before the affine; inverse_warp undoes it. Both None for a
        linear registration.
    record : dict
        What registration.json holds.
    trace : tuple of TraceStep
        The steps of the way there, the affine first, if they were asked for.
    found_masks : dict
        Name of a file -> the mask that was found in one of the images, 0 and 1 on its grid, where that was asked for.
    further : tuple of Image
        The moving images of further pairs, as read.
    """

    fixed: Image
    moving: Image
    affine: Affine
    warp: DisplacementField | None
    inverse_warp: DisplacementField | None
    record: dict[str, Any]
    trace: tuple[TraceStep, ...] = ()
    found_masks: Mapping[str, LabelMap] = field(default_factory=dict)
    further: tuple[Image, ...] = ()

    @property
    def transform(self) -> Transform:
        """Points of the fixed world (RAS+ mm) -> points of the moving world."""
        return self.affine if self.warp is None else Composition.of(self.affine, self.warp)

    @property
    def inverse(self) -> Transform:
        """Points of the moving world (RAS+ mm) -> points of the fixed world."""
        back = self.affine.inverse()
        return back if self.inverse_warp is None else Composition.of(self.inverse_warp, back)

    @cached_property
    def moved(self) -> Image:
        """The moving image on the fixed grid, its intensities as read, interpolated once, as the settings say."""
        return self.as_interpolated(self.moving).warp(self.transform, self.fixed.grid)

    @cached_property
    def further_moved(self) -> tuple[Image, ...]:
        """The moving images of further pairs, on the grid of the first fixed image as well."""
        return tuple(self.as_interpolated(image).warp(self.transform, self.fixed.grid) for image in self.further)

    def as_interpolated(self, moving: Image) -> Image:
        """A moving image as the type that is read between its voxels as the settings say.

        Parameters
        ----------
        moving : Image
            One without gaps, unless it is to be read linearly.

        Returns
        -------
        Image
            The same values on the same grid.

        Raises
        ------
        InputError
            For an image with gaps that would be read across them.
        """
        return read_by(moving, interpolation_of(self.record))
