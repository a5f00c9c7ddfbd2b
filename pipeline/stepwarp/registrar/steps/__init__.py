"""Steps: modules that find a map from a fixed to a moving image, and the ways to put them together."""

from stepwarp.registrar.steps.guided import Guided
from stepwarp.registrar.steps.images import Images
from stepwarp.registrar.steps.segmented import Segmented
from stepwarp.registrar.steps.sequences import Downsampled, Repeat, TwoStep
from stepwarp.registrar.steps.step import Step, describe, parameters
from stepwarp.registrar.steps.steps import Matrix, Unit, VectorField, Velocity

__all__ = [
    "Downsampled",
    "Guided",
    "Images",
    "Matrix",
    "Repeat",
    "Segmented",
    "Step",
    "TwoStep",
    "Unit",
    "VectorField",
    "Velocity",
    "describe",
    "parameters",
]
