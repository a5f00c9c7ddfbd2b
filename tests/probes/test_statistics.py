import json

import numpy as np
import pytest
import torch

from stepwarp.evaluation.bootstrap import interval
from stepwarp.probes.statistics import described, described_rows, differs, jsonable


def test_pairs_alone_have_the_interval_of_the_benchmark():
    values = np.random.default_rng(0).normal(2, 1, 40)
    found = described(values)
    assert found["ci95"] == pytest.approx(interval(values))
    assert (found["n"], found["seeds"], found["missing"]) == (40, 1, 0)


def test_seeds_widen_the_interval_where_they_differ():
    rng = np.random.default_rng(1)
    pairs = rng.normal(size=(1, 60))
    alike = described(np.repeat(pairs, 5, 0) + 0.001 * rng.normal(size=(5, 60)))
    differing = described(pairs + np.array([[-2], [-1], [0], [1], [2.0]]))
    width = [np.diff(found["ci95"])[0] for found in (alike, differing)]
    assert width[1] > 3 * width[0]
    assert width[0] == pytest.approx(np.diff(described(pairs[0])["ci95"])[0], rel=0.1)


def test_what_is_missing_is_counted_and_one_value_has_no_interval():
    found = described([1.0, np.nan, np.inf, 3.0])
    assert (found["n"], found["missing"], found["mean"]) == (2, 2, 2.0)
    assert described([4.0])["ci95"] is None
    assert described([np.nan])["mean"] is None
    assert len(described_rows(np.ones((3, 7)))) == 3
    assert len(described_rows(np.ones((5, 3, 7)))) == 3


def test_differences_are_paired():
    base = np.random.default_rng(2).normal(scale=100, size=30)
    assert differs(base + 1, base)["apart"] is True
    assert differs(base, base)["apart"] is False
    assert differs([1.0], [2.0])["apart"] is None


def test_everything_becomes_json():
    found = jsonable({"a": np.arange(3.0), 2: torch.ones(2), "nan": np.float32("nan"), "b": np.bool_(True)})
    assert json.loads(json.dumps(found)) == {"a": [0, 1, 2], "2": [1, 1], "nan": None, "b": True}
