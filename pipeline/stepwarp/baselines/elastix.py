"""elastix, when its programs are on the PATH: an affine, then B-splines, with elastix's own default parameters.

Tested with elastix 5.0.1 (Debian 12)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwarp.baselines._exchange import as_files, run
from stepwarp.baselines._method import Outcome, missing_programs, require
from stepwarp.files import read_transform
from stepwarp.geometry import Image

PROGRAMS = ("elastix", "transformix")

_Parameters = dict[str, str | int]

#: The parameter maps that elastix ships as its defaults, less what only concerns the warped image.
_BOTH: _Parameters = {
    "FixedInternalImagePixelType": "float",
    "MovingInternalImagePixelType": "float",
    "UseDirectionCosines": "true",
    "Registration": "MultiResolutionRegistration",
    "FixedImagePyramid": "FixedSmoothingImagePyramid",
    "MovingImagePyramid": "MovingSmoothingImagePyramid",
    "NumberOfResolutions": 4,
    "Metric": "AdvancedMattesMutualInformation",
    "NumberOfHistogramBins": 32,
    "ImageSampler": "RandomCoordinate",
    "NumberOfSpatialSamples": 2048,
    "NewSamplesEveryIteration": "true",
    "CheckNumberOfSamples": "true",
    "MaximumNumberOfSamplingAttempts": 8,
    "Interpolator": "LinearInterpolator",
    "Optimizer": "AdaptiveStochasticGradientDescent",
    "AutomaticParameterEstimation": "true",
    "HowToCombineTransforms": "Compose",
    "ResampleInterpolator": "FinalBSplineInterpolator",
    "Resampler": "DefaultResampler",
    "ResultImageFormat": "nii",
    "WriteResultImage": "false",
}
AFFINE: _Parameters = _BOTH | {
    "Transform": "AffineTransform",
    "AutomaticTransformInitialization": "true",
    "AutomaticTransformInitializationMethod": "CenterOfGravity",
    "AutomaticScalesEstimation": "true",
    "MaximumNumberOfIterations": 256,
}
BSPLINE: _Parameters = _BOTH | {
    "Transform": "BSplineTransform",
    "FinalGridSpacingInPhysicalUnits": 10,
    "MaximumNumberOfIterations": 500,
}


@dataclass(frozen=True)
class Elastix:
    """elastix, and transformix to turn what it found into a field on the fixed grid. It delivers no inverse."""

    name: str = "elastix"
    title: str = "elastix B-spline"

    def missing(self) -> str | None:
        return missing_programs(PROGRAMS, "apt install elastix, or download it from https://elastix.dev")

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        require(self)
        elastix, transformix = PROGRAMS
        with as_files(fixed, moving) as (folder, *images):
            stages = [folder / "affine.txt", folder / "bspline.txt"]
            for path, parameters in zip(stages, (AFFINE, BSPLINE), strict=True):
                _write_parameters(path, parameters | {"RandomSeed": seed})
            common: list[str | Path] = ["-out", folder, "-threads", str(threads)]
            given: list[str | Path] = [
                "-f",
                images[0],
                "-m",
                images[1],
                *(word for path in stages for word in ("-p", path)),
            ]
            run([elastix, *given, *common], threads)
            # The second stage names the file of the first: this is the whole map, as LPS mm on the fixed grid.
            run([transformix, "-def", "all", "-tp", folder / "TransformParameters.1.txt", *common], threads)
            transform = read_transform(folder / "deformationField.nii")
        record = {
            "command": f"elastix -p affine.txt -p bspline.txt -threads {threads}; transformix -def all",
            "versions": {"elastix": run([elastix, "--version"], threads).strip().removeprefix("elastix version: ")},
            "threads": threads,
            "seed": seed,
            "settings": {"affine": AFFINE, "bspline": BSPLINE},
        }
        return Outcome(transform, None, record)


def _write_parameters(path: Path, parameters: _Parameters) -> None:
    quoted = {key: f'"{value}"' if isinstance(value, str) else value for key, value in parameters.items()}
    path.write_text("".join(f"({key} {value})\n" for key, value in quoted.items()))


METHODS = (Elastix(),)
