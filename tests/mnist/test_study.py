import json
import re

import numpy as np
import pytest

from stepwarp.errors import InputError, OutputError
from stepwarp.mnist import store
from stepwarp.mnist.config import read_settings
from stepwarp.mnist.models import MODELS, TIED
from stepwarp.mnist.page import write_report
from stepwarp.mnist.probing import PROBES
from stepwarp.mnist.study import MnistStudy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, settings, digits, one_thread):
    """A study from the first network to the page, on strokes: itself, its summary, and when its files were written."""
    study = MnistStudy.begun(tmp_path_factory.mktemp("study") / "mnist", settings, False, digits)
    study.train()
    study.probe()
    study.evaluate()
    return study, write_report(study), written(study)


def written(study):
    parts = (store.MODELS, store.PROBES, store.RUNS)
    return {path.name: path.stat().st_mtime_ns for part in parts for path in (study.out / part).iterdir()}


def test_every_network_and_every_probe_has_a_file_of_its_own(whole, settings):
    names = whole[2]
    assert {f"{letter}_seed{seed}.npz" for letter in PROBES for seed in (0, 1)} <= set(names)
    assert {"fives_seed0.safetensors", "one_step_seed1.safetensors", "classifier.safetensors"} <= set(names)
    assert {"sensitivity_half.json", "stability_constant.json", "held_out_equivariant_seed1.json"} <= set(names)


def test_every_question_has_an_answer_with_its_numbers(whole):
    summary = json.loads((whole[0].out / store.SUMMARY).read_text())
    assert list(summary["answers"]) == list(PROBES)
    for each in summary["answers"].values():
        assert all(each[key] for key in ("question", "verdict", "found", "sure", "mind", "numbers"))
        assert re.match("(high|fair|low)", each["sure"])
        assert "nan" not in each["found"]
    assert set(summary["networks"]) == set(MODELS)
    assert set(summary["stability"]) == {"constant"}


def test_the_page_holds_everything_in_one_file(whole):
    study, summary, _ = whole
    page = (study.out / store.PAGE).read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('src="data:image/png;base64,') == 4 + 9 + 1
    assert page.count('src="data:image/gif;base64,') == 1
    assert "strokes" in page
    table = (study.out / store.TABLE).read_text()
    for each in summary["answers"].values():
        assert each["question"] in page
        assert each["found"] in table


def test_what_is_there_is_not_done_again(whole, settings, digits):
    study, _, before = whole
    again = MnistStudy.begun(study.out, settings, False, digits)
    again.train()
    again.probe()
    again.evaluate()
    assert written(again) == before


def test_what_is_missing_is_made_as_it_was(whole, settings, digits):
    study, _, _ = whole
    path = study.result("h", 1)
    before = store.read_arrays(path)
    path.unlink()
    MnistStudy.begun(study.out, settings, False, digits).probe()
    np.testing.assert_allclose(store.read_arrays(path)["swapped"], before["swapped"], atol=1e-6)


def test_other_settings_do_not_mix_with_what_is_there(whole, settings, digits, tmp_path):
    study, _, _ = whole
    other = settings.model_copy(update={"diffusion": 0.1})
    with pytest.raises(OutputError, match="was made with other settings"):
        MnistStudy.begun(study.out, other, False, digits)
    fresh = MnistStudy.begun(tmp_path / "mnist", settings, True, digits)
    store.write_json(fresh.evaluation(TIED, 0), {"5": 1})
    MnistStudy.begun(tmp_path / "mnist", other, True, digits, force=True)
    assert not fresh.evaluation(TIED, 0).exists()


def test_a_study_with_files_of_the_users_is_not_replaced(settings, digits, tmp_path):
    MnistStudy.begun(tmp_path, settings, True, digits)
    (tmp_path / "models" / "thesis.txt").write_text("precious")
    other = settings.model_copy(update={"diffusion": 0.1})
    with pytest.raises(OutputError, match=r"thesis\.txt: is no part of the study"):
        MnistStudy.begun(tmp_path, other, True, digits, force=True)
    assert (tmp_path / "models" / "thesis.txt").read_text() == "precious"


def test_what_no_study_has_made_is_refused_and_stays(settings, digits, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").write_text("precious")
    with pytest.raises(OutputError, match="models: is there already"):
        MnistStudy.begun(tmp_path, settings, True, digits, force=True)
    (tmp_path / "study.json").write_text('{"subjects": 3}')
    with pytest.raises(OutputError, match="not that of a study of digits"):
        MnistStudy.begun(tmp_path, settings, True, digits, force=True)
    assert (tmp_path / "models" / "mine").read_text() == "precious"


def test_a_page_can_be_made_before_anything_was_probed(settings, digits, tmp_path):
    study = MnistStudy.begun(tmp_path / "mnist", settings, True, digits)
    study.train((TIED,))
    study.evaluate((TIED,), vary=False)
    summary = write_report(study)
    assert list(summary["networks"]) == [TIED]
    assert summary["answers"] == {}
    assert (study.out / store.PAGE).exists()


def test_arrays_come_back_as_they_were(tmp_path):
    found = {"a": {"b": np.eye(2)}, "names": np.array(["x", "yz"])}
    store.write_arrays(tmp_path / "a.npz", found)
    again = store.read_arrays(tmp_path / "a.npz")
    assert np.array_equal(again["a"]["b"], np.eye(2))
    assert again["names"].tolist() == ["x", "yz"]
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.npz: cannot be read"):
        store.read_arrays(tmp_path / "a.npz")


def test_the_settings_that_come_with_stepwarp():
    settings = read_settings()
    assert (settings.steps, settings.hidden, settings.diffusion, settings.training.batch) == (9, (50, 50), 0.05, 128)
    assert settings.full.seeds >= 5
    assert settings.full.pairs >= 500


def test_a_mistake_in_the_settings_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {optimiser: {lr: 1}}\ndifusion: 1\n")
    with pytest.raises(InputError, match=r"mine\.yaml: .*unknown key 'difusion'; did you mean 'diffusion'"):
        read_settings(path)
