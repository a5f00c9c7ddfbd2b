"""Steps: modules that find a map from a fixed to a moving image, and the ways to put them together."""

from stepwarp.registrar.steps.guided import Guided
from stepwarp.registrar.steps.maps import ComposedMap, FieldMap, Images, Map, MatrixMap
from stepwarp.registrar.steps.segmented import Segmented
from stepwarp.registrar.steps.sequences import Downsampled, Repeat, TwoStep
from stepwarp.registrar.steps.step import Step, describe, parameters
from stepwarp.registrar.steps.steps import Matrix, Unit, VectorField, Velocity

__all__ = [
    "ComposedMap",
    "Downsampled",
    "FieldMap",
    "Guided",
    "Images",
    "Map",
    "Matrix",
    "MatrixMap",
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
