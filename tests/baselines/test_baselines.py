"""Every method on one pair whose true map is known: a wrong direction, sign, order or unit makes the error grow."""

import json
from importlib import import_module

import numpy as np
import pytest

from stepwarp import catalogue
from stepwarp.baselines import BASELINES
from stepwarp.errors import InputError
from stepwarp.geometry import Affine

#: Method -> the share of the error before that it may leave, about twice what it was seen to leave.
LEFT = {
    "centre-of-mass": 0.6,
    "ants-affine": 0.25,
    "ants-syn": 0.15,
    "ants-syn-quick": 0.15,
    "ants-syn-best": 0.12,
    "ants-syn-repro": 0.12,
    "ants-syn-quick-repro": 0.12,
    "simpleitk-affine": 0.25,
    "simpleitk-bspline": 0.15,
    "simpleitk-demons": 0.15,
    "fireants": 0.12,
    "convexadam": 0.2,
    "niftyreg": 0.12,
    "elastix": 0.2,
}
SLOW = {
    "ants-syn-best",
    "ants-syn-repro",
    "ants-syn-quick-repro",
    "simpleitk-bspline",
    "fireants",
    "niftyreg",
    "elastix",
}
AFFINE = {"identity", "centre-of-mass", "ants-affine", "simpleitk-affine"}


def parameters(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


@pytest.fixture(scope="module")
def outcomes(pair):
    """name -> that method's outcome, computed once."""
    found = {}

    def register(name):
        method = BASELINES[name]
        if method.missing():
            pytest.skip(method.missing())
        if name not in found:
            found[name] = method(pair.fixed, pair.moving, threads=1, seed=1)
        return found[name]

    return register


def test_methods_are_listed_under_their_names_which_begin_as_their_files():
    assert [method.name for method in BASELINES.values()] == list(BASELINES)
    assert set(BASELINES) == {"identity", *LEFT}
    for file in catalogue.names("baselines"):
        for method in import_module(f"stepwarp.baselines.{file}").METHODS:
            assert f"{method.name}-".startswith(file.replace("_", "-") + "-")
    assert len({method.title for method in BASELINES.values()}) == len(BASELINES)


@pytest.mark.parametrize("name", parameters(LEFT))
def test_known_points_are_found(name, pair, outcomes):
    before = pair.error(Affine.identity(3))
    assert pair.error(outcomes(name).transform) < LEFT[name] * before


def test_identity_does_nothing(pair, outcomes):
    outcome = outcomes("identity")
    np.testing.assert_array_equal(outcome.transform(pair.points), pair.points)
    np.testing.assert_array_equal(outcome.inverse(pair.points), pair.points)


@pytest.mark.parametrize("name", parameters(name for name in BASELINES if name in AFFINE or name.startswith("ants")))
def test_the_inverse_leads_back(name, pair, outcomes):
    outcome = outcomes(name)
    distance = np.linalg.norm(outcome.inverse(outcome.transform(pair.points)) - pair.points, axis=1)
    assert distance.max() < 0.2


@pytest.mark.parametrize("name", parameters(BASELINES))
def test_the_record_says_how_to_repeat_it(name, outcomes):
    record = json.loads(json.dumps(outcomes(name).record))
    assert record["command"]
    assert name in ("identity", "centre-of-mass") or record["versions"]


@pytest.mark.parametrize("name", BASELINES)
def test_an_absent_method_says_what_to_install(name, pair, monkeypatch):
    needs_nothing = name in ("identity", "centre-of-mass") or name.startswith("simpleitk")
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    monkeypatch.setattr("shutil.which", lambda program: None)
    reason = BASELINES[name].missing()
    assert (reason is None) == needs_nothing
    if reason:
        assert "\n" not in reason
        assert "install" in reason
        with pytest.raises(InputError, match=name):
            BASELINES[name](pair.fixed, pair.moving, threads=1, seed=1)
