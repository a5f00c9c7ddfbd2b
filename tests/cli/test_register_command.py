import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.errors import RegistrationError
from stepwarp.files import read_image
from stepwarp.layout import FURTHER_MOVED, MASKS, NAMES
from stepwarp.workflow.trace import claimed_trace


def register(run, files, out, *options):
    return run("register", "--fixed", files[0], "--moving", files[1], "--out", out, *options)


def test_defaults_reach_the_workflow(run, fake_register, two_files, tmp_path):
    assert register(run, two_files, tmp_path / "out").code == 0
    assert fake_register.saved == [(tmp_path / "out", False)]
    assert fake_register.calls == [
        {
            "fixed": [two_files[0]],
            "moving": [two_files[1]],
            "preset": "default",
            "set": (),
            "affine_only": False,
            "transform": "affine",
            "initial": (),
            "similarity": "auto",
            "pair_weight": (),
            "fixed_mask": None,
            "moving_mask": None,
            "device": "auto",
            "threads": None,
            "max_memory": None,
            "time_budget": None,
            "weights": None,
            "steps": None,
            "refine": True,
            "escalate": True,
            "strip": None,
            "structures": False,
            "trace": False,
            "trust": (),
            "outside": None,
            "interpolation": "linear",
        }
    ]


def test_options_reach_the_workflow(run, fake_register, two_files, tmp_path):
    mask = two_files[0]
    text = f"--fixed-mask {mask} --moving-mask {mask} --preset best --affine-only --transform rigid --similarity mi"
    text += " --device cpu --threads 3 --max-memory 2G --time-budget 12.5 --trust sform --outside -1000 --force"
    text += " --strip --structures --interpolation cubic"
    text += " --no-escalate --set levels.0.iterations=3 --set radius=3 --initial warp.nii.gz --initial [a.mat,1]"
    assert register(run, two_files, tmp_path / "out", *text.split()).code == 0
    assert fake_register.saved == [(tmp_path / "out", True)]
    assert fake_register.calls[0] | {"fixed": None, "moving": None} == {
        "fixed": None,
        "moving": None,
        "preset": "best",
        "set": ("levels.0.iterations=3", "radius=3"),
        "affine_only": True,
        "transform": "rigid",
        "initial": ("warp.nii.gz", "[a.mat,1]"),
        "similarity": "mi",
        "pair_weight": (),
        "fixed_mask": mask,
        "moving_mask": mask,
        "device": "cpu",
        "threads": 3,
        "max_memory": 2 * 2**30,
        "time_budget": 12.5,
        "weights": None,
        "steps": None,
        "refine": True,
        "escalate": False,
        "strip": True,
        "structures": True,
        "trace": False,
        "trust": ("sform",),
        "outside": -1000.0,
        "interpolation": "cubic",
    }


def test_several_pairs_reach_the_workflow_in_their_order(run, fake_register, two_files, tmp_path):
    a, b = two_files
    further = fake_register.record["measures"]["similarity_affine"]
    fake_register.record["measures"] = fake_register.record["measures"] | {
        "further": {"pair 2": {"similarity_affine": further}}
    }
    options = f"--moving {a} --fixed {b} --similarity lncc --similarity auto --pair-weight 1 --pair-weight .5"
    result = register(run, two_files, tmp_path / "out", *options.split())
    assert result.code == 0
    several = {"fixed": [a, b], "moving": [b, a], "similarity": ("lncc", "auto"), "pair_weight": (1.0, 0.5)}
    assert several.items() <= fake_register.calls[0].items()
    assert "pair 2              local correlation 0.300 after the affine\n" in result.out


def test_a_batch_has_one_pair_of_images_a_case(run, tmp_path):
    (tmp_path / "study.json").write_text('{"name": "study"}')
    options = ("--similarity", "lncc", "--similarity", "mi", "--out", tmp_path / "out")
    result = run("batch", tmp_path / "study.json", *options)
    assert result.code == 3
    assert "--similarity is given 2 times for 1 pair of images" in result.err


def test_a_former_name_of_an_option_is_understood_and_said(run, fake_register, two_files, tmp_path):
    result = register(run, two_files, tmp_path / "out", "--no-escalation")
    assert "--no-escalation is now called --no-escalate" in result.err
    assert fake_register.calls[0]["escalate"] is False


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--preset", "fats"), "preset 'fats' does not exist; did you mean 'fast'?"),
        (("--preset", "absent.yaml"), "absent.yaml: does not exist"),
        (("--preset", "{other}"), "other.yaml: unknown key 'levles'; did you mean 'deformable.levels'?"),
        (("--set", "levles.0.step=1"), "unknown key 'levles'; did you mean 'deformable.levels'?"),
        (("--set", "deformable.levels.0.iteration=3"), "unknown key 'iteration'; did you mean 'iterations'?"),
        (("--set", "levels.9.step=1"), "'9' is no place in a list of 4"),
        (("--set", "radius=99"), "deformable.radius: Input should be less than or equal to 8"),
    ],
)
@pytest.mark.parametrize("command", ["register", "batch"])
def test_a_preset_that_cannot_be_is_refused_before_any_work(
    run, fake_register, two_files, tmp_path, command, options, text
):
    (tmp_path / "other.yaml").write_text("levles: []")
    options = [option.format(other=tmp_path / "other.yaml") for option in options]
    if command == "register":
        result = register(run, two_files, tmp_path / "out", *options)
    else:
        result = run("batch", "absent.json", "--out", tmp_path / "out", *options)
    assert result.code == 3
    assert text in result.err
    assert not fake_register.calls


def test_options_of_the_network_reach_the_workflow(run, fake_register, two_files, tmp_path):
    options = f"--weights brain-t1 --steps 5 --no-refine --trace {tmp_path / 'way'} --force"
    assert register(run, two_files, tmp_path / "out", *options.split()).code == 0
    network = {"weights": "brain-t1", "steps": 5, "refine": False, "trace": True}
    assert network.items() <= fake_register.calls[0].items()
    assert fake_register.traced == [(tmp_path / "way", True)]


@pytest.mark.parametrize("name", ["trace.json", "step01_Warp.nii.gz"])
def test_an_existing_trace_is_found_before_any_work(run, fake_register, two_files, tmp_path, name):
    (tmp_path / name).write_text("precious")
    result = register(run, two_files, tmp_path / "out", "--trace", tmp_path)
    assert result.code == 4
    assert f"{tmp_path / name}: exists already. Choose another --trace" in result.err
    result = register(run, two_files, tmp_path / "out", "--trace", "way.nii.gz")
    assert result.code == 3
    assert "way.nii.gz: --trace is a folder" in result.err
    assert not fake_register.calls


def test_whatever_can_be_known_of_a_trace_is_known_before_any_work(run, fake_register, two_files, tmp_path):
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "step07_Warp.nii.gz").write_text("precious")
    for trace, reason in ((foreign, "is there already, and no trace.json"), (tmp_path / ("x" * 300), "too long")):
        result = register(run, two_files, tmp_path / "out", "--trace", trace, "--force")
        assert result.code == 4
        assert reason in result.err
    with claimed_trace(tmp_path / "way", False):
        result = register(run, two_files, tmp_path / "out", "--trace", tmp_path / "way")
    assert result.code == 4
    assert "another trace is writing into it" in result.err
    assert not fake_register.calls
    assert (foreign / "step07_Warp.nii.gz").read_text() == "precious"


def test_a_trace_within_a_new_result_does_not_make_its_folder_early(run, fake_register, two_files, tmp_path):
    fake_register.error = RegistrationError("broke down")
    assert register(run, two_files, tmp_path / "out", "--trace", tmp_path / "out" / "trace").code == 6
    assert sorted(tmp_path.iterdir()) == sorted(two_files)


@pytest.mark.parametrize(("used", "words"), [(True, "descent, 1 step\n"), (False, "descent, not used\n")])
def test_summary_names_the_network(run, fake_register, two_files, tmp_path, used, words):
    fake_register.record["network"] = {"name": "descent", "steps": 1, "used": used}
    assert words in register(run, two_files, tmp_path / "out").out


def test_summary_tells_what_a_user_wants_to_know(run, fake_register, two_files, tmp_path):
    result = register(run, two_files, tmp_path / "out dir")
    for text in (
        "pass",
        "no voxel folds",
        "0.300 after the affine, 0.900 at the end",
        "folds               0 voxels",
        "corner folds        2 voxels",
        "9.8 (affine 2.5",
        "antsApplyTransforms -t 1Warp.nii.gz -t 0GenericAffine.mat --default-value -1000",
    ):
        assert text in result.out
    assert str(tmp_path / "out dir" / "report.html") in result.out
    assert f"stepwarp apply -t '{tmp_path / 'out dir'}'" in result.out


def test_summary_of_an_affine(run, fake_register, two_files, tmp_path):
    fake_register.record["measures"] = {"similarity_affine": {"lncc": 0.3, "ncc": 0.6, "mutual_information": 0.1}}
    result = register(run, two_files, tmp_path / "out")
    assert result.code == 0
    assert "0.300 after the affine\n" in result.out
    assert "folds  " not in result.out


def test_progress_goes_to_stderr(run, fake_register, two_files, tmp_path):
    result = register(run, two_files, tmp_path / "out")
    assert result.err == "affine\n"


def test_json_is_the_record_and_nothing_else(run, fake_register, two_files, tmp_path):
    result = register(run, two_files, tmp_path / "out", "--json")
    assert json.loads(result.out) == fake_register.record
    assert result.err == ""


def test_verdict_fail_writes_everything_and_is_7(run, fake_register, two_files, tmp_path):
    fake_register.record["verdict"]["status"] = "fail"
    assert register(run, two_files, tmp_path / "out").code == 7
    assert register(run, two_files, tmp_path / "out", "--json").code == 7
    assert len(fake_register.saved) == 2


@pytest.mark.parametrize("option", ["--fixed", "--moving", "--fixed-mask", "--moving-mask"])
def test_missing_input_is_named_before_any_work(run, fake_register, two_files, tmp_path, option):
    result = register(run, two_files, tmp_path / "out", option, tmp_path / "absent.nii.gz")
    assert result.code == 3
    assert result.err == f"stepwarp: {tmp_path}/absent.nii.gz: does not exist. Check the name and the folder.\n"
    assert not fake_register.calls


def test_folder_as_input_is_refused(run, fake_register, two_files, tmp_path):
    result = register(run, [tmp_path, two_files[1]], tmp_path / "out")
    assert result.code == 3
    assert f"{tmp_path}: is a folder" in result.err


@pytest.mark.parametrize("name", ["T1.nii.gz", "T1.nii", "T1.MGZ", ".nii.gz"])
def test_out_named_like_an_image_is_refused(run, fake_register, two_files, tmp_path, name):
    result = register(run, two_files, tmp_path / name)
    assert result.code == 3
    assert f"{tmp_path / name}: --out is a folder" in result.err
    assert f"--out {tmp_path / ('T1' if name[0] == 'T' else 'result')}." in result.err
    assert not fake_register.calls


@pytest.mark.parametrize("name", NAMES)
def test_existing_results_are_kept_unless_forced(run, fake_register, two_files, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    result = register(run, two_files, out)
    assert result.code == 4
    assert f"{out / name}: exists already" in result.err
    assert "--force" in result.err
    assert not fake_register.calls


@pytest.mark.parametrize("name", NAMES)
def test_force_replaces_what_a_record_says_is_ours_and_nothing_else(run, fake_register, two_files, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    result = register(run, two_files, out, "--force")
    assert result.code == 4
    assert f"{out / name}: is there already" in result.err
    assert (out / name).read_text() == "precious"
    assert not fake_register.calls
    (out / "registration.json").write_text(json.dumps({"outputs": {name: "digest"}}))
    assert register(run, two_files, out, "--force").code == 0


def test_file_where_the_folder_should_be(run, fake_register, two_files, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        result = register(run, two_files, out)
        assert result.code == 4
        assert f"{tmp_path / 'file'}: is a file" in result.err


def test_permissions_are_checked_first(run, fake_register, two_files, tmp_path, monkeypatch):
    # For root everything is permitted.
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    result = register(run, two_files, tmp_path / "out")
    assert result.code == 4
    assert f"{tmp_path}: may not be written to" in result.err
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    result = register(run, two_files, tmp_path / "out")
    assert result.code == 3
    assert result.err == f"stepwarp: {two_files[0]}: may not be read. Change its permissions.\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_cuda_is_said(run, two_files, tmp_path):
    result = register(run, two_files, tmp_path / "out", "--device", "cuda")
    assert result.code == 3
    assert "CUDA" in result.err


def test_unusable_image_is_one_line(run, two_files, tmp_path):
    two_files[0].write_text("")
    result = register(run, two_files, tmp_path / "out", "--json")
    assert result.code == 3
    assert result.out == ""
    assert result.err == f"stepwarp: {two_files[0]}: is empty. Fetch or write it again.\n"


@pytest.fixture(scope="module")
def small_pair(tmp_path_factory):
    """Two views of a blurred random object, 3 mm apart."""
    folder = tmp_path_factory.mktemp("pair")
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((32, 32, 32)), 2)
    ball = np.linalg.norm(np.indices(noise.shape) - 15.5, axis=0) < 11
    values = np.float32(ball * (5 + 20 * noise).clip(0.5))
    paths = []
    for name, shift in (("fixed", 0), ("moving", 1)):
        affine = nib.affines.from_matvec(3 * np.eye(3), (-46, -46, -46 + 3 * shift))
        paths.append(folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(values, affine), paths[-1])
    return paths


def test_absent_weights_are_one_line(run, small_pair, tmp_path):
    result = register(run, small_pair, tmp_path / "out", "--weights", "brain-t99")
    assert result.code == 3
    assert result.err.splitlines()[-1].startswith("stepwarp: brain-t99: is no file, and no weights of that name")


def test_two_files_become_results_that_apply_understands(run, small_pair, tmp_path):
    out = tmp_path / "out"
    options = ("--preset", "fast", "--time-budget", "10", "--json", "--trace", tmp_path / "trace")
    result = register(run, small_pair, out, *options)
    assert result.code == 0, result.err
    steps = json.loads((tmp_path / "trace" / "trace.json").read_text())
    assert [step["kind"] for step in steps] == ["affine", *["deformable"] * (len(steps) - 1)]
    assert all((tmp_path / "trace" / step["file"]).is_file() for step in steps[1:])
    assert "Step by step" in (out / "report.html").read_text()
    assert json.loads(result.out) == json.loads((out / "registration.json").read_text())
    assert {path.name for path in out.iterdir()} == set(NAMES) - set(MASKS) - set(FURTHER_MOVED)
    applied = run("apply", "-t", out, "-i", small_pair[1], "-o", tmp_path / "moved.nii.gz")
    assert applied.code == 0, applied.err
    assert "moving to fixed" in applied.out
    moved, expected = read_image(tmp_path / "moved.nii.gz"), read_image(out / "Warped.nii.gz")
    assert (moved.data - expected.data).abs().max() < 1e-3 * expected.data.max()
    assert result.err == ""


class Plan:
    left_out = ("the level of 1 mm was left out: it needs 5 GiB",)

    def __str__(self):
        return "memory planned: affine 1 GiB"


def test_what_does_not_fit_into_memory_is_told_and_the_plan_on_demand(run, fake_register, two_files, tmp_path):
    fake_register.plans = [Plan()]
    quiet = register(run, two_files, tmp_path / "out", "--max-memory", "4G", "--json")
    loud = register(run, two_files, tmp_path / "out", "--verbose")
    assert fake_register.calls[0]["max_memory"] == 4 * 2**30
    assert "stepwarp: the level of 1 mm was left out: it needs 5 GiB" in quiet.err
    assert "memory planned" not in quiet.err
    assert "stepwarp: memory planned: affine 1 GiB" in loud.err


def test_an_amount_of_memory_without_a_unit_is_refused(run, fake_register, two_files, tmp_path):
    result = register(run, two_files, tmp_path / "out", "--max-memory", "4")
    assert result.code == 3
    assert "such as 6G or 800M" in result.err
    assert not fake_register.calls
