import json

import pytest

from stepwarp.data.learn2reg import evaluation_cases, read_evaluation_config
from stepwarp.errors import InputError

DICE = {"name": "DSC", "metric": "dice", "labels": [1, 2]}
PAIR = {"fixed": "./imagesTr/TASK_0001_0000.nii.gz", "moving": "./imagesTr/TASK_0002_0000.nii.gz"}
CONFIG = {
    "task_name": "TASK",
    "evaluation_methods": [{"name": "LogJacDetStd", "metric": "sdlogj"}, DICE],
    "expected_shape": [8, 8, 8, 3],
    "eval_pairs": [PAIR],
    "eval_config_version": 0.2,
}


def save(folder, **changes):
    """Changes to None take a key away."""
    content = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    path = folder / "TASK_VAL_evaluation_config.json"
    path.write_text(json.dumps(content))
    return path


def pair_of(fixed, moving):
    return {"fixed": f"./imagesTr/TASK_{fixed}.nii.gz", "moving": f"./imagesTr/TASK_{moving}.nii.gz"}


def made(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("fixed", "moving", "stems"),
    [
        ("0001_0000", "0002_0000", ["disp_0001_0002", "disp_0001_0000_0002_0000"]),
        ("0001_0000", "0001_0001", ["disp_0001_0001", "disp_0001_0000_0001_0001"]),
        ("0001_0001", "0001_0000", ["disp_0001_0001_0001_0000"]),  # else those of 0002 would have the same name
        ("0001_0002", "0001_0000", ["disp_0001_0002_0001_0000"]),
        ("CT_0001", "CT_0004", ["disp_0001_0004", "disp_0001_0000_0004_0000"]),
    ],
)
def test_a_prediction_is_called_as_the_script_calls_it(tmp_path, fixed, moving, stems):
    (pair,) = read_evaluation_config(save(tmp_path, eval_pairs=[pair_of(fixed, moving)])).pairs
    assert list(pair.predictions) == stems


def test_files_lie_beside_the_images(tmp_path):
    methods = [DICE, {"name": "TRE", "metric": "tre", "dest": "keypoints"}]
    methods += [{"name": "TRE_lm", "metric": "tre", "dest": "landmarks"}]
    pairs = [pair_of("0001_0002", "0001_0000")]
    config = read_evaluation_config(
        save(tmp_path, evaluation_methods=methods, eval_pairs=pairs, masked_evaluation=True)
    )
    ends = ("TASK_0001_0002", "TASK_0001_0000")
    files = [f"{folder}/{end}.nii.gz" for folder in ("imagesTr", "labelsTr", "landmarksTr") for end in ends]
    made(tmp_path, *files, *(f"keypoints02Tr/{end}.csv" for end in ends))
    (case,) = evaluation_cases(config, tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in case.files] == [
        *files[:4],
        *(f"keypoints02Tr/{end}.csv" for end in ends),
        *files[4:],
    ]
    assert case.mask is None
    made(tmp_path, "masksTr/TASK_0001_0002.nii.gz")
    assert evaluation_cases(config, tmp_path)[0].mask == tmp_path / "masksTr" / "TASK_0001_0002.nii.gz"


def test_the_first_form_is_a_table_and_names_no_modality(tmp_path):
    methods = {"sdlogj": True, "dice": [1, 2], "dice_secret": [3], "tre": True, "hd95": False}
    pair = {"fixed": "./CT/imagesTr/TASK_CT_0001.nii.gz", "moving": "./CT/imagesTr/TASK_CT_0004.nii.gz"}
    config = read_evaluation_config(save(tmp_path, evaluation_methods=methods, eval_pairs=[pair]))
    assert [(m.name, m.metric, m.labels) for m in config.measures] == [
        ("LogJacDetStd", "sdlogj", ()),
        ("DiceCoefficient", "dice", (1, 2)),
        ("DiceCoefficient_Secret", "dice", (3,)),
        ("TRE", "tre", ()),
    ]
    made(tmp_path, *(f"CT/imagesTr/TASK_CT_{n}_0000.nii.gz" for n in ("0001", "0004")))
    made(tmp_path, *(f"CT/labelsTr/TASK_CT_{n}.nii.gz" for n in ("0001", "0004")))
    made(tmp_path, *(f"CT/landmarksTr/TASK_CT_{n}.csv" for n in ("0001", "0004")))
    (case,) = evaluation_cases(config, tmp_path)
    assert case.images[0].name == "TASK_CT_0001_0000.nii.gz"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task_name": None}, "task_name: is missing"),
        ({"eval_pairs": []}, "eval_pairs: .* at least 1 item"),
        ({"expected_shape": [8, 8]}, "expected_shape"),
        ({"evaluation_methods": [DICE | {"labels": []}]}, r"evaluation_methods\.0: 'DSC' \(dice\) lists no labels"),
        ({"evaluation_methods": [{"name": "a", "metric": "tre"}]}, r"'a' \(tre\) has no dest"),
        ({"evaluation_methods": [DICE, DICE]}, "the measure 'DSC' is there twice"),
        ({"evaluation_methods": {"dice": True}}, r"'DiceCoefficient' \(dice\) lists no labels"),
        ({"evaluation_methods": [{"name": "a", "metric": "tre", "dest": "../points"}]}, "dest"),
        ({"eval_pairs": [PAIR | {"fixed": "scan.nii.gz"}]}, r"eval_pairs\.0\.fixed: 'scan.nii.gz' is no image of the"),
        ({"eval_pairs": [PAIR | {"fixed": "../imagesTr/A_0001_0000.nii.gz"}]}, "may leave the data root"),
        ({"eval_pairs": [PAIR | {"moving": "/data/imagesTr/A_0001_0000.nii.gz"}]}, "is absolute"),
        ({"evaluation_methods": None, "numTraining": 3}, "lists a dataset .* TASK_VAL_evaluation_config.json"),
    ],
)
def test_what_is_no_config_is_refused_with_its_name_and_the_place(tmp_path, changes, problem):
    with pytest.raises(InputError, match=rf"TASK_VAL_evaluation_config\.json: .*{problem}"):
        read_evaluation_config(save(tmp_path, **changes))


def test_json_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"a\.json: is no evaluation config of Learn2Reg"):
        read_evaluation_config(tmp_path / "a.json")


def test_missing_files_are_counted_and_the_root_is_named(tmp_path):
    config = read_evaluation_config(save(tmp_path))
    made(tmp_path, "imagesTr/TASK_0001_0000.nii.gz")
    with pytest.raises(InputError, match=r"imagesTr/TASK_0002_0000.nii.gz: does not exist.* 3 of 4 files.*--data"):
        evaluation_cases(config, tmp_path)


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    config = read_evaluation_config(save(tmp_path))
    outside, root = tmp_path / "elsewhere.nii.gz", tmp_path / "root"
    outside.touch()
    (root / "imagesTr").mkdir(parents=True)
    (root / "imagesTr" / "TASK_0001_0000.nii.gz").symlink_to(outside)
    with pytest.raises(InputError, match="a link that leaves the data root"):
        evaluation_cases(config, root)
