"""One case in this process: saved as a whole, refused, and what its errors are called."""

import errno
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import stepwarp
from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.plan import CaseSource, Job, plan
from stepwarp.batch.settings import parts_of
from stepwarp.batch.study import Batch
from stepwarp.batch.work import failure, work
from stepwarp.data.manifest import read_manifest
from stepwarp.errors import (
    ForeignError,
    InputError,
    MemoryShortageError,
    OutputError,
    RegistrationError,
    VerificationError,
)
from stepwarp.files import sha256
from stepwarp.options import RegisterOptions
from stepwarp.workflow import device
from stepwarp.workflow.initial import digest


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (InputError("a.nii: is cut off."), "input", "a.nii: is cut off."),
        (RegistrationError("the affine\nis singular"), "registration", "the affine\\nis singular"),
        (OutputError("out: no space left"), "machine", "no space left"),
        (ForeignError("out/notes.txt: is no part of it"), "output", "is no part of it"),
        (VerificationError("differs"), "machine", "differs"),
        (OSError(errno.EIO, "Input/output error"), "machine", "Input/output error"),
        (MemoryError(), "machine", "out of memory"),
        (MemoryShortageError("it needs 3 GiB of memory"), "machine", "it needs 3 GiB of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "machine", "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "machine", "out of memory"),
        (RuntimeError("CUDA error: unspecified launch failure\nCompile with"), "machine", "the GPU failed: CUDA error"),
        (KeyError("odd"), "registration", "this is a bug in stepwarp, please report it (KeyError: 'odd')"),
    ],
)
def test_only_faults_of_the_machine_are_worth_another_try(error, kind, reason):
    found = failure(error)
    assert found["kind"] == kind
    assert reason in found["reason"]
    assert (found["where"] is not None) == isinstance(error, KeyError)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: (folder / "notes.txt").write_text("precious"), "notes.txt: is no part of the old result"),
        (lambda folder: (folder / "report.html").mkdir(), "report.html: is no part of the old result"),
        (lambda folder: (folder / "report.html").symlink_to("elsewhere"), "report.html: is a link"),
    ],
)
def test_what_no_registration_wrote_is_refused_once_and_before_the_work(tmp_path, monkeypatch, make, reason):
    monkeypatch.setattr(
        "stepwarp.workflow.register.register_pair", lambda *args, **options: pytest.fail("it was registered")
    )
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "registration.json").write_text('{"outputs": {"notes.txt": "", "report.html": ""}}')
    make(folder)
    before = sorted(folder.iterdir())
    found = work(Job("case", folder, {}, {}, {"stepwarp": stepwarp.__version__}, RegisterOptions()))
    assert reason in found["reason"]
    assert found["kind"] == "output"
    assert sorted(folder.iterdir()) == before


@pytest.mark.data
def test_another_s_dataset_is_refused_before_the_work(study, tmp_path, monkeypatch):
    monkeypatch.setattr("stepwarp.batch.study.run", lambda *args, **options: pytest.fail("it was run"))
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "participants.tsv").write_text("precious")
    with pytest.raises(OutputError, match="is no dataset of stepwarp's"):
        Batch.of(study, tmp_path, RegisterOptions(device="cpu"), only=["1000_1001"], bids=True).run()


def job_of(tmp_path):
    """A case with files of its own, of which none has to be a volume."""
    roles = ("fixed", "moving", "fixed_mask", "moving_mask")
    for role in roles:
        (tmp_path / role).write_text(role)
    images, masks = ({role: tmp_path / (role + kind) for role in ("fixed", "moving")} for kind in ("", "_mask"))
    parts = parts_of({}, {role: sha256(tmp_path / role) for role in roles})
    options = RegisterOptions(trust=("qform", "elsewhere.nii=base"))
    return Job("a", tmp_path / "a", images, masks, parts, options, 3)


def test_every_file_and_setting_of_a_case_is_what_its_name_says(tmp_path, monkeypatch):
    job, told = job_of(tmp_path), {}

    def register(fixed, moving, options, **masks):
        told.update(masks, options=options, fixed=fixed, moving=moving)
        raise RegistrationError("that is enough")

    monkeypatch.setattr("stepwarp.workflow.register.register_pair", register)
    assert work(job)["reason"] == "that is enough"
    assert told == {
        "options": job.options.model_copy(update={"threads": 3, "trust": ("qform",)}),
        **job.images,
        **{f"{role}_mask": path for role, path in job.masks.items()},
    }


def test_what_a_gpu_left_to_the_processor_is_told_and_its_share_is_kept(tmp_path, monkeypatch):
    job, shares = job_of(tmp_path), []
    record = {
        "measures": {"similarity_affine": {"lncc": 0.9}},
        "verdict": {"status": "pass"},
        "gpu_failure": {"reason": "lost"},
    }
    monkeypatch.setattr(device, "chosen_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(device, "share_gpu", lambda place, share: shares.append(share))
    monkeypatch.setattr("stepwarp.workflow.register.register_pair", lambda *_, **__: SimpleNamespace(record=record))
    monkeypatch.setattr("stepwarp.batch.work._save", lambda *_: None)
    assert work(job)["gpu_failure"] == {"reason": "lost"}
    assert shares == []
    assert work(replace(job, gpu_mib=3))["status"] == "done"
    assert shares == [3 * 2**20]

    def lost(place, share):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(device, "share_gpu", lost)
    assert work(replace(job, gpu_mib=3))["status"] == "done"


@pytest.mark.parametrize("role", ["fixed", "moving", "fixed_mask", "moving_mask"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_that_changes_before_or_while_it_is_read_leaves_no_result(tmp_path, monkeypatch, role, when):
    job = job_of(tmp_path)

    def register(*_, **__):
        assert when == "meanwhile"
        (tmp_path / role).write_text("another")
        return

    monkeypatch.setattr("stepwarp.workflow.register.register_pair", register)
    if when == "before":
        (tmp_path / role).write_text("another")
    found = work(job)
    assert found["kind"] == "input"
    assert found["reason"] == f"{tmp_path / role}: changed while the batch was running. Run it again."
    assert not job.folder.exists()


def test_a_start_that_changes_leaves_no_result_and_its_trust_goes_along(tmp_path, monkeypatch):
    job = job_of(tmp_path)
    (tmp_path / "start.mat").write_text("one")
    given = (f"[{tmp_path / 'start.mat'},1]",)
    parts = {**job.parts, "inputs": {**job.parts["inputs"], "initial": digest(given)}}
    options = job.options.model_copy(update={"initial": given, "trust": ("start.mat=sform", "b=base")})
    told = []

    def register(fixed, moving, options, **masks):
        told.append(options)
        (tmp_path / "start.mat").write_text("another")

    monkeypatch.setattr("stepwarp.workflow.register.register_pair", register)
    found = work(replace(job, parts=parts, options=options))
    assert found["reason"] == f"{given[0]}: changed while the batch was running. Run it again."
    assert [(each.initial, each.trust) for each in told] == [(given, ("start.mat=sform",))]


@pytest.mark.data
@pytest.mark.usefixtures("one_thread")
def test_a_case_from_start_to_end(study, tmp_path, look, monkeypatch):
    places = BatchPlaces(tmp_path / "out")
    places.cases.mkdir(parents=True)
    source = CaseSource(read_manifest(study), study.parent, only=("1000_1001",))
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
