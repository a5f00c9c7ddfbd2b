"""Every registration there is to compare, stepwarp's own among them, behind the one signature of the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stepwarp.baselines import BASELINES, Method, Outcome
from stepwarp.config import PRESETS
from stepwarp.config import preset as load_preset
from stepwarp.errors import InputError
from stepwarp.geometry import Image
from stepwarp.recipes import nearest
from stepwarp.registrar.weights.shipped import SHIPPED
from stepwarp.version import __version__

#: Of a registration's record, what a comparison needs: how it was made, not how it went.
_KEPT = ("version", "network", "settings", "device", "versions", "stages", "stopped", "verdict")
#: The weights that the methods with a network run: trained by images alone, and by label maps too.
_NETWORK, _LABELS = "brain-t1", "brain-t1-labels"


def _work(preset: str) -> float:
    """Of a preset, about, in steps of voxels of 1 mm."""
    return sum(level.iterations * level.across**3 for level in load_preset(preset).deformable.levels)


#: From the quickest on, as tables list them.
_PRESETS = sorted(PRESETS, key=_work)
#: Those that a network for brains may be followed by.
_FOR_BRAINS = [name for name in _PRESETS if name != "ct"]


@dataclass(frozen=True, eq=False)
class StepwarpMethod:
    """stepwarp with one of its presets, or its affine alone, on images in memory; on a GPU if one is to be seen.

    weights: shipped ones that run before the preset, or, with refine=False, in its place."""

    name: str
    title: str
    preset: str
    affine_only: bool = False
    weights: str | None = None
    refine: bool = True
    imports: ClassVar[tuple[str, ...]] = ("stepwarp.workflow.register",)

    @property
    def settings(self) -> dict[str, Any]:
        """What it would be run with, known before it runs; `record["settings"]` of its outcomes."""
        recipe = load_preset(self.preset)
        stages = recipe.model_dump(mode="json", include={"affine"} if self.affine_only else None)
        own = {"stepwarp": __version__, "affine_only": self.affine_only, **stages}
        if self.weights is not None:
            own |= {"network": self.weights, "weights_sha256": SHIPPED[self.weights], "refine": self.refine}
        return own

    def missing(self) -> str | None:
        """Never: it is what is installed."""
        return None

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        """Map points of the fixed world to points of the moving world; errors as `stepwarp.register`. seed: of the
        methods that draw something, which this one does not."""
        from stepwarp.workflow.register import register

        found = register(
            fixed,
            moving,
            preset=self.preset,
            affine_only=self.affine_only,
            weights=self.weights,
            refine=self.refine,
            threads=threads,
            device="auto",
        )
        kept = {key: found.record[key] for key in _KEPT}
        return Outcome(found.transform, found.inverse, kept | {"settings": self.settings})


def _with_network(name: str, weights: str) -> tuple[StepwarpMethod, ...]:
    """The network alone, and followed by each preset."""
    alone = StepwarpMethod(name, f"stepwarp {weights} alone", "fast", weights=weights, refine=False)
    return alone, *(
        StepwarpMethod(f"{name}-{preset}", f"stepwarp {weights}, then {preset}", preset, weights=weights)
        for preset in _FOR_BRAINS
    )


OWN: Mapping[str, Method] = {
    method.name: method
    for method in (
        StepwarpMethod("stepwarp-affine", "stepwarp affine", "default", affine_only=True),
        *(StepwarpMethod(f"stepwarp-{preset}", f"stepwarp {preset}", preset) for preset in _PRESETS),
        *_with_network("stepwarp-network", _NETWORK),
        *_with_network("stepwarp-labels", _LABELS),
    )
}
METHODS: Mapping[str, Method] = {**BASELINES, **OWN}


def find_method(name: str) -> Method:
    """The method of that name; InputError with the nearest one otherwise."""
    if name not in METHODS:
        raise InputError(f"method '{name}' does not exist; {nearest(name, METHODS)}")
    return METHODS[name]
