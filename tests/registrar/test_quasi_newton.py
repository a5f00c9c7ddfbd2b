"""The optimiser of several small problems at once."""

import itertools

import pytest
import torch

from stepwarp.registrar import quasi_newton
from stepwarp.registrar.quasi_newton import minimised

STARTS = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [3.0, -2.0]], dtype=torch.float64)


def valleys(points, which):
    """Rosenbrock's curved valley, wider from problem to problem: all are lowest at (1, 1), where they are 0."""
    steep = torch.tensor([100.0, 10.0, 1.0], dtype=torch.float64)[which]
    x, y = points.unbind(1)
    bend = y - x**2
    gradients = torch.stack([-4 * steep * bend * x - 2 * (1 - x), 2 * steep * bend], 1)
    return steep * bend**2 + (1 - x) ** 2, gradients


def test_curved_valleys_are_followed_to_their_lowest_point():
    told = []
    points, values, ended = minimised(valleys, STARTS, 0.1, 100, 1e-14, ended=told.extend)
    torch.testing.assert_close(points, torch.ones_like(points), atol=1e-4, rtol=0)
    assert (values < 1e-10).all()
    assert ended
    assert sorted(told) == sorted(values.tolist())


@pytest.mark.parametrize("every", [1, 4])
def test_side_by_side_each_goes_its_way_as_alone(monkeypatch, every):
    monkeypatch.setattr(quasi_newton, "_EVERY", every)
    alone = [
        minimised(lambda p, which, n=n: valleys(p, which + n), STARTS[n : n + 1], 0.1, 100, 1e-8)[0] for n in range(3)
    ]
    together = minimised(valleys, STARTS, 0.1, 100, 1e-8)[0]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=0)


def test_those_that_have_ended_are_not_evaluated_again():
    asked = []

    def function(points, which):
        asked.append(which.tolist())
        return valleys(points, which)

    minimised(function, torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64), 0.1, 100, 1e-8)
    assert asked[:2] == [[0, 1], [0, 1]]
    assert {tuple(which) for which in asked[2:]} == {(1,)}


def test_a_step_to_where_nothing_is_known_is_shortened():
    def walled(points, which):
        values, gradients = valleys(points, which)
        beyond = points[:, 0] > 1.05
        return torch.where(beyond, torch.nan, values), gradients.masked_fill(beyond[:, None], torch.nan)

    points, *_ = minimised(walled, STARTS[:2], 5.0, 200, 1e-14)
    torch.testing.assert_close(points, torch.ones_like(points), atol=1e-4, rtol=0)


def test_what_is_flat_stays(monkeypatch):
    flat = minimised(lambda p, which: (p[:, 0] * 0 + 2, p * 0), STARTS, 0.1, 50, 1e-8)
    assert torch.equal(flat[0], STARTS)
    assert flat[2]


def test_a_deadline_leaves_the_best_so_far(monkeypatch):
    looks = itertools.count(1)
    monkeypatch.setattr("stepwarp.progress.time.monotonic", lambda: next(looks))
    values = [minimised(valleys, STARTS, 0.1, 100, 1e-14, deadline=looked)[1:] for looked in (0, 10)]
    assert [ended for _, ended in values] == [False, False]
    assert torch.equal(values[0][0], valleys(STARTS, torch.arange(3))[0])
    looks = itertools.count(1)
    assert (minimised(valleys, STARTS, 0.1, 100, 1e-14, deadline=10)[1] < values[0][0]).all()
