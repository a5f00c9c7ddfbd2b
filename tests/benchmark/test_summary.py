import csv
import io
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stepwarp.benchmark.summary import csv_of, row, summarise, table_of
from stepwarp.evaluation import metrics
from stepwarp.evaluation.evaluate import evaluate
from stepwarp.files import Landmarks
from stepwarp.geometry import Affine, DisplacementField, Grid, Image, LabelMap


def phantom():
    """A ball within a ball, and three landmarks: the fixed and the moving image at once."""
    grid = Grid.isotropic((16, 17, 18), 2.0)
    radius = (grid.indices() - torch.tensor([7.5, 8.0, 8.5]).view(1, 3, 1, 1, 1)).norm(dim=1)[0]
    texture = torch.rand(grid.shape, generator=torch.Generator().manual_seed(1))
    image = Image(torch.where(radius < 7, 50 + 50 * texture, 0.0), grid)
    labels = LabelMap(((radius < 6).int() + (radius < 3).int()).to(torch.uint8), grid, "labels")
    points = Landmarks(("a", "b", "c"), np.array([[12.0, 14, 16], [18, 16, 14], [16, 20, 18]]))
    return SimpleNamespace(fixed=image, moving=image, fixed_labels=labels, moving_labels=labels, points=points)


PHANTOM = phantom()


def done(pair, method, dice, seconds=1.0, **evaluation):
    labels = {"1": {"dice": dice, "hd95_mm": 2.0}, "2": {"dice": dice / 2, "hd95_mm": None}}
    return {
        "pair": pair,
        "method": method,
        "status": "done",
        "run": {"seconds": seconds, "cpu_seconds": 2 * seconds, "peak_mib": 100, "threads": 2, "cpu": "X"},
        "evaluation": {"mean_dice": dice, "folds": {"count": 3, "share": 0.002}, "labels": labels, **evaluation},
    }


CASES = [
    done("p1", "ours", 0.7),
    done("p2", "ours", 0.6),
    done("p3", "ours", 0.8),
    done("p1", "theirs", 0.5, 10.0, tre_mm={"mean": 2.5}),
    done("p2", "theirs", 0.6, 10.0),
    {"pair": "p3", "method": "theirs", "status": "failed", "reason": "out of memory"},
    {"pair": "p1", "method": "away", "status": "absent", "reason": "not | installed"},
    done("p1", "unknown to the tables", 0.1),
]


def summary(cases=CASES, baseline="theirs"):
    return summarise(
        cases,
        manifest={
            "name": "=cmd",
            "split": None,
            "pairs": ["p1", "p2", "p3"],
            "label_groups": {"first": [1], "none": [9]},
        },
        titles={"ours": "Ours", "theirs": "Theirs", "away": "Away"},
        baseline=baseline,
        environment={},
    )


def test_a_row_holds_what_the_case_holds():
    flat = row(CASES[3])
    assert flat["folds_percent"] == pytest.approx(0.2)
    assert flat["tre_mm"] == 2.5
    assert flat["seconds"] == 10
    assert "mean_hd95_mm" not in flat


def test_means_over_other_structures_are_not_given():
    means = {"mean_hd95_mm": 1.0, "mean_asd_mm": 0.5, "labels_scored": 2}
    before = done("p1", "ours", 0.7, surfaces_scored=1, **means)
    now = done("p1", "theirs", 0.7, surfaces_scored=1, surfaces_penalised=1, **means)
    now["evaluation"]["labels"]["2"]["hd95_mm"] = 300.0
    assert {"mean_hd95_mm", "mean_asd_mm"}.isdisjoint(row(before))
    assert row(now)["mean_hd95_mm"] == 1.0
    found = summarise(
        [before, now],
        manifest={"name": "a", "split": None, "pairs": ["p1"], "label_groups": {"both": [1, 2]}},
        titles={"ours": "Ours", "theirs": "Theirs"},
        baseline="theirs",
        environment={},
    )
    assert "mean_hd95_mm" not in found["groups"]["both"]["ours"]
    assert found["groups"]["both"]["theirs"]["mean_hd95_mm"]["mean"] == 151
    assert any("judge them again" in note for note in found["notes"])
    assert any("diagonal of the fixed grid" in note and "1 by theirs" in note for note in found["notes"])


def test_methods_are_summarised_over_their_finished_cases():
    methods = summary()["methods"]
    assert list(methods) == ["ours", "theirs", "away"]
    assert methods["ours"]["metrics"]["mean_dice"]["mean"] == pytest.approx(0.7)
    assert (methods["theirs"]["cases"], methods["theirs"]["failed"]) == (2, 1)
    assert methods["away"]["absent"] == "not | installed"
    assert methods["away"]["metrics"] == {}
    assert "tre_mm" not in methods["ours"]["metrics"]


def test_the_baseline_is_met_on_the_pairs_that_both_have():
    methods = summary()["methods"]
    dice = methods["ours"]["metrics"]["mean_dice"]["against_baseline"]
    assert dice["n"] == 2
    assert dice["difference"] == pytest.approx(0.1)
    assert (dice["wins"], dice["losses"], dice["ties"]) == (1, 0, 1)
    assert methods["ours"]["metrics"]["seconds"]["against_baseline"]["wins"] == 2
    assert methods["theirs"]["metrics"]["mean_dice"]["against_baseline"] is None


def test_a_baseline_without_a_case_is_said():
    found = summary(baseline="away")
    assert found["methods"]["ours"]["metrics"]["mean_dice"]["against_baseline"] is None
    assert any("baseline away has no finished case" in note for note in found["notes"])


def judged(method, pair, transform, seconds):
    """A case of an image and itself, with everything that there is to measure."""
    return {
        "pair": pair,
        "method": method,
        "status": "done",
        "run": {"seconds": seconds, "cpu_seconds": seconds, "peak_mib": 100 * seconds},
        "evaluation": evaluate(
            PHANTOM.fixed,
            PHANTOM.moving,
            transform,
            inverse=Affine.identity(3),
            fixed_labels=PHANTOM.fixed_labels,
            moving_labels=PHANTOM.moving_labels,
            fixed_landmarks=PHANTOM.points,
            moving_landmarks=PHANTOM.points,
        ),
    }


@pytest.fixture(scope="module")
def good_and_bad():
    """Of one pair that needs no registration: a method that finds so, and one that tears it apart and takes longer."""
    torn = 4 * torch.randn(1, 3, *PHANTOM.fixed.grid.shape, generator=torch.Generator().manual_seed(0))
    cases = (
        judged("good", "p", Affine.identity(3), 1.0),
        judged("bad", "p", DisplacementField(torn, PHANTOM.fixed.grid), 2.0),
    )
    manifest = {"name": "n", "split": None, "pairs": ["p"], "label_groups": {"all": [1, 2]}}
    found = {"manifest": manifest, "titles": {"good": "Good", "bad": "Bad"}, "environment": {}}
    return summarise(cases, baseline="bad", **found)


@pytest.mark.parametrize("metric", metrics.shown("benchmark"), ids=lambda metric: metric.key)
def test_of_every_metric_it_is_known_whether_more_is_better(good_and_bad, metric):
    """What the table says agrees with what is measured of a good and of a bad transform."""
    against = good_and_bad["methods"]["good"]["metrics"][metric.key]["against_baseline"]
    higher = against["difference"] > 0
    known = metric.better is not None
    assert metric.better in ("higher" if higher else "lower", None)
    assert good_and_bad["statistics"]["higher_is_better"][metric.key] == (higher if known else None)
    assert (against["wins"], against["losses"], against["ties"]) == ((1, 0, 0) if known else (None, None, 0))


@pytest.mark.parametrize("metric", ["mean_dice", "mean_hd95_mm"])
def test_of_a_group_of_labels_too(good_and_bad, metric):
    against = good_and_bad["groups"]["all"]["good"][metric]["against_baseline"]
    assert (against["wins"], against["losses"]) == (1, 0)


@pytest.mark.parametrize(
    "worse_to_better",
    [
        [{"mean_dice": 0.1, "tre_mm": {"mean": 1}}, {"mean_dice": 0.2, "tre_mm": {"mean": 9}}],
        [{"tre_mm": {"mean": 9}, "similarity": {"after": {"lncc": 0.9}}}, {"tre_mm": {"mean": 1}}],
        [{"similarity": {"after": {"lncc": 0.1}}}, {"similarity": {"after": {"lncc": 0.9}}}],
    ],
    ids=["labels before landmarks", "landmarks before images", "images"],
)
def test_the_worst_come_first_by_the_best_truth_there_is(worse_to_better):
    cases = [
        {"pair": str(n), "method": "ours", "status": "done", "evaluation": e} for n, e in enumerate(worse_to_better)
    ]
    assert [case["pair"] for case in summary(cases[::-1])["cases"]] == ["0", "1"]


def test_the_worst_come_first():
    assert [case["pair"] for case in summary()["cases"] if case["method"] == "ours"] == ["p2", "p1", "p3"]
    assert summary()["cases"][3]["status"] == "failed"


def of_four_people(people):
    cases = [
        done(pair, method, dice + 0.01 * n, tre_mm={"mean": 2.0})
        for n, pair in enumerate(people)
        for method, dice in (("ours", 0.5 + 0.01 * n), ("theirs", 0.4))
    ]
    manifest = {"name": "a", "split": None, "pairs": list(people), "label_groups": {"first": [1]}}
    titles = {"ours": "Ours", "theirs": "Theirs"}
    return summarise(cases, manifest=manifest, titles=titles, baseline="theirs", environment={}, people=people)


def test_where_pairs_share_people_intervals_and_tests_are_about_people():
    found = of_four_people({f"{a}{b}": (a, b) for a, b in itertools.permutations("abcd", 2)})
    assert "people" in found["statistics"]["ci95"]
    assert "people" in found["statistics"]["p_wilcoxon"]
    for values in (found["methods"]["ours"]["metrics"], found["groups"]["first"]["ours"]):
        beside = values["mean_dice"]["against_baseline"]
        assert (beside["n"], beside["wins"]) == (12, 12)
        assert beside["p_wilcoxon"] == pytest.approx(2 / 16)
    assert "people" in table_of(found)
    assert found["notes"] == []


def test_two_scans_of_one_person_share_nobody_with_another_pair():
    found = of_four_people({"aa": ("a", "a"), "bb": ("b", "b"), "cc": ("c", "c")})
    assert "people" not in found["statistics"]["ci95"]
    assert found["notes"] == []


def test_too_few_shared_people_are_told():
    found = of_four_people({"ab": ("a", "b"), "bc": ("b", "c"), "cd": ("c", "d"), "da": ("d", "a")})
    assert "people" not in found["statistics"]["ci95"]
    assert any("pairs share people" in note for note in found["notes"])
    assert found["methods"]["ours"]["metrics"]["mean_dice"]["against_baseline"]["p_wilcoxon"] == pytest.approx(2 / 16)


def test_groups_of_labels_are_averaged_per_case():
    groups = summary()["groups"]
    assert groups["first"]["ours"]["mean_dice"]["mean"] == pytest.approx(0.7)
    assert groups["first"]["ours"]["mean_dice"]["against_baseline"]["wins"] == 1
    assert groups["none"] == {}


def test_different_machines_are_noted():
    other = done("p2", "ours", 0.6)
    other["run"]["cpu"] = "Y"
    assert any("different cpu: X, Y" in note for note in summary([CASES[0], other])["notes"])


def test_it_is_json():
    assert json.loads(json.dumps(summary(), allow_nan=False)) == summary()


def test_no_cell_of_the_csv_is_a_formula():
    evil = [{"pair": "p1", "method": "ours", "status": "failed", "reason": "=HYPERLINK(1)"}, done("-p2", "ours", 0.5)]
    found = list(csv.DictReader(io.StringIO(csv_of(summary(evil)))))
    assert [line["reason"] for line in found] == ["'=HYPERLINK(1)", ""]
    assert [line["pair"] for line in found] == ["p1", "'-p2"]
    assert float(found[1]["mean_dice"]) == 0.5


def test_the_table_names_every_method_and_what_is_lacking():
    text = table_of(summary())
    assert "| Ours | 3 | 0.7000 ± 0.1000 |" in text
    assert "- Theirs: failed on 1" in text
    assert "- Away: absent, not \\| installed" in text
    assert "Against Theirs:" in text
    assert "| Ours | Dice | +0.1000 |" in text
