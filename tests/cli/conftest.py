import signal
import sys
from types import SimpleNamespace

import pytest

from stepwarp.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the console script here: run(*arguments) -> exit code, out, err."""
    previous = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["stepwarp", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=out, err=err)

    yield run_main
    for number, handler in previous.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


RECORD = {
    "inputs": {"moving": {"outside": -1000.0}},
    "verdict": {"status": "pass", "reasons": ["no voxel folds"]},
    "measures": {
        "similarity_affine": {"lncc": 0.3, "ncc": 0.6, "mutual_information": 0.1},
        "similarity": {"lncc": 0.9, "ncc": 0.95, "mutual_information": 0.4},
        "regularity": {"folds": {"count": 0, "share": 0.0}, "corner_folds": {"count": 2, "share": 1e-6}},
    },
    "stages": [
        {"name": "affine", "seconds": 2.5, "peak_mib": 700},
        {"name": "deformable", "seconds": 7.25, "peak_mib": 900},
    ],
}


@pytest.fixture
def record():
    """What of registration.json the summary shows."""
    return {**RECORD, "verdict": dict(RECORD["verdict"])}


@pytest.fixture
def fake_register(monkeypatch, record):
    """Stands in for `register_pair` of the workflow: `.calls`, `.saved` and `.traced` tell what it was called with,
    `.plans` are what it tells of memory, `.error` is what it raises, `.record` what it returns."""
    import stepwarp.workflow.register as module
    from stepwarp.progress import ProgressReport

    fake = SimpleNamespace(calls=[], plans=[], saved=[], traced=[], error=None, record=record)

    def register(fixed, moving, options, *, progress, planned, **masks):
        fake.calls.append({"fixed": fixed, "moving": moving, **dict(options), **masks})
        for plan in fake.plans:
            planned(plan)
        progress(ProgressReport("affine", 0, 2))
        progress(ProgressReport("affine", 1, 2, 0.25))
        if fake.error:
            raise fake.error
        return SimpleNamespace(record=fake.record, save=save, save_trace=save_trace)

    def save(out, *, overwrite, progress, place):
        assert place.is_dir()  # claimed before the work
        fake.saved.append((out, overwrite))
        return out

    def save_trace(folder, *, overwrite, place):
        fake.traced.append((folder, overwrite))

    monkeypatch.setattr(module, "register_pair", register)
    return fake


@pytest.fixture
def two_files(tmp_path):
    """Paths of two files that exist."""
    paths = [tmp_path / name for name in ("A.nii.gz", "B.nii.gz")]
    for path in paths:
        path.write_text("what no reader looks at")
    return paths
