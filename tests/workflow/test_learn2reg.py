"""Made tasks of Learn2Reg: the challenge's numbers against its script, restated, and ours against `evaluate_files`."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, zoom

from stepwarp.errors import InputError
from stepwarp.evaluation import learn2reg
from stepwarp.evaluation.regularity import non_diffeomorphic_volume
from stepwarp.geometry import DisplacementField, Grid
from stepwarp.workflow.evaluate import evaluate_files
from stepwarp.workflow.learn2reg import evaluate_learn2reg

SHAPE, SPACING = (20, 18, 16), (1.5, 1.2, 2.0)
#: Fixed and moving image of each pair; the last one needs all four numbers in its prediction's name.
PAIRS = [("0001_0000", "0002_0000"), ("0002_0000", "0003_0000"), ("0004_0001", "0004_0000")]
IDS = [f"{fixed}<--{moving}" for fixed, moving in PAIRS]
METHODS = [
    {"name": "LogJacDetStd", "metric": "sdlogj"},
    {"name": "DSC", "metric": "dice", "labels": [1, 2, 3]},
    {"name": "HD95", "metric": "hd95", "labels": [1, 2, 3]},
    {"name": "TRE_kp", "metric": "tre", "dest": "keypoints"},
]


def smooth(seed, shape, sigma=2.0):
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0,) * (len(shape) - 3) + (sigma,) * 3)


def displacement(seed, longest=1.5, shape=SHAPE):
    noise = smooth(seed, (3, *shape))
    return (noise * longest / np.abs(noise).max()).astype(np.float32)


class Task:
    """A folder of the challenge, and one of predictions, whose displacements are `u` (I, J, K, 3) by pair.

    pairs: how many of them the config lists."""

    def __init__(self, folder, pairs=3, **changes):
        self.folder, self.predictions = folder, folder / "predictions"
        self.predictions.mkdir()
        self.affine = np.diag([*SPACING, 1.0])
        for n, name in enumerate(dict.fromkeys(name for pair in PAIRS for name in pair)):
            self.save("imagesTr", name, 10 * smooth(n, SHAPE).astype(np.float32) + 5)
            self.save("labelsTr", name, smooth(n + 50, (4, *SHAPE), 3.0).argmax(0).astype(np.uint8))
            self.save("masksTr", name, (np.indices(SHAPE).sum(0) % 7 > 1).astype(np.uint8))
            points = np.random.default_rng(n).uniform(2, 12, (9, 3))
            for where in ("keypointsTr", "keypoints01Tr"):
                (folder / where).mkdir(exist_ok=True)
                np.savetxt(self.path(where, name, ".csv"), points, delimiter=",")
        content = {
            "task_name": "TASK",
            "evaluation_methods": METHODS,
            "expected_shape": [*SHAPE, 3],
            "eval_pairs": [
                {side: f"./imagesTr/TASK_{name}.nii.gz" for side, name in zip(("fixed", "moving"), pair, strict=True)}
                for pair in PAIRS[:pairs]
            ],
        }
        self.config = folder / "TASK_VAL_evaluation_config.json"
        self.config.write_text(json.dumps(content | changes))
        self.u = [np.moveaxis(displacement(n), 0, -1) for n in range(3)]
        self.predict("disp_0001_0002.nii.gz", self.u[0])
        self.predict("disp_0002_0003.npz", self.u[1])
        self.predict("disp_0004_0001_0004_0000.nii.gz", self.u[2])

    def path(self, where, name, suffix=".nii.gz"):
        return self.folder / where / f"TASK_{name}{suffix}"

    def save(self, where, name, values):
        (self.folder / where).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(values, self.affine), self.path(where, name))

    def predict(self, name, values):
        if name.endswith(".npz"):
            np.savez_compressed(self.predictions / name, values)
        else:
            nib.save(nib.Nifti1Image(values, np.eye(4)), self.predictions / name)

    def values(self, where, name):
        return np.asarray(nib.load(self.path(where, name)).dataobj)

    def points(self, n):
        where = "keypoints01Tr" if n == 2 else "keypointsTr"
        return [np.loadtxt(self.path(where, name, ".csv"), delimiter=",") for name in PAIRS[n]]

    def scripted(self, script, n):
        """Dice, TRE, determinants, their spread and folds of a pair, by the script restated."""
        labels = [self.values("labelsTr", name) for name in PAIRS[n]]
        return script(self.u[n].astype(float), *labels, *self.points(n), SPACING)

    def evaluate(self, **options):
        return evaluate_learn2reg(self.config, self.predictions, **options)


@pytest.fixture
def task(tmp_path):
    """One to be changed."""
    return Task(tmp_path)


@pytest.fixture
def small_task(tmp_path):
    """One to be changed, of the first pair alone."""
    return Task(tmp_path, pairs=1)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A task, and what is said of it."""
    task = Task(tmp_path_factory.mktemp("task"))
    return task, task.evaluate()


def test_the_challenges_numbers_are_those_of_its_script(judged, learn2reg_script):
    task, result = judged
    assert result["task"] == "TASK"
    assert [row["pair"] for row in result["pairs"]] == IDS
    expected = {"DSC": [], "TRE_kp": [], "LogJacDetStd": [], "num_foldings": []}
    for n, row in enumerate(result["pairs"]):
        dice, tre, _, spread, folds = task.scripted(learn2reg_script, n)
        for name, value in zip(expected, (dice, tre.mean(), spread, folds), strict=True):
            assert row["learn2reg"][name] == pytest.approx(value, rel=1e-5)
            expected[name].append(value)
    for name, values in expected.items():
        found = result["aggregates"][name]["learn2reg"]
        assert found["mean"] == pytest.approx(np.mean(values), rel=1e-5)
        assert found["std"] == pytest.approx(np.std(values), rel=1e-4)
        assert (found["30"], found["70"]) == pytest.approx(np.quantile(values, (0.3, 0.7)), rel=1e-5)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_ours_beside_them_are_those_of_evaluate(judged):
    task, result = judged
    for n, row in enumerate(result["pairs"]):
        (fixed, moving), where = PAIRS[n], "keypoints01Tr" if n == 2 else "keypointsTr"
        alone = evaluate_files(
            *(task.path("imagesTr", name) for name in PAIRS[n]),
            [row["prediction"]],
            fixed_labels=task.path("labelsTr", fixed),
            moving_labels=task.path("labelsTr", moving),
            fixed_landmarks=task.path(where, fixed, ".csv"),
            moving_landmarks=task.path(where, moving, ".csv"),
            space="voxel",
        )
        assert row["stepwarp"] == {
            "LogJacDetStd": alone["std_log_jacobian"],
            "num_foldings": alone["folds"]["count"],
            "DSC": pytest.approx(alone["mean_dice"], rel=1e-5),
            "HD95": pytest.approx(alone["mean_hd95_mm"], rel=1e-5),
            "TRE_kp": pytest.approx(alone["tre_mm"]["mean"], rel=1e-5),
        }
        assert row["learn2reg"]["HD95"] != row["stepwarp"]["HD95"]


@pytest.mark.parametrize("name", ["disp_0001_0002.npz", "disp_0001_0000_0002_0000.nii.gz"])
@pytest.mark.parametrize("half", [False, True])
def test_either_layout_of_all_or_half_the_voxels(small_task, learn2reg_script, name, half):
    task = small_task
    u = displacement(7, shape=tuple(n // 2 for n in SHAPE) if half else SHAPE).astype(np.float16)
    (task.predictions / "disp_0001_0002.nii.gz").unlink()
    task.predict(name, u if name.endswith(".npz") else u.astype(np.float32))
    u = u.astype(np.float32)
    enlarged = np.stack([zoom(component, 2, order=2) for component in u]) if half else u
    task.u[0] = np.moveaxis(enlarged, 0, -1)
    row = task.evaluate()["pairs"][0]
    dice, tre, _, spread, _ = task.scripted(learn2reg_script, 0)
    assert row["prediction"].endswith(name)
    found = [row["learn2reg"][key] for key in ("DSC", "TRE_kp", "LogJacDetStd")]
    assert found == pytest.approx([dice, tre.mean(), spread], rel=1e-4)


def test_labels_of_the_config_alone_are_scored_by_both(tmp_path):
    methods = [METHODS[1] | {"labels": [2]}, METHODS[2] | {"labels": [1, 3]}]
    task = Task(tmp_path, pairs=1, evaluation_methods=methods)
    row = task.evaluate()["pairs"][0]
    fixed, moving = (task.values("labelsTr", name) for name in PAIRS[0])
    warped = learn2reg.warped_labels(moving, np.moveaxis(task.u[0], -1, 0))
    both = 2 * ((fixed == 2) & (warped == 2)).sum() / ((fixed == 2).sum() + (warped == 2).sum())
    assert row["learn2reg"]["DSC"] == pytest.approx(both, rel=1e-5)
    assert row["stepwarp"]["DSC"] == pytest.approx(both, abs=0.02)  # half a voxel more at the faces
    assert row["learn2reg"]["HD95"] == pytest.approx(np.mean(learn2reg.hd95(fixed, moving, warped, [1, 3])), rel=1e-5)
    assert set(row["learn2reg"]) == set(row["stepwarp"]) == {"DSC", "HD95"}


def test_masks_count_where_they_are_asked_for_and_there(tmp_path, learn2reg_script):
    task = Task(tmp_path, masked_evaluation=True, evaluation_methods=METHODS[:1])
    task.path("masksTr", "0002_0000").unlink()
    result = task.evaluate()
    for n, row in enumerate(result["pairs"]):
        determinant = task.scripted(learn2reg_script, n)[2]
        inside = np.ones(SHAPE) if n == 1 else task.values("masksTr", PAIRS[n][0])
        spread = np.log(determinant + 3)[inside[2:-2, 2:-2, 2:-2] == 1].std()
        assert row["learn2reg"]["LogJacDetStd"] == pytest.approx(spread, rel=1e-5)
    (note,) = result["notes"]
    assert f"no mask of the fixed image of {IDS[1]}" in note


def test_what_is_missing_or_of_the_wrong_shape_is_a_row_that_says_so(task, judged):
    (task.predictions / "disp_0001_0002.nii.gz").unlink()
    task.predict("disp_0002_0003.npz", np.zeros((3, 20, 18, 15), np.float32))
    result = task.evaluate()
    first, second, third = result["pairs"]
    assert "holds no disp_0001_0002 or disp_0001_0000_0002_0000, .npz or .nii.gz" in first["reason"]
    assert "20 x 18 x 15 numbers where the fixed image" in second["reason"]
    assert second["prediction"].endswith("disp_0002_0003.npz")
    assert third["learn2reg"] == judged[1]["pairs"][2]["learn2reg"]
    assert result["aggregates"]["DSC"]["learn2reg"]["mean"] == third["learn2reg"]["DSC"]
    assert "2 of 3 pairs have no result" in result["notes"][0]


def test_without_any_prediction_there_are_rows_and_no_aggregates(task):
    for path in task.predictions.iterdir():
        path.unlink()
    result = task.evaluate()
    assert all("reason" in row for row in result["pairs"])
    assert set(map(str, result["aggregates"].values())) == {"{}"}


def test_headers_beside_the_images_have_no_influence(task, judged):
    values = task.values("labelsTr", "0001_0000")
    task.affine = np.diag([-3.0, 3.0, 1.0, 1.0])
    task.save("labelsTr", "0001_0000", values)
    for row, expected in zip(task.evaluate()["pairs"], judged[1]["pairs"], strict=True):
        assert (row["learn2reg"], row["stepwarp"]) == (expected["learn2reg"], expected["stepwarp"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.save("labelsTr", "0001_0000", np.ones((20, 18, 15), np.uint8)), "labelsTr.* its image"),
        (lambda t: t.path("keypointsTr", "0002_0000", ".csv").write_text("1,2,3\n"), "lists 9 points, and .* 1; both"),
        (lambda t: t.path("imagesTr", "0001_0000").write_bytes(b"nonsense"), "imagesTr/TASK_0001_0000.nii.gz"),
        (lambda t: t.save("imagesTr", "0001_0000", smooth(0, (10, 18, 16))), "the config expects .* 20 x 18 x 16"),
    ],
)
def test_files_of_the_challenge_that_do_not_fit_stop_their_pair_alone(task, change, reason):
    change(task)
    first, *_, last = task.evaluate()["pairs"]
    assert re.search(reason, first["reason"])
    assert "reason" not in last


def test_a_label_that_the_warp_loses_is_infinitely_far_away(small_task):
    task = small_task
    away = np.zeros((*SHAPE, 3), np.float32)
    away[..., 0] = 100
    task.predict("disp_0001_0002.nii.gz", away)
    result = task.evaluate()
    row = result["pairs"][0]
    assert (row["learn2reg"]["DSC"], row["learn2reg"]["HD95"]) == (0, None)
    assert row["stepwarp"]["HD95"] == pytest.approx(np.linalg.norm((np.array(SHAPE) - 1) * SPACING), rel=1e-5)
    assert result["aggregates"]["HD95"]["learn2reg"]["mean"] is None
    assert f"a label is lost in {IDS[0]}" in result["notes"][0]


def test_lumir_has_maps_of_landmarks_and_the_volume_that_folds(tmp_path):
    methods = [{"name": "NDV", "metric": "ndv"}, {"name": "TRE_lm", "metric": "tre", "dest": "landmarks"}]
    task = Task(tmp_path, evaluation_methods=methods, masked_evaluation=False)
    marks = np.zeros((2, *SHAPE), np.int16)
    marks[0, 5:8, 5:8, 5:8] = marks[1, 8:11, 5:8, 9:12] = 1
    marks[0, 12, 12, 10] = marks[1, 12, 12, 10] = 2
    for name in {name for pair in PAIRS for name in pair}:
        task.save("landmarksTr", name, marks[int(name == "0001_0000")])
    task.predict("disp_0001_0002.nii.gz", np.zeros((*SHAPE, 3), np.float32))
    folding = 20 * task.u[1]
    task.predict("disp_0002_0003.npz", folding)
    still, folded, _ = task.evaluate()["pairs"]
    assert still["learn2reg"] == {"NDV": 0, "TRE_lm": 2.5}  # voxels: 3 and 4 apart, and 0
    millimetres = np.linalg.norm([3 * SPACING[0], 4 * SPACING[2]]) / 2
    assert still["stepwarp"] == {"NDV": 0, "TRE_lm": pytest.approx(millimetres, rel=1e-5)}
    inside = np.pad(task.values("imagesTr", PAIRS[1][1])[1:-1, 1:-1, 1:-1] > 0, 1)  # the moving image's
    field = DisplacementField(torch.from_numpy(folding).movedim(-1, 0)[None], Grid.isotropic(SHAPE))
    volume = non_diffeomorphic_volume(field, torch.from_numpy(inside))
    assert folded["learn2reg"]["NDV"] == pytest.approx(volume.percent, rel=1e-5)
    assert folded["stepwarp"]["NDV"] != pytest.approx(volume.percent, rel=1e-2)


def test_a_metric_that_is_not_known_is_left_out_and_said(tmp_path):
    task = Task(tmp_path, pairs=1, evaluation_methods=[METHODS[0], {"name": "Time", "metric": "seconds"}])
    result = task.evaluate()
    assert [column["name"] for column in result["measures"]] == ["LogJacDetStd", "num_foldings"]
    assert result["notes"] == ["'Time' is left out: there is no metric 'seconds' here, nor in the script"]


def test_folders_that_are_none_are_named_with_their_option(task, tmp_path):
    with pytest.raises(InputError, match=r"absent: is no folder.*--predictions"):
        evaluate_learn2reg(task.config, tmp_path / "absent")
    with pytest.raises(InputError, match=r"absent: is no folder.*--data"):
        task.evaluate(data=tmp_path / "absent")


def test_the_data_may_lie_elsewhere_and_pairs_are_reported(task, tmp_path):
    steps = []
    task.config = task.config.rename(tmp_path / "predictions" / "config.json")
    with pytest.raises(InputError, match=r"does not exist.*--data"):
        task.evaluate()
    result = task.evaluate(data=tmp_path, progress=steps.append)
    assert not any("reason" in row for row in result["pairs"])
    assert [(step.stage, step.done, step.total) for step in steps] == [("pairs", n, 3) for n in range(4)]
