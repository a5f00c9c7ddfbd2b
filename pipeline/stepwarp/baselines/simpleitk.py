"""SimpleITK's own registration, set up as its notebooks do it: the peer that is always installed.

Tested with SimpleITK 2.5.7. Its images and transforms come and go through files, as those of the other programs do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stepwarp.baselines._exchange import as_files
from stepwarp.baselines._method import Outcome
from stepwarp.errors import RegistrationError
from stepwarp.files import read_transform
from stepwarp.geometry import Composition, Image, Transform

if TYPE_CHECKING:
    import SimpleITK

#: The settings of the stages, as their records state them. The levels go from coarse to fine.
LEVELS: dict[str, Any] = {"shrink_factors": [4, 2, 1], "smoothing_mm": [4.0, 2.0, 0.0]}
MUTUAL_INFORMATION: dict[str, Any] = {"metric": "Mattes mutual information", "bins": 32, "sampled_share": 0.2}
AFFINE = (
    MUTUAL_INFORMATION
    | LEVELS
    | {"start": "centres of mass", "optimiser": "regular step gradient descent", "iterations": 200}
)
BSPLINE = MUTUAL_INFORMATION | LEVELS | {"optimiser": "LBFGS2", "iterations": 100, "knots_mm": [60, 30, 15]}
DEMONS = LEVELS | {
    "forces": "symmetric, diffeomorphic",
    "histogram_matching": {"bins": 1024, "points": 7},
    "iterations": [100, 60, 30],
    "field_sigma_voxels": 1.5,
}


@dataclass(frozen=True)
class SimpleItk:
    """An affine and, if `deform` is given, a deformation after it.

    deform: (fixed, moving, affine, seed) -> the deformation as a field of vectors (LPS mm) on the fixed grid, applied
    to a point before the affine."""

    name: str
    title: str
    settings: dict[str, Any]
    deform: Callable[[SimpleITK.Image, SimpleITK.Image, SimpleITK.Transform, int], SimpleITK.Image] | None = None
    imports: ClassVar[tuple[str, ...]] = ("SimpleITK",)

    def missing(self) -> None:
        return None

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        import SimpleITK

        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        with as_files(fixed, moving) as (folder, *paths):
            images = [SimpleITK.ReadImage(path, SimpleITK.sitkFloat32) for path in paths]
            try:
                transform, inverse = self._register(images[0], images[1], folder, seed)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise RegistrationError(
                    f"{self.title}: failed on {fixed.name} and {moving.name} ({reason})."
                ) from error
        record = {
            "command": f"stepwarp.baselines.BASELINES[{self.name!r}](fixed, moving, threads={threads}, seed={seed})",
            "versions": {"SimpleITK": SimpleITK.Version.VersionString()},
            "threads": SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads(),
            "seed": seed,
            "settings": self.settings,
        }
        return Outcome(transform, inverse, record)

    def _register(
        self, fixed: SimpleITK.Image, moving: SimpleITK.Image, folder: Path, seed: int
    ) -> tuple[Transform, Transform | None]:
        import SimpleITK

        found = fit_affine(fixed, moving, seed)
        SimpleITK.WriteTransform(found, folder / "affine.tfm")
        affine = read_transform(folder / "affine.tfm")
        if self.deform is None:
            return affine, affine.inverse()
        SimpleITK.WriteImage(self.deform(fixed, moving, found, seed), folder / "field.nii")
        return Composition.of(affine, read_transform(folder / "field.nii")), None


def fit_affine(fixed: SimpleITK.Image, moving: SimpleITK.Image, seed: int) -> SimpleITK.Transform:
    """ITK's affine, fixed points to moving points, that AFFINE's settings find from the centres of mass."""
    import SimpleITK

    start = SimpleITK.CenteredTransformInitializer(
        fixed, moving, SimpleITK.AffineTransform(3), SimpleITK.CenteredTransformInitializerFilter.MOMENTS
    )
    registration = _by_mutual_information(seed)
    registration.SetInitialTransform(start, inPlace=False)
    # The plain gradient descent of the notebooks stops on its way where the centres of mass are far from the answer.
    registration.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=AFFINE["iterations"], relaxationFactor=0.6
    )
    registration.SetOptimizerScalesFromPhysicalShift()
    # A composite of one: the start, optimised.
    return SimpleITK.CompositeTransform(registration.Execute(fixed, moving)).GetNthTransform(0)


def bspline(fixed: SimpleITK.Image, moving: SimpleITK.Image, affine: SimpleITK.Transform, seed: int) -> SimpleITK.Image:
    """Free-form deformation by cubic B-splines whose knots get closer from level to level."""
    import SimpleITK

    coarsest, *_ = knots = BSPLINE["knots_mm"]
    extents = [n * spacing for n, spacing in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
    mesh = [max(1, round(extent / coarsest)) for extent in extents]
    registration = _by_mutual_information(seed)
    registration.SetMovingInitialTransform(affine)
    registration.SetInitialTransformAsBSpline(
        SimpleITK.BSplineTransformInitializer(fixed, mesh), inPlace=True, scaleFactors=[coarsest // k for k in knots]
    )
    registration.SetOptimizerAsLBFGS2(numberOfIterations=BSPLINE["iterations"])
    found = registration.Execute(fixed, moving)
    grid = fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    return SimpleITK.TransformToDisplacementField(found, SimpleITK.sitkVectorFloat32, *grid)


def demons(fixed: SimpleITK.Image, moving: SimpleITK.Image, affine: SimpleITK.Transform, seed: int) -> SimpleITK.Image:
    """Diffeomorphic demons with symmetric forces, coarse to fine, after matching the histograms; nothing is random."""
    import SimpleITK

    moved = SimpleITK.Resample(moving, fixed, affine, SimpleITK.sitkLinear, _lowest(moving))
    matching = DEMONS["histogram_matching"]
    moved = SimpleITK.HistogramMatching(moved, fixed, matching["bins"], matching["points"], True)
    filter_ = SimpleITK.DiffeomorphicDemonsRegistrationFilter()
    filter_.SetUseGradientType(filter_.Symmetric)
    filter_.SetStandardDeviations(DEMONS["field_sigma_voxels"])
    field = SimpleITK.Image(fixed.GetSize(), SimpleITK.sitkVectorFloat64)
    field.CopyInformation(fixed)
    levels = zip(DEMONS["shrink_factors"], DEMONS["smoothing_mm"], DEMONS["iterations"], strict=True)
    for factor, sigma, iterations in levels:
        fixed_level, moved_level = (_coarser(image, factor, sigma) for image in (fixed, moved))
        filter_.SetNumberOfIterations(iterations)
        field = filter_.Execute(fixed_level, moved_level, SimpleITK.Resample(field, fixed_level))
    return field


def _by_mutual_information(seed: int) -> SimpleITK.ImageRegistrationMethod:
    import SimpleITK

    registration = SimpleITK.ImageRegistrationMethod()
    registration.SetMetricAsMattesMutualInformation(MUTUAL_INFORMATION["bins"])
    registration.SetMetricSamplingStrategy(registration.RANDOM)
    registration.SetMetricSamplingPercentage(MUTUAL_INFORMATION["sampled_share"], seed)
    registration.SetInterpolator(SimpleITK.sitkLinear)
    registration.SetShrinkFactorsPerLevel(LEVELS["shrink_factors"])
    registration.SetSmoothingSigmasPerLevel(LEVELS["smoothing_mm"])
    registration.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return registration


def _coarser(image: SimpleITK.Image, factor: int, sigma: float) -> SimpleITK.Image:
    import SimpleITK

    smooth = SimpleITK.SmoothingRecursiveGaussian(image, sigma) if sigma > 0 else image
    return SimpleITK.Shrink(smooth, [factor] * 3)


def _lowest(image: SimpleITK.Image) -> float:
    import SimpleITK

    statistics = SimpleITK.MinimumMaximumImageFilter()
    statistics.Execute(image)
    return statistics.GetMinimum()


SIMPLEITK_AFFINE = SimpleItk("simpleitk-affine", "SimpleITK affine", {"affine": AFFINE})
SIMPLEITK_BSPLINE = SimpleItk(
    "simpleitk-bspline", "SimpleITK B-spline", {"affine": AFFINE, "bspline": BSPLINE}, bspline
)
SIMPLEITK_DEMONS = SimpleItk("simpleitk-demons", "SimpleITK demons", {"affine": AFFINE, "demons": DEMONS}, demons)
METHODS = (SIMPLEITK_AFFINE, SIMPLEITK_BSPLINE, SIMPLEITK_DEMONS)
