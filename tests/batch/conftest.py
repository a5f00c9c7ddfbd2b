"""A study of small real brains, and the command in a process of its own, to be watched and killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.settings import damage
from stepwarp.files import read_image, sha256, write_volume

FAULTS = Path(__file__).parent / "faults.py"
SCANS = ("1000", "1001", "1013", "1019")
MM = 6
_MAIN = "import sys; sys.argv[0] = 'stepwarp'; from stepwarp.cli import main; main()"


@pytest.fixture(scope="session")
def _brains(data_folder, tmp_path_factory) -> Path:
    """Four brains of OASIS with voxels of 6 mm."""
    folder = tmp_path_factory.mktemp("brains")
    for name in SCANS:
        image = read_image(data_folder / "oasis" / f"{name}_SS.nii.gz")
        write_volume(folder / f"{name}.nii.gz", image.coarser(MM))
    return folder


@pytest.fixture
def study(_brains, tmp_path) -> Path:
    """The manifest of a copy of them, with four pairs and their checksums."""
    folder = tmp_path / "data"
    shutil.copytree(_brains, folder)
    _write_manifest(folder, SCANS, [SCANS[:2], SCANS[1:3], SCANS[2:], SCANS[:3:2]])
    return folder / "study.json"


def _write_manifest(folder: Path, scans, pairs, **more) -> Path:
    images = {name: {"image": f"{name}.nii.gz"} for name in scans}
    for name, entry in images.items():
        if (folder / f"{name}.nii.gz").exists():
            entry["sha256"] = {"image": sha256(folder / f"{name}.nii.gz")}
    listed = [{"id": f"{a}_{b}", "fixed": a, "moving": b} for a, b in pairs]
    path = folder / "study.json"
    path.write_text(json.dumps({"name": "small brains", "images": images, "pairs": listed, **more}))
    return path


class Running:
    """`stepwarp batch` at work. text: what it has printed."""

    def __init__(self, *arguments, log: Path, fault: str = "", **environment) -> None:
        self.log = log
        known = os.environ | {key: str(value) for key, value in environment.items()}
        if fault:
            known |= {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(FAULTS), "STEPWARP_FAULT": fault}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, "batch", *map(str, arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=known,
                # A test run in the background may have made SIGINT one that is ignored, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def workers(self) -> list[psutil.Process]:
        """The processes that register."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if "spawn_main" in " ".join(process.cmdline())]

    def wait_for(self, text: str, count: int = 1, seconds: float = 900) -> None:
        self.wait_until(lambda: self.text.count(text) >= count, seconds)

    def wait_until(self, condition, seconds: float = 900) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.02)

    def end(self, number: int | None = None, seconds: float = 900) -> int:
        """Send a signal, if one is given, and wait; the exit code."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


@pytest.fixture
def start(tmp_path):
    """start(arguments, fault=) -> Running; whatever still runs at the end is killed."""
    started = []

    def begin(*arguments, **options) -> Running:
        started.append(Running(*arguments, log=tmp_path / f"run{len(started)}.log", **options))
        return started[-1]

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def _finished(out: Path) -> dict[str, int]:
    """Case -> inode of its record, of all results under a final name; each is whole and what was written."""
    found = {}
    for folder in BatchPlaces(out).cases.glob("*"):
        if not folder.name.startswith("."):
            record = json.loads((folder / "registration.json").read_text())
            assert record["batch"]["case"] == folder.name
            assert damage(folder, record) is None
            found[folder.name] = (folder / "registration.json").stat().st_ino
    return found


def _leftovers(out: Path) -> list[str]:
    """What should not be there once nothing runs."""
    hidden = [path for path in out.rglob(".*") if path.name != ".lock"]
    return sorted(str(path.relative_to(out)) for path in hidden)


@pytest.fixture
def look():
    """What there is to know of a batch's folder: finished(out), leftovers(out); and write_manifest, SCANS."""
    return SimpleNamespace(finished=_finished, leftovers=_leftovers, write_manifest=_write_manifest, SCANS=SCANS)
