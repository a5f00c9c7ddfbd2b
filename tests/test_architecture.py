"""What holds of the package as a whole. The order of its layers is checked by lint-imports, in `make lint`."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "pipeline" / "stepwarp"

#: Imports every module of the package where neither fcntl nor resource is to be had, nor what else only POSIX has, nor
#: Triton, but for the kernels that it compiles.
ON_WINDOWS = """
import importlib, os, pkgutil, signal, sys, types
import dask.distributed, lightning_fabric, monai.transforms, numba, psutil, scipy.stats, torch.utils.tensorboard
import portalocker  # which has locks of its own on Windows

for name in ("fcntl", "resource", "pwd", "grp", "termios", "triton"):
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "killpg", "getpgrp", "sysconf", "getloadavg", "sched_getaffinity",
             "register_at_fork", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "statvfs"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGKILL"):
    delattr(signal, name)
del psutil.RLIMIT_AS, psutil.RLIMIT_DATA

import stepwarp
for module in pkgutil.walk_packages(stepwarp.__path__, "stepwarp."):
    if not module.name.endswith("__main__") and not module.name.startswith("stepwarp.kernels.gpu."):
        importlib.import_module(module.name)
from stepwarp import limits, machine
assert limits.processors() >= 1 and limits.free_memory() > 0 and machine.cpu_seconds() > 0
print("imported")
"""


def test_every_class_has_a_name_of_its_own():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_what_is_imported_is_declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    optional = [each for group in project["optional-dependencies"].values() for each in group]
    stated = [re.split(r"[<>=\[ ]", each)[0] for each in [*project["dependencies"], *optional]]
    declared = {each.lower().replace("_", "-") for each in stated}
    #: Peers that the benchmark runs where somebody has installed them.
    declared |= {"fireants", "convexadam", "itk-elastix", "niftyreg"}
    distributions = packages_distributions()
    missing = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.partition(".")[0] for name in names} - {"stepwarp", *sys.stdlib_module_names}:
                of = {each.lower().replace("_", "-") for each in distributions.get(name, [name])}
                if not of & declared:
                    missing[name].add(path.name)
    assert dict(missing) == {}


@pytest.mark.slow
def test_every_module_imports_where_a_system_has_no_fcntl_and_no_resource():
    done = subprocess.run([sys.executable, "-c", ON_WINDOWS], capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr
