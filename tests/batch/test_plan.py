"""What is left to do, from files alone: nothing is registered here."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from stepwarp.batch import farm
from stepwarp.batch.farm import Farm
from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.plan import BatchCase, CaseSource, plan, refuse_replacing
from stepwarp.batch.settings import check, difference, identity, key_of
from stepwarp.batch.study import Batch
from stepwarp.config import preset
from stepwarp.data.manifest import Manifest, PairEntry, ScanEntry
from stepwarp.errors import InputError, OutputError
from stepwarp.files import sha256, write_affine, write_volume
from stepwarp.geometry import Affine, Grid, Image
from stepwarp.options import RegisterOptions


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate("abcm"):
        values = np.random.default_rng(number).random((6, 7, 8), dtype=np.float32)
        write_volume(folder / f"{name}.nii.gz", Image(torch.from_numpy(values), Grid((6, 7, 8), np.eye(4))))
    return folder


@pytest.fixture
def source(root) -> CaseSource:
    images = {name: ScanEntry(image=f"{name}.nii.gz", subject=name) for name in "abc"}
    images["a"] = images["a"].model_copy(update={"mask": "m.nii.gz"})
    pairs = tuple(PairEntry(id=f"{one}_{other}", fixed=one, moving=other) for one, other in ("ab", "bc"))
    return CaseSource(Manifest(name="study", images=images, pairs=pairs), root)


@pytest.fixture
def places(tmp_path) -> BatchPlaces:
    return BatchPlaces(tmp_path / "out")


def pretend(places: BatchPlaces, case: BatchCase) -> None:
    """Leave what a registration of the case leaves."""
    folder = places.case(case.id)
    folder.mkdir(parents=True)
    (folder / "1Warp.nii.gz").write_bytes(b"warp")
    outputs = {"1Warp.nii.gz": sha256(folder / "1Warp.nii.gz")}
    made = {"case": case.id, "key": case.job.key, "parts": case.job.parts}
    (folder / "registration.json").write_text(json.dumps({"batch": made, "outputs": outputs}))


def todos(cases):
    return {case.id: (case.todo, case.why) for case in cases}


def test_everything_is_to_be_run_at_first(source, places):
    assert todos(plan(source, RegisterOptions(), places)) == {"a_b": ("run", ""), "b_c": ("run", "")}


def test_what_is_done_is_done_whatever_the_threads_memory_or_folder(source, places, root, tmp_path):
    pretend(places, plan(source, RegisterOptions(), places)[0])
    root.rename(tmp_path / "elsewhere")
    moved = replace(source, root=tmp_path / "elsewhere")
    assert todos(plan(moved, RegisterOptions.of(max_memory="4G"), places)) == {"a_b": ("done", ""), "b_c": ("run", "")}


def test_a_result_of_a_version_that_asked_for_a_seed_is_not_made_anew(source, places):
    case = plan(source, RegisterOptions(), places)[0]
    parts = {**case.job.parts, "settings": {**case.job.parts["settings"], "seed": 7}}
    pretend(places, replace(case, job=replace(case.job, parts=parts)))
    assert plan(source, RegisterOptions(), places)[0].todo == "done"
    assert plan(source, RegisterOptions(trust="qform"), places)[0].why == "settings have changed: trust"


def test_options_that_a_version_did_not_have_hold_as_they_do_now(source, places):
    case = plan(source, RegisterOptions(), places)[0]
    former = {name: value for name, value in case.job.parts["settings"].items() if name != "escalate"}
    pretend(places, replace(case, job=replace(case.job, parts={**case.job.parts, "settings": former})))
    assert plan(source, RegisterOptions(), places)[0].todo == "done"
    assert plan(source, RegisterOptions(escalate=False), places)[0].why == "settings have changed: escalate"


def test_a_preset_is_what_it_holds_whatever_it_is_called(source, places, tmp_path):
    names = {"affine_only", "transform", "similarity", "device", "time_budget", "weights", "steps", "refine"}
    names |= {"preset", "escalate", "trust", "outside"}
    later = {"strip", "structures", "interpolation"}
    assert identity(RegisterOptions()).keys() == names | later, "as in the records of earlier versions, and later ones"
    pretend(places, plan(source, RegisterOptions(), places)[0])
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(preset("default").model_dump(mode="json")))
    for same in ({"preset": own}, {"set": "levels.0.iterations=30"}, {"preset": preset("default")}):
        assert plan(source, RegisterOptions(**same), places)[0].todo == "done"
    for other in ({"set": "levels.0.iterations=31"}, {"preset": own, "set": "radius=3"}):
        assert plan(source, RegisterOptions(**other), places)[0].why == "settings have changed: preset"


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"preset": "fast"}, "preset"),
        ({"time_budget": 9.0}, "time_budget"),
        ({"affine_only": True}, "affine_only"),
        ({"similarity": "mi"}, "similarity"),
        ({"trust": ("qform",)}, "trust"),
        ({"escalate": False}, "escalate"),
    ],
)
def test_other_settings_are_another_result(source, places, settings, changed):
    pretend(places, plan(source, RegisterOptions(), places)[0])
    cases = plan(source, RegisterOptions(**settings), places)
    assert cases[0].todo == "run"
    assert cases[0].why == f"settings have changed: {changed}"
    with pytest.raises(OutputError, match=f"{changed}; so it is for 1 of 2 cases.*--force"):
        refuse_replacing(cases)


def test_other_images_masks_weights_and_versions_are_another_result(source, places, root, monkeypatch):
    pretend(places, plan(source, RegisterOptions(), places)[0])
    with_masks = plan(replace(source, masks=True), RegisterOptions(), places)
    assert with_masks[0].why == "input files have changed: fixed_mask"
    assert with_masks[0].job.masks == {"fixed": root / "m.nii.gz"}
    weights = root / "weights.safetensors"
    keys = set()
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        keys.add(plan(source, RegisterOptions(weights=str(weights)), places)[0].job.key)
    assert len(keys) == 2
    (root / "b.nii.gz").write_bytes((root / "c.nii.gz").read_bytes())
    assert plan(source, RegisterOptions(), places)[0].why == "input files have changed: moving"
    monkeypatch.setattr("stepwarp.batch.settings.__version__", "9")
    assert plan(source, RegisterOptions(), places)[0].why.endswith("now 9")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: path.write_bytes(b"wa"), "1Warp.nii.gz is not the file that was written"),
        (lambda path: path.write_bytes(b""), "1Warp.nii.gz is missing"),
        (lambda path: path.unlink(), "1Warp.nii.gz is missing"),
        (lambda path: path.with_name("registration.json").write_text("{"), "cannot be read as JSON"),
        (lambda path: path.with_name("registration.json").unlink(), ""),
    ],
)
def test_a_damaged_result_is_made_again_without_force(source, places, harm, why):
    pretend(places, plan(source, RegisterOptions(), places)[0])
    harm(places.case("a_b") / "1Warp.nii.gz")
    cases = plan(source, RegisterOptions(), places)
    assert cases[0].todo == "run"
    assert why in cases[0].why
    refuse_replacing(cases)


def test_a_bad_scan_spoils_its_own_cases_only(source, places, root):
    entry = source.manifest.images["a"].model_copy(update={"sha256": {"image": "0" * 64}})
    bad = source.manifest.model_copy(update={"images": {**source.manifest.images, "a": entry}})
    cases = todos(plan(replace(source, manifest=bad), RegisterOptions(), places))
    assert cases["a_b"] == (
        "failed",
        f"{root / 'a.nii.gz'}: is not the file that the manifest describes (SHA-256). Obtain it again.",
    )
    assert cases["b_c"] == ("run", "")
    (root / "c.nii.gz").unlink()
    assert "c.nii.gz: does not exist" in todos(plan(source, RegisterOptions(), places))["b_c"][1]


def test_a_link_out_of_the_data_root_is_not_followed(source, places, root, tmp_path):
    (root / "c.nii.gz").rename(tmp_path / "c.nii.gz")
    (root / "c.nii.gz").symlink_to(tmp_path / "c.nii.gz")
    assert "leaves the data root" in todos(plan(source, RegisterOptions(), places))["b_c"][1]


@pytest.mark.parametrize("to", ["b", "file"])
def test_all_images_to_a_template(source, places, root, to):
    name = "b" if to == "b" else str(root / "m.nii.gz")
    cases = plan(replace(source, to=name), RegisterOptions(), places)
    assert [case.id for case in cases] == (["a", "c"] if to == "b" else ["a", "b", "c"])
    assert {case.job.images["fixed"] for case in cases} == {root / ("b.nii.gz" if to == "b" else "m.nii.gz")}
    assert [case.job.images["moving"].name[0] for case in cases] == [case.id for case in cases]


def test_a_template_that_is_not_there_is_refused_at_once(source, places, root):
    with pytest.raises(InputError, match=r"nowhere\.nii: does not exist"):
        plan(replace(source, to=str(root / "nowhere.nii")), RegisterOptions(), places)


def test_names_that_there_are_not(source, places):
    with pytest.raises(InputError, match="did you mean 'a_b'"):
        plan(replace(source, only=("a_bb",)), RegisterOptions(), places)
    with pytest.raises(InputError, match="has no pair in the split 'test'"):
        plan(replace(source, split="test"), RegisterOptions(), places)


def test_choices_that_let_every_case_fail_are_refused_at_once(root):
    with pytest.raises(InputError, match="no network to run"):
        RegisterOptions(steps=3)
    (root / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        check(RegisterOptions(weights=str(root / "weights.safetensors")))


def test_tidying_takes_away_the_unfinished_and_nothing_else(places):
    kept = [
        places.case("a") / "registration.json",
        places.failure("b"),
        places.out / "index.html",
        places.out / ".lock",
        places.cases / ".git" / "objects",
        places.cases / ".env",
    ]
    gone = [
        places.cases / ".a.new-0123abcd" / "1Warp.nii.gz",
        places.cases / "..a.new-0123abcd.partial-stepwarp" / "file",
        places.failures / ".partial-stepwarp-1.json",
        places.out / ".partial-stepwarp-2.html",
        places.scratch / "worker" / "file",
    ]
    for path in (*kept, *gone):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    places.tidy()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    assert sorted(path.name for path in places.cases.iterdir()) == [".env", ".git", "a"]


def test_the_number_of_workers_follows_cores_and_memory(monkeypatch):
    monkeypatch.setattr(farm.limits, "processors", lambda: 8)
    brain = BatchCase("a", "run", memory_mib=2200)
    sizes = {}
    for free in (4_000, 100_000):
        monkeypatch.setattr(farm, "available_mib", lambda free=free: free)
        sizes[free] = Farm().size([brain] * 20)
    assert (sizes[4_000].workers, sizes[4_000].threads) == (1, 8)
    assert (sizes[100_000].workers, sizes[100_000].threads) == (8, 1)
    assert Farm().size([brain] * 3).workers == 3
    assert (Farm(threads=4).size([brain] * 20)).workers == 2
    assert (Farm(workers=5).size([brain] * 20)).workers == 5
    with pytest.raises(InputError, match="two places"):
        Farm(scheduler="tcp://here:1", system="slurm")


@pytest.mark.parametrize(
    ("gpu_mib", "asked", "cores", "workers"),
    [
        (80_000, {}, 16, 8),
        (80_000, {}, 64, 8),
        (80_000, {}, 4, 2),
        (80_000, {}, 1, 1),
        (80_000, {"threads": 8}, 16, 2),
        (80_000, {"workers": 12}, 16, 12),
        (8_000, {}, 16, 2),
        (8_000, {"workers": 12}, 16, 2),
        (1_000, {}, 16, 1),
    ],
)
def test_workers_share_a_gpu_as_far_as_its_memory_goes(monkeypatch, gpu_mib, asked, cores, workers):
    monkeypatch.setattr(farm.limits, "processors", lambda: cores)
    monkeypatch.setattr(farm, "available_mib", lambda: 100_000)
    size = Farm(**asked).size([BatchCase("a", "run", memory_mib=2200, gpu_mib=2000)] * 20, gpu_mib)
    assert size.workers == workers
    if workers == 1:
        assert size.gpu_mib is None, "it has all of it"
    else:
        assert size.gpu_mib >= 2000
        assert workers * (size.gpu_mib + farm._CONTEXT_MIB) <= gpu_mib
        assert f"at most {size.gpu_mib} MiB of the GPU" in str(size)


def test_a_case_on_a_gpu_is_planned_for_the_gpu_and_for_the_processor(source, places, monkeypatch):
    (on_processor, _), options = plan(source, RegisterOptions(), places), RegisterOptions.of(max_memory="1M")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("stepwarp.batch.plan.backend.name_for", lambda device: "reference")
    case, _ = plan(source, RegisterOptions(), places)
    assert on_processor.gpu_mib == 0 < case.gpu_mib
    assert case.memory_mib == on_processor.memory_mib, "it may come to that"
    limited, _ = plan(source, options, places)
    assert limited.gpu_mib == 1
    assert limited.memory_mib == on_processor.memory_mib


def test_a_gpu_that_is_not_there_is_refused_before_any_case(source, places):
    for device in ("auto", "cuda"):
        asked = Batch(source, RegisterOptions(device=device), places.out, Farm())
        with nullcontext() if device == "auto" else pytest.raises(InputError, match="torch sees no CUDA device"):
            assert asked.size(asked.plan()).gpu_mib is None
    assert Batch(source, RegisterOptions(device="cuda"), places.out, Farm(scheduler="tcp://there:1")).size([])


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({}, 1900, 2600),
        ({"preset": "fast"}, 1200, 1800),
        ({"affine_only": True}, 1000, 1550),
        ({"similarity": "mind"}, 7000, 10000),
        ({"max_memory": "1800M"}, 1800, 1800),
        ({"max_memory": "64G"}, 1900, 2600),
    ],
)
def test_a_case_is_planned_as_register_plans_it(source, places, root, changes, least, most):
    for name in "abc":
        brain = Image(torch.zeros(160, 210, 170, dtype=torch.uint8), Grid.isotropic((160, 210, 170)))
        write_volume(root / f"{name}.nii.gz", brain, overwrite=True)
    case, _ = plan(source, RegisterOptions.of(**changes, device="cpu"), places)
    assert least <= case.memory_mib <= most


def test_keys_do_not_depend_on_the_order_of_things():
    one, other = {"a": {"b": 1, "c": 2}, "d": 3}, {"d": 3, "a": {"c": 2, "b": 1}}
    assert key_of(one) == key_of(other) != key_of({"a": {"b": 1, "c": 3}, "d": 3})
    assert difference({}, {"stepwarp": "1", "inputs": {}, "settings": {}}).startswith("it was made by stepwarp None")


def start(folder, name, shift=1.0):
    """A file with a translation."""
    matrix = np.eye(4)
    matrix[0, 3] = shift
    write_affine(folder / name, Affine(matrix), overwrite=True)


def with_starts(source, pair=(), scan=()):
    """The study with a start for the pair a_b, and one for the scan b."""
    pairs = (source.manifest.pairs[0].model_copy(update={"initial": pair}), *source.manifest.pairs[1:])
    images = {**source.manifest.images, "b": source.manifest.images["b"].model_copy(update={"initial": scan})}
    return replace(source, manifest=source.manifest.model_copy(update={"pairs": pairs, "images": images}))


def starts(cases):
    return {case.id: None if case.job is None else case.job.options.initial for case in cases}


def test_each_case_has_its_own_start_or_that_of_the_batch(source, places, root):
    start(root, "ab.mat")
    for listed in (("ab.mat",), ("[ab.mat,1]", "ab.mat"), ("centres",)):
        found = tuple(each.replace("ab.mat", f"{root}/ab.mat") for each in listed)
        cases = plan(with_starts(source, listed), RegisterOptions(initial="header"), places)
        assert starts(cases) == {"a_b": found, "b_c": ("header",)}
    to_template = replace(with_starts(source, scan=("ab.mat",)), to="a")
    assert starts(plan(to_template, RegisterOptions(), places)) == {"b": (f"{root}/ab.mat",), "c": ()}


def test_a_start_counts_by_its_content_and_direction(source, places, root):
    start(root, "ab.mat")
    pretend(places, plan(with_starts(source, ("ab.mat",)), RegisterOptions(), places)[0])
    (root / "ab.mat").rename(root / "renamed.mat")
    assert plan(with_starts(source, ("renamed.mat",)), RegisterOptions(), places)[0].todo == "done"
    others = [("[renamed.mat,1]",), ("header",), ("renamed.mat", "renamed.mat"), (), ("other.mat",)]
    start(root, "other.mat", 2.0)
    for other in others:
        case = plan(with_starts(source, other), RegisterOptions(), places)[0]
        assert (case.todo, case.why, case.replaces) == ("run", "input files have changed: initial", True)


def test_a_start_that_is_not_there_fails_its_own_case(source, places, root):
    cases = plan(with_starts(source, ("none.mat",)), RegisterOptions(), places)
    assert [case.todo for case in cases] == ["failed", "run"]
    assert cases[0].why.startswith(f"{root}/none.mat: does not exist")
    with pytest.raises(InputError, match=r"none\.mat: does not exist"):
        check(RegisterOptions(initial="none.mat"))
    with pytest.raises(InputError, match="hands the start to other processes"):
        check(RegisterOptions(initial=Affine(np.eye(4))))


def test_the_start_of_a_batch_is_found_from_every_folder(source, places, root, monkeypatch):
    start(root, "all.mat")
    monkeypatch.chdir(root)
    cases = plan(source, RegisterOptions(initial=["all.mat", "[all.mat,1]"]), places)
    assert set(starts(cases).values()) == {(f"{root}/all.mat", f"[{root}/all.mat,1]")}
