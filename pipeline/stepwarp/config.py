"""Settings: frozen pydantic models, read from the YAML recipes in `configs/`. An unknown key is an error that names
the nearest known one."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from stepwarp import catalogue
from stepwarp.errors import InputError

#: The package whose files are the similarities.
SIMILARITIES = "losses.similarities"
if TYPE_CHECKING:
    SimilarityName = str
else:
    SimilarityName = Literal[catalogue.names(SIMILARITIES)]
LinearKind = Literal["rigid", "similarity", "affine"]


class Strict(BaseModel):
    """A frozen model that names the nearest key to one it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, cls.model_fields, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(cls.model_fields)}"
                raise ValueError(f"unknown key '{key}'; {hint}")
        return values


class AffineSettings(Strict):
    """The linear stage.

    coarse_mm: grid spacing of the search among the starts. refine_mm: of the fits that follow, one after the other.
    candidates: how many of the scored starts are optimised. multimodal: compare by mutual information, whatever the
    deformable stage compares by."""

    coarse_mm: float = Field(8, gt=0)
    refine_mm: tuple[PositiveFloat, ...] = (4, 2)
    candidates: int = Field(4, ge=1)
    multimodal: bool = False


class Level(Strict):
    """One level of the deformable pyramid: voxels of about `mm`, at most `iterations` steps.

    step: length in voxels of the 98th percentile step; smooth_update, smooth_field: Gaussian sigmas in voxels."""

    mm: float = Field(gt=0)
    iterations: int = Field(ge=1)
    step: float = Field(0.25, gt=0, le=1)
    smooth_update: float = Field(1.2, ge=0)
    smooth_field: float = Field(0.35, ge=0)


class DeformableSettings(Strict):
    """The deformable stage.

    patience: a level ends when its last `patience` iterations improved the loss by less than `tolerance`, relatively.
    smallest_jacobian: where a one-sided Jacobian determinant falls below it, the field is smoothed there.
    regularity, regularity_weight: an energy added to the dissimilarity, none by default: smoothing regularises."""

    similarity: SimilarityName = "lncc"
    radius: int = Field(2, ge=1, le=8)
    epsilon: float = Field(1e-6, gt=0)
    levels: tuple[Level, ...] = Field(min_length=1)
    patience: int = Field(8, ge=2)
    tolerance: float = Field(2e-3, ge=0)
    smallest_jacobian: float = Field(0.2, gt=0, lt=1)
    regularity: Literal["none", "diffusion", "bending"] = "none"
    regularity_weight: float = Field(0, ge=0)


class Preset(Strict):
    """A whole recipe of `stepwarp register`."""

    affine: AffineSettings = AffineSettings()
    deformable: DeformableSettings


PRESETS = ("fast", "default", "best")


@cache
def preset(name: str) -> Preset:
    """The named recipe. Raises InputError for a name that there is not, or a recipe that does not make sense."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(PRESETS)}"
        raise InputError(f"preset '{name}' does not exist; {hint}")
    path = configs_folder() / f"{name}.yaml"
    try:
        return Preset.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        raise InputError(f"{path.name}: {error}") from error


def configs_folder() -> Path:
    """Where the recipes are: beside the code in an installed wheel, at the top of the checkout otherwise."""
    packaged = Path(str(resources.files("stepwarp"))) / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"
