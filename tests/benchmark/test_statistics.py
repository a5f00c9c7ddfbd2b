import itertools

import numpy as np
import pytest
import scipy.stats

from stepwarp.benchmark.statistics import added_by_people, compared, described, signed_rank_p
from stepwarp.evaluation.bootstrap import interval, interval_over_people


def test_a_few_values_described_by_hand():
    found = described(np.array([0.5, 0.6, 0.7, 0.9]))
    assert found["n"] == 4
    assert found["mean"] == pytest.approx(0.675)
    assert found["sd"] == pytest.approx(np.sqrt((0.175**2 + 0.075**2 + 0.025**2 + 0.225**2) / 3))
    assert found["median"] == pytest.approx(0.65)
    assert found["q30"] == pytest.approx(0.59)  # at 0.9 of the way from the first to the second
    assert found["ci95"][0] < 0.675 < found["ci95"][1]


def test_a_single_value_has_no_spread():
    assert described(np.array([3.0])) == {"n": 1, "mean": 3, "sd": None, "median": 3, "q30": 3, "ci95": None}


@pytest.mark.parametrize("n", [5, 12, 40])
def test_the_interval_is_that_of_scipy(n):
    values = np.random.default_rng(n).gamma(2, size=n)
    ours = interval(values)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=10_000, method="BCa", random_state=1)
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.04 * values.std())
    assert ours == interval(values)


def test_equal_values_have_no_interval_to_speak_of():
    assert interval(np.full(6, 0.25)) == (0.25, 0.25)


def test_people_and_not_pairs_were_drawn():
    """Where a pair is what its people are, an interval over pairs is far too narrow, that over people about right."""
    people, covered = 10, np.zeros(2)
    pairs = list(itertools.permutations(map(str, range(people)), 2))
    for seed in range(60):
        person = np.random.default_rng(seed).normal(size=people)
        values = np.array([person[int(a)] + person[int(b)] for a, b in pairs])
        covered += [low <= 0 <= high for low, high in (interval(values), interval_over_people(values, pairs))]
    assert covered[0] / 60 < 0.7
    assert covered[1] / 60 > 0.8


def test_pairs_that_share_nobody_are_as_good_as_independent():
    values = np.random.default_rng(0).normal(size=40)
    low, high = interval_over_people(values, [(f"{n} fixed", f"{n} moving") for n in range(40)])
    np.testing.assert_allclose([low, high], interval(values), atol=0.25 * values.std())


def test_one_pair_is_no_draw_of_people():
    assert interval_over_people(np.array([1.0]), [("a", "b")]) is None
    found = compared(np.array([0.7, 0.6]), np.array([0.6, 0.55]), "higher", [("a", "b"), ("b", "a")])
    assert (found["ci95"], found["p_wilcoxon"], found["wins"]) == (None, None, 2)


def test_what_people_add_is_found_and_tested():
    """Six of them cannot say more than one in 32, however many their pairs."""
    each = dict(zip("abcdef", np.arange(6.0) + 0.5, strict=True))
    pairs = list(itertools.permutations(each, 2))
    values = np.array([(each[a] + each[b]) / 2 for a, b in pairs])
    np.testing.assert_allclose(added_by_people(values, pairs), list(each.values()), atol=1e-12)
    found = compared(values, np.zeros(30), "higher", pairs)
    assert found["p_wilcoxon"] == pytest.approx(2 / 64)
    assert found["ci95"][0] < 3 < found["ci95"][1]
    assert added_by_people(values[:6], [*zip("abcdef", "bcdefa", strict=True)]) is None  # a ring of an even number


@pytest.mark.parametrize("n", [1, 2, 6, 25])
def test_the_test_is_that_of_scipy_where_nothing_ties(n):
    differences = np.random.default_rng(n).normal(0.4, size=n)
    assert signed_rank_p(differences) == pytest.approx(scipy.stats.wilcoxon(differences, method="exact").pvalue)


def test_ties_and_zeros_are_counted_exactly():
    differences = np.array([0.0, 1, 1, -1, 2, 2, 3, 0])
    kept = differences[differences != 0]
    ranks = scipy.stats.rankdata(np.abs(kept))
    all_sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=6)]
    least = min(ranks[kept > 0].sum(), ranks[kept < 0].sum())
    assert signed_rank_p(differences) == pytest.approx(2 * np.mean(np.array(all_sums) <= least))


def test_six_pairs_cannot_say_more_than_one_in_32():
    assert signed_rank_p(np.arange(1.0, 7)) == pytest.approx(2 / 64)


def test_nothing_differs_nothing_is_there():
    assert signed_rank_p(np.zeros(5)) == 1
    assert signed_rank_p(np.zeros(0)) is None


def test_many_pairs_go_over_to_the_normal_approximation_without_a_jump():
    differences = np.random.default_rng(0).normal(0.15, size=201)
    assert signed_rank_p(differences) == pytest.approx(signed_rank_p(differences[:200]), abs=0.02)


@pytest.mark.parametrize(("better", "wins", "losses"), [("higher", 2, 1), ("lower", 1, 2), (None, None, None)], ids=str)
def test_wins_depend_on_what_is_better(better, wins, losses):
    found = compared(np.array([0.7, 0.6, 0.5, 0.1 + 0.2]), np.array([0.6, 0.5, 0.6, 0.3]), better)
    assert (found["wins"], found["losses"], found["ties"]) == (wins, losses, 1)
    assert found["difference"] == pytest.approx(0.1 / 4)
    assert found["n"] == 4


def test_arguments_are_left_alone():
    values, baseline = np.array([1.0, 2.0]), np.array([1.0, 3.0])
    compared(values, baseline, "higher")
    assert values.tolist() == [1, 2]
    assert baseline.tolist() == [1, 3]
