"""The recipe of a registration, and the presets: the recipes that are files of `configs/presets/`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from stepwarp import catalogue, recipes
from stepwarp.errors import InputError
from stepwarp.presence import check_present
from stepwarp.recipes import Strict

#: The package whose files are the similarities.
SIMILARITIES = "losses.similarities"
if TYPE_CHECKING:
    SimilarityName = str
    SimilarityChoice = str
else:
    SimilarityName = Literal[catalogue.names(SIMILARITIES)]
    SimilarityChoice = Literal["auto", SimilarityName]
LinearKind = Literal["rigid", "similarity", "affine"]
#: Blocks of which a subject has fewer tell nothing, and with their margin fill the memory.
_LinearAcross = Annotated[float, Field(ge=4)]


class AffineSettings(Strict):
    """The linear stage.

    across: how many voxels the subject is across on the grid where starts are optimised; see `Level`. refine_across: on
    those of the fits that follow, one after the other. candidates: how many of the scored starts are optimised.
    multimodal: compare by mutual information, whatever the deformable stage compares by."""

    across: _LinearAcross = 22
    refine_across: tuple[_LinearAcross, ...] = (44, 88)
    candidates: int = Field(4, ge=1)
    multimodal: bool = False


class Level(Strict):
    """One level of the deformable pyramid: at most `iterations` steps.

    across: how many of the level's voxels the subject is across, about, so that a preset says the same of a mouse and
    of a man. They are the image's own voxels or 2, 4, 8, ... of them along each axis; a level that would be no finer
    than the one before is left out. step: the length in voxels of a step's long vectors. smooth_update,
    smooth_field: Gaussian sigmas in voxels. keep_volume: how far, after each step, the field goes down the gradient of
    (J - 1)^2 / 2J, J its Jacobian determinant; 0 where volume may change freely."""

    across: float = Field(gt=0)
    iterations: int = Field(ge=1)
    step: float = Field(0.25, gt=0, le=1)
    smooth_update: float = Field(1.2, ge=0, le=20)
    smooth_field: float = Field(0.35, ge=0, le=20)
    keep_volume: float = Field(0.05, ge=0, le=0.25)


class DeformableSettings(Strict):
    """The deformable stage.

    patience: a level ends when its last `patience` iterations improved the loss by less than `tolerance`, relatively.
    smallest_jacobian: where a one-sided Jacobian determinant falls below it, the field is smoothed there."""

    similarity: SimilarityName = "lncc"
    radius: int = Field(2, ge=1, le=8)
    epsilon: float = Field(1e-6, gt=0)
    levels: tuple[Level, ...] = Field(min_length=1)
    patience: int = Field(8, ge=2)
    tolerance: float = Field(2e-3, ge=0)
    smallest_jacobian: float = Field(0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _from_coarse_to_fine(self) -> DeformableSettings:
        for n, (level, finer) in enumerate(pairwise(self.levels)):
            if finer.across < level.across:
                raise ValueError(
                    f"levels go from coarse to fine, and level {n + 1} is coarser (across {finer.across:g}) than level "
                    f"{n} ({level.across:g}); put them in order"
                )
        return self


class Preset(Strict):
    """A whole recipe of `stepwarp register`."""

    affine: AffineSettings = AffineSettings()
    deformable: DeformableSettings


def preset(source: str | Path | Preset, changes: Iterable[str] = ()) -> Preset:
    """The recipe of a name, of a YAML file, or as given, changed by "a.b=c" texts; see `recipes.changed`.

    Raises InputError for a name that there is not, or a recipe that does not make sense."""
    recipe = source if isinstance(source, Preset) else _shipped(source) if source in PRESETS else _read(Path(source))
    changes = list(changes)
    if not changes:
        return recipe
    values = recipes.changed(recipe.model_dump(mode="json"), changes, Preset)
    return _checked(values, f"--set {', '.join(changes)}")


def preset_summary(name: str) -> str:
    """The first line of a preset's file, a comment, without its full stop."""
    with (_presets_folder() / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip(".\n")


def _presets_folder() -> Path:
    return recipes.configs_folder() / "presets"


#: The names of the presets that come with stepwarp.
PRESETS = tuple(sorted(path.stem for path in _presets_folder().glob("*.yaml")))


@cache
def _shipped(name: str) -> Preset:
    return _read(_presets_folder() / f"{name}.yaml")


def _read(path: Path) -> Preset:
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        raise InputError(f"preset '{path}' does not exist; {recipes.nearest(str(path), PRESETS)}")
    check_present(path)
    return _checked(recipes.read_recipe(path, "affine and deformable"), str(path))


def _checked(values: dict[str, Any], source: str) -> Preset:
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {recipes.first_problem(error)}".replace("?.", "?")) from error
