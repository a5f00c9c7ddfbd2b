"""ANTs, the classical baseline, run through antspyx: two image files in, ANTs' own transform files out.

Each run is a process of its own, so that its processor seconds and its peak memory are its own and the number of
threads is really the one asked for (ITK reads it once, when it is loaded)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

#: Our names for the ANTs presets of interest -> the `type_of_transform` of `ants.registration`.
PRESETS = {
    "affine": "Affine",
    "syn": "SyN",
    "syn-quick": "antsRegistrationSyNQuick[s]",
    "syn-best": "antsRegistrationSyN[s]",
}

RECORD = "ants.json"


def register(fixed: Path, moving: Path, out: Path, preset: str, *, threads: int = 2, seed: int = 1) -> dict:
    """Run one ANTs preset and return its record; a folder that already holds a finished run is returned as it is.

    Writes `0GenericAffine.mat` and, for a deformable preset, `1Warp.nii.gz` and `1InverseWarp.nii.gz` into `out`, and
    `ants.json` last: preset, ANTs name, version, threads, seed, wall and processor seconds, peak memory in MiB.

    Raises RuntimeError with the end of ANTs' own output when it fails."""
    record = out / RECORD
    if record.exists():
        return json.loads(record.read_text())
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads)}
    command = [sys.executable, "-m", __spec__.name, str(fixed), str(moving), str(out), preset, str(threads), str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ANTs {preset} failed on {fixed.name} <- {moving.name}: {done.stderr[-2000:]}")
    return json.loads(record.read_text())


def _run(fixed: str, moving: str, out: str, preset: str, threads: str, seed: str) -> None:
    import resource
    import time

    import ants

    images = ants.image_read(fixed), ants.image_read(moving)
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    result = ants.registration(*images, type_of_transform=PRESETS[preset], random_seed=int(seed))
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)

    folder = Path(out)
    inverse_warps = [name for name in result["invtransforms"] if "InverseWarp" in name]
    for name in [*result["fwdtransforms"], *inverse_warps]:
        suffix = next(s for s in ("0GenericAffine.mat", "1InverseWarp.nii.gz", "1Warp.nii.gz") if name.endswith(s))
        shutil.move(name, folder / suffix)
    record = {
        "preset": preset,
        "type_of_transform": PRESETS[preset],
        "antspyx": ants.__version__,
        "threads": int(threads),
        "seed": int(seed),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_mib": round(after.ru_maxrss / 1024),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    _run(*sys.argv[1:])
