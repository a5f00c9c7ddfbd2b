"""Damaged files, at least a hundred thousand of them: each is read as it is, or refused in one line.

    python benchmarks/fuzz.py [--cases 1.0] [--only TARGET] [--seed 0]

Files of every format that stepwarp reads are spoiled (`fuzz_cases.py`) and read in worker processes. A case ends as

    read      the reader returned something; volumes were compared with what nibabel reads from the same file
    refused   an InputError of one line that names the file
    wrong     read although the file lost its end, or as something else than nibabel reads
    crashed   any other exception, a message of several lines, a signal, more time or more memory than allowed

and every wrong or crashed one is kept in benchmarks/work/fuzz. Writes results/fuzz.json, of all its cases
or, with --only, anew for one target."""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
OUT, KEPT = HERE / "results" / "fuzz.json", HERE / "work" / "fuzz"

#: How many cases of each target; --cases multiplies them.
CASES = {
    "volumes": 40_000,
    "warps": 14_000,
    "matrices": 24_000,
    "composites": 10_000,
    "learn2reg": 10_000,
    "landmarks": 14_000,
    "names": 8_000,
    "native": 6_000,
    "icon": 4_000,
}
#: What one case may take: seconds of the processor, MiB more than before.
SECONDS, MIB = 5.0, 1024
#: No answer for so long (s) on a machine that does other things too: it hangs.
_PATIENCE = 120.0
#: The limit that the readers are told; a file that asks for more must be refused.
_MAX_GIB = 0.125


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=float, default=1.0, help="a factor on the number of cases")
    parser.add_argument("--only", choices=CASES, help="one target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        target, start, stop = arguments.worker
        work(target, int(start), int(stop), arguments.seed)
        return
    targets = [arguments.only] if arguments.only else list(CASES)
    results = json.loads(OUT.read_text())["targets"] if arguments.only and OUT.exists() else {}
    for target in targets:
        results[target] = run(target, max(1, int(CASES[target] * arguments.cases)), arguments.seed)
        print(target, json.dumps(results[target]), flush=True)
    if arguments.cases >= 1:
        OUT.write_text(json.dumps(summary(results, arguments.seed), indent=1) + "\n")


def run(target: str, count: int, seed: int) -> dict[str, Any]:
    """All cases of a target; a worker that dies or hangs is replaced, and its case counted."""
    started, outcomes, findings = time.perf_counter(), Counter(), []
    slowest, largest, done = 0.0, 0, 0
    while done < count:
        for number, outcome, detail, seconds, mib in _answers(target, done, count, seed):
            outcomes[outcome] += 1
            slowest, largest, done = max(slowest, seconds), max(largest, mib), number + 1
            if outcome in ("wrong", "crashed"):
                findings.append({"case": number, "outcome": outcome, "detail": detail})
                _keep(target, number, seed)
    return {
        "cases": count,
        **{outcome: outcomes[outcome] for outcome in ("read", "refused", "wrong", "crashed")},
        "slowest_seconds": round(slowest, 3),
        "largest_mib": largest,
        "seconds": round(time.perf_counter() - started, 1),
        "findings": findings[:50],
    }


def _answers(target: str, start: int, stop: int, seed: int):
    """What a worker says of each case from `start` on, until it is through, dies or hangs."""
    command = [sys.executable, __file__, "--seed", str(seed), "--worker", target, str(start), str(stop)]
    settings = {"STEPWARP_MAX_GIB": str(_MAX_GIB), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | settings
    ) as worker:
        assert worker.stdout is not None
        number = start
        while number < stop:
            ready, _, _ = select.select([worker.stdout], [], [], _PATIENCE)
            line = worker.stdout.readline() if ready else b""
            if not line:
                worker.kill()
                how = f"no answer within {_PATIENCE:g} s" if not ready else f"the process died ({worker.wait()})"
                yield number, "crashed", how, 0.0, 0
                return
            yield json.loads(line)
            number += 1


def _keep(target: str, number: int, seed: int) -> None:
    from fuzz_cases import seeds, spoiled

    case = spoiled(seeds(target), _rng(seed, target, number))
    folder = KEPT / f"{target}-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / case.name).write_bytes(case.content)


def _rng(seed: int, target: str, number: int) -> random.Random:
    return random.Random(f"{seed}/{target}/{number}")


def summary(results: dict[str, Any], seed: int) -> dict[str, Any]:
    from stepwarp.machine import machine, versions

    totals = Counter()
    for result in results.values():
        totals.update({key: result[key] for key in ("cases", "read", "refused", "wrong", "crashed")})
    packages = ("torch", "numpy", "nibabel", "SimpleITK", "h5py", "isal", "safetensors", "pydantic")
    return {
        "totals": dict(totals) | {"seconds": round(sum(result["seconds"] for result in results.values()), 1)},
        "limits_of_a_case": {"seconds": SECONDS, "mib": MIB, "STEPWARP_MAX_GIB": _MAX_GIB},
        "seed": seed,
        "targets": results,
        "machine": machine(threads=1),
        "packages": versions(packages),
    }


# --- in a worker


def work(target: str, start: int, stop: int, seed: int) -> None:
    """Read the cases start..stop and print a line for each: number, outcome, detail, seconds, MiB."""
    import torch

    import stepwarp  # noqa: F401  # before the readers' libraries, as users do
    from fuzz_cases import seeds, spoiled

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    valid = seeds(target)
    with TemporaryDirectory() as folder:
        for file in valid:  # so that every library is loaded before memory is limited
            (Path(folder) / file.name).write_bytes(file.content)
            outcome, detail = judged(target, Path(folder) / file.name, cut=False)
            if outcome not in ("read", "refused"):
                raise SystemExit(f"{file.name}: a valid file ends as {outcome} ({detail})")
        limit = _status("VmSize") * 1024 + MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(start, stop):
            case = spoiled(valid, _rng(seed, target, number))
            path = Path(folder) / case.name
            path.write_bytes(case.content)
            Path("/proc/self/clear_refs").write_text("5")  # the highest memory counts from here
            before, began = _status("VmRSS"), time.process_time()
            outcome, detail = judged(target, path, case.cut)
            seconds = time.process_time() - began
            if seconds > SECONDS:
                outcome, detail = "crashed", f"took {seconds:.1f} s"
            mib = max(0, _status("VmHWM") - before) // 1024
            print(json.dumps([number, outcome, detail, round(seconds, 4), mib]), flush=True)


def judged(target: str, path: Path, cut: bool) -> tuple[str, str]:
    """How reading ends, and why."""
    from stepwarp.errors import InputError

    try:
        found = READERS[target](path)
    except InputError as error:
        message = str(error)
        good = str(path) in message and "\n" not in message and len(message) < 2000
        return ("refused", "") if good else ("crashed", f"an unfit message: {message[:300]!r}")
    except BaseException as error:
        return "crashed", f"{type(error).__name__}: {error}"[:300]
    if cut:
        return "wrong", "it lost its end and was read"
    return ("wrong", found) if found else ("read", "")


def _volumes(path: Path) -> str:
    """Read as an image, or else as labels; what differs from nibabel's reading, if nibabel reads it at all."""
    import nibabel
    import numpy as np

    from stepwarp.errors import InputError
    from stepwarp.files import read_image, read_labels

    try:
        volume = read_image(path)
    except InputError:
        volume = read_labels(path)
    try:
        theirs = nibabel.load(path)
        values = np.asanyarray(theirs.dataobj).reshape(volume.grid.shape, order="F")
    except Exception:  # nibabel refuses some headers for fields that are not used here
        return ""
    with np.errstate(all="ignore"):
        if not np.allclose(volume.data.numpy(), values.astype(volume.data.numpy().dtype), rtol=1e-6, equal_nan=True):
            return "values differ from nibabel's"
    corners = volume.grid.corners()
    index = np.stack(np.meshgrid(*[(0, n - 1) for n in volume.grid.shape], indexing="ij"), -1).reshape(-1, 3)
    apart = np.abs(corners - (index @ theirs.affine[:3, :3].T + theirs.affine[:3, 3])).max()
    stated = not hasattr(theirs.header, "get_sform") or theirs.header["sform_code"] > 0
    usable = np.abs(theirs.affine).max() <= 1e6 and np.linalg.cond(theirs.affine[:3, :3]) < 1e9  # else the other form
    far = apart > 0.02 + 1e-5 * np.abs(corners).max()  # shear of 0.01 mm is removed, and float32 rounds
    return f"lies {apart:.3g} mm from where nibabel puts it" if stated and usable and far else ""


def _transform(path: Path) -> str:
    import numpy as np

    from stepwarp.files import read_transform

    with np.errstate(all="ignore"):
        mapped = read_transform(path)(np.array([[1.0, 2.0, 3.0], [10.0, -20.0, 30.0]]))
    return "" if np.isfinite(mapped).all() else "maps a point to no number"


def _learn2reg(path: Path) -> str:
    from fuzz_cases import GRID
    from stepwarp.files.learn2reg import read_learn2reg

    read_learn2reg(path, GRID, GRID)
    return ""


def _landmarks(path: Path) -> str:
    import numpy as np

    from fuzz_cases import GRID
    from stepwarp.files import read_landmarks

    landmarks = read_landmarks(path, "lps" if path.name == "ants.csv" else None, GRID)
    return "" if np.isfinite(landmarks.points).all() else "holds points that are no numbers"


def _names(path: Path) -> str:
    from stepwarp.data.manifest import located, read_manifest
    from stepwarp.files.label_names import read_label_names

    if path.name != "manifest.json":
        read_label_names(path)
        return ""
    for entry in read_manifest(path).images.values():
        for place in entry.paths().values():
            if not located(place, path.parent).is_relative_to(path.parent):
                return "a path leaves the data root"
    return ""


def _weights(path: Path) -> str:
    import torch

    from stepwarp.registrar.weights import load_weights

    parameters = load_weights(path).step.parameters()
    return "" if all(torch.isfinite(p).all() for p in parameters) else "holds weights that are no numbers"


READERS: dict[str, Callable[[Path], str]] = {
    "volumes": _volumes,
    "warps": _transform,
    "matrices": _transform,
    "composites": _transform,
    "learn2reg": _learn2reg,
    "landmarks": _landmarks,
    "names": _names,
    "native": _weights,
    "icon": _weights,
}


def _status(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


if __name__ == "__main__":
    main()
