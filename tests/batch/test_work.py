"""One case in this process: saved as a whole, refused, and what its errors are called."""

import errno
import json

import pytest
import torch

from stepwarp.batch.places import Places
from stepwarp.batch.plan import Source, plan
from stepwarp.batch.work import failure, work
from stepwarp.data.manifest import read_manifest
from stepwarp.errors import InputError, OutputError, RegistrationError, VerificationError
from stepwarp.options import RegisterOptions


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (InputError("a.nii: is cut off."), "input", "a.nii: is cut off."),
        (RegistrationError("the affine\nis singular"), "registration", "the affine\\nis singular"),
        (OutputError("out: no space left"), "machine", "no space left"),
        (VerificationError("differs"), "machine", "differs"),
        (OSError(errno.EIO, "Input/output error"), "machine", "Input/output error"),
        (MemoryError(), "machine", "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "machine", "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "machine", "out of memory"),
        (KeyError("odd"), "registration", "this is a bug in stepwarp, please report it (KeyError: 'odd')"),
    ],
)
def test_only_faults_of_the_machine_are_worth_another_try(error, kind, reason):
    found = failure(error)
    assert found["kind"] == kind
    assert reason in found["reason"]
    assert (found["where"] is not None) == isinstance(error, KeyError)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.data
@pytest.mark.usefixtures("one_thread")
def test_a_case_from_start_to_end(study, tmp_path, look, monkeypatch):
    places = Places(tmp_path / "out")
    places.cases.mkdir(parents=True)
    source = Source(read_manifest(study), study.parent, only=("1000_1001",))
    settings = RegisterOptions(preset="fast", affine_only=True, device="cpu")
    (case,) = plan(source, settings, places)
    found = work(case.job)
    assert found["status"] == "done", found
    assert set(look.finished(places.out)) == {"1000_1001"}
    assert (case.job.folder / "picture.jpg").stat().st_size > 1000
    assert plan(source, settings, places)[0].todo == "done"
    kept = look.finished(places.out)

    # Told again, as after a worker was given up that had in truth finished, it does nothing.
    assert work(case.job)["status"] == "done"
    assert look.finished(places.out) == kept

    # Another result takes its place as a whole.
    (other,) = plan(source, RegisterOptions(preset="fast", affine_only=True, device="cpu", escalate=False), places)
    assert other.replaces
    assert work(other.job)["status"] == "done"
    assert look.finished(places.out) != kept
    assert look.leftovers(places.out) == []

    # What cannot be done leaves what is there as it is.
    kept = look.finished(places.out)
    original = (study.parent / "1001.nii.gz").read_bytes()
    (study.parent / "1001.nii.gz").write_bytes(original[:-1])
    assert "1001.nii.gz: changed while the batch was running" in work(case.job)["reason"]
    (study.parent / "1001.nii.gz").write_bytes(original)
    monkeypatch.setattr("stepwarp.batch.work.__version__", "0")
    assert "has stepwarp 0, the batch was planned with" in work(case.job)["reason"]
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    assert "0 MiB are free" in work(case.job)["reason"]
    assert look.finished(places.out) == kept
    assert look.leftovers(places.out) == []
