"""Other registration methods behind one signature: two images in, an Outcome out. An absent one says so (`missing`).

None of them knows the registrar it is compared with, and none is imported before it runs."""

from stepwarp.baselines.ants import PRESETS, Ants
from stepwarp.baselines.convexadam import ConvexAdam
from stepwarp.baselines.elastix import Elastix
from stepwarp.baselines.fireants import FireAnts
from stepwarp.baselines.method import Method, Outcome
from stepwarp.baselines.niftyreg import NiftyReg
from stepwarp.baselines.simple import CentreOfMass, Identity
from stepwarp.baselines.simpleitk import SIMPLEITK_AFFINE, SIMPLEITK_BSPLINE, SIMPLEITK_DEMONS

_ALL: tuple[Method, ...] = (
    Identity(),
    CentreOfMass(),
    *(Ants(preset) for preset in PRESETS),
    SIMPLEITK_AFFINE,
    SIMPLEITK_BSPLINE,
    SIMPLEITK_DEMONS,
    FireAnts(),
    ConvexAdam(),
    NiftyReg(),
    Elastix(),
)

#: What the command line calls a method -> the method.
BASELINES: dict[str, Method] = {method.name: method for method in _ALL}

__all__ = ["BASELINES", "Method", "Outcome"]
