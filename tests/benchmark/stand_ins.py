"""Runs a module of the benchmark, or the whole command, with methods that do what a test needs.

python stand_ins.py stepwarp.benchmark.case     as a child of the runner
python stand_ins.py benchmark ARGUMENTS                  as the console script"""

import os
import runpy
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numba
import torch

import stepwarp
from stepwarp.baselines import Outcome
from stepwarp.config import AffineSettings, DeformableSettings, Level, Preset
from stepwarp.errors import RegistrationError


@dataclass(frozen=True)
class StandIn:
    name: str
    absent: str | None = None

    @property
    def title(self) -> str:
        return f"stand-in {self.name}"

    def missing(self) -> str | None:
        return self.absent

    def __call__(self, fixed, moving, *, threads, seed) -> Outcome:
        return getattr(self, f"_{self.name}")(fixed, moving, threads, seed)

    def _broken(self, fixed, moving, threads, seed) -> Outcome:
        raise RegistrationError("/some/where/private/image.nii.gz: broke\ndown")

    def _endless(self, fixed, moving, threads, seed) -> Outcome:
        program = subprocess.Popen(["sleep", "600"])
        Path(os.environ["STAND_INS_PIDS"]).write_text(f"{os.getpid()} {program.pid} ")
        time.sleep(600)

    def _tiny(self, fixed, moving, threads, seed) -> Outcome:
        recipe = Preset(
            affine=AffineSettings(across=20, refine_across=(40,), candidates=1),
            deformable=DeformableSettings(levels=(Level(across=40, iterations=3),)),
        )
        told = [threads, torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS]
        told += [int(os.environ[name]) for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")]
        found = stepwarp.register(fixed, moving, preset=recipe, threads=threads)
        command = ["tiny", "/private/folder/image.nii"]
        return Outcome(found.transform, found.inverse, {"command": command, "told": told, "versions": {"numpy": "?"}})


METHODS = {
    method.name: method
    for method in (
        StandIn("broken"),
        StandIn("endless"),
        StandIn("tiny"),
        StandIn("away", absent="reg_away is not on the PATH; build it"),
    )
}
PYTHON = (sys.executable, __file__)


def install() -> None:
    """Make the methods known, and have children know them too."""
    from stepwarp.benchmark import child, methods

    methods.METHODS.update(METHODS)
    child.PYTHON = PYTHON


def main() -> None:
    install()
    if sys.argv[1] == "benchmark":
        from stepwarp.cli import main as stepwarp_main

        stepwarp_main()
    else:
        runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
