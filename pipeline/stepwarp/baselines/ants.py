"""ANTs, the classical baseline, through antspyx.

Tested with antspyx 0.6.3. Since 0.6.2 `ants.registration` ignores `random_seed` without a word, as every keyword
that it does not know; the seed is set through `ants.config`. Without one no two runs are equal, `Repro` or not."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stepwarp.baselines._exchange import ITK_THREADS, as_files, stdout_to_stderr
from stepwarp.baselines._method import Outcome, missing_package, require
from stepwarp.errors import RegistrationError
from stepwarp.files import read_transform
from stepwarp.geometry import Composition, Image, Transform

#: Our names for the ANTs presets of interest -> the `type_of_transform` of `ants.registration`.
PRESETS = {
    "affine": "Affine",
    "syn": "SyN",
    "syn-quick": "antsRegistrationSyNQuick[s]",
    "syn-best": "antsRegistrationSyN[s]",
    "syn-repro": "antsRegistrationSyNRepro[s]",
    "syn-quick-repro": "antsRegistrationSyNQuickRepro[s]",
}


@dataclass(frozen=True)
class Ants:
    """One preset of `ants.registration`. preset: a key of PRESETS."""

    preset: str
    imports: ClassVar[tuple[str, ...]] = ("ants",)

    @property
    def name(self) -> str:
        return f"ants-{self.preset}"

    @property
    def title(self) -> str:
        return f"ANTs {PRESETS[self.preset]}"

    def missing(self) -> str | None:
        return missing_package("ants", "pip install 'stepwarp[ants]' brings it (antspyx)")

    def __call__(self, fixed: Image, moving: Image, *, threads: int, seed: int) -> Outcome:
        require(self)
        threads_used = _load(threads)
        import ants

        kind = PRESETS[self.preset]
        with as_files(fixed, moving) as (folder, *paths), stdout_to_stderr(), _seeded(seed):
            images = [ants.image_read(str(path)) for path in paths]
            try:
                ants.registration(*images, type_of_transform=kind, outprefix=f"{folder}/")
            except RuntimeError as error:
                raise RegistrationError(f"{self.title}: failed on {fixed.name} and {moving.name} ({error}).") from error
            transform, inverse = _read(folder)
        record: dict[str, Any] = {
            "command": f"{ITK_THREADS}={threads_used}; ants.config.set_ants_deterministic(False, {seed}); "
            f"ants.registration(fixed, moving, type_of_transform={kind!r})",
            "versions": {"antspyx": ants.__version__},
            "type_of_transform": kind,
            "threads": threads_used,
            "seed": seed,
        }
        return Outcome(transform, inverse, record)


def _load(threads: int) -> int | None:
    """Load ANTs with a number of threads, and return the number in force: another one, or None for one that nobody can
    tell, where ANTs had been loaded before."""
    if "ants" not in sys.modules:
        os.environ[ITK_THREADS] = str(threads)
    import ants  # noqa: F401

    in_force = os.environ.get(ITK_THREADS)
    return int(in_force) if in_force else None


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    from ants import config

    before = config._deterministic, config._random_seed
    config.set_ants_deterministic(on=False, seed_value=seed)
    try:
        yield
    finally:
        config._deterministic, config._random_seed = before


def _read(folder: Path) -> tuple[Transform, Transform]:
    """The way there and the way back from the files that ANTs has written; both of its fields are on the fixed grid."""
    affine = read_transform(folder / "0GenericAffine.mat")
    if not (folder / "1Warp.nii.gz").exists():
        return affine, affine.inverse()
    there, back = (read_transform(folder / name) for name in ("1Warp.nii.gz", "1InverseWarp.nii.gz"))
    return Composition.of(affine, there), Composition.of(back, affine.inverse())


METHODS = tuple(Ants(preset) for preset in PRESETS)
