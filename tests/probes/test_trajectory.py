import numpy as np
import pytest
import torch

from stepwarp.geometry import DisplacementField
from stepwarp.probes.trajectory import apply_to_others, lengthened, per_step, rms, trajectory, walk
from stepwarp.registrar.steps import Downsampled, Repeat, TwoStep


def test_maps_are_those_of_the_registrar(descent, pairs):
    step = descent()
    maps = trajectory(step, *pairs)
    assert len(maps) == 5
    torch.testing.assert_close(maps[-1].displacement, step(*pairs).on(pairs[0].grid).displacement)
    for found, traced in zip(maps, step.trace(*pairs), strict=True):
        torch.testing.assert_close(found.displacement, traced.on(pairs[0].grid).displacement)


def test_more_steps_than_trained_repeat_tied_weights_and_leave_the_step_as_it_was(descent, pairs):
    step = descent(n=2)
    maps = trajectory(step, *pairs, count=5)
    longer = list(descent(n=5).trace(*pairs))
    torch.testing.assert_close(maps[-1].displacement, longer[-1].on(pairs[0].grid).displacement)
    assert step.n == 2
    assert not step.step._forward_hooks


def test_fewer_steps_are_the_first_ones(descent, pairs):
    torch.testing.assert_close(
        trajectory(descent(), *pairs, count=2)[-1].displacement, trajectory(descent(), *pairs)[1].displacement
    )


def test_going_on_from_a_map_is_the_same_as_not_having_stopped(descent, pairs):
    whole = trajectory(descent(), *pairs)
    rest = trajectory(descent(), *pairs, count=3, start=whole[1])
    for found, expected in zip(rest, whole[2:], strict=True):
        torch.testing.assert_close(found.displacement, expected.displacement)


def test_each_step_says_what_it_saw_and_what_it_composed(descent, pairs):
    fixed, moving = pairs
    before = DisplacementField(torch.zeros_like(trajectory(descent(), *pairs)[0].displacement), fixed.grid)
    for taken in walk(descent(), *pairs):
        torch.testing.assert_close(taken.state.moved.data, moving.warp(before).data)
        torch.testing.assert_close(taken.state.displacement, before.displacement)
        composed = (before @ DisplacementField(taken.psi, fixed.grid)).collapsed(fixed.grid)
        torch.testing.assert_close(taken.after.displacement, composed.on(fixed.grid).displacement)
        before = taken.after


def test_a_pyramid_is_walked_on_the_grids_of_its_steps(descent, pairs):
    coarse = Downsampled(descent(n=2), 2)
    step = TwoStep(coarse, descent(n=3))
    steps = list(walk(step, *pairs))
    assert [taken.state.grid.shape for taken in steps] == [(10, 12)] * 2 + [(20, 24)] * 3
    assert all(taken.after.grid == pairs[0].grid for taken in steps)
    torch.testing.assert_close(steps[-1].after.displacement, step(*pairs).on(pairs[0].grid).displacement)
    with lengthened(step, 2) as longer:
        assert len(trajectory(longer, *pairs)) == 10
    assert len(trajectory(step, *pairs)) == 5


def test_a_walk_that_is_given_up_leaves_no_hook(descent, pairs):
    step = descent()
    steps = walk(step, *pairs)
    next(steps)
    steps.close()
    assert not step.step._forward_hooks


def test_per_step_of_a_descent_falls_and_of_other_pairs_maps_does_not(descent, pairs, objective):
    maps = trajectory(descent(), *pairs)
    table = per_step(maps, *pairs, objective)
    assert table["loss"].shape == (6, 6)
    assert (np.diff(table["ssd"].mean(1)) < 0).all()
    assert table["ncc"][0] == pytest.approx(
        [np.corrcoef(f.flatten(), m.flatten())[0, 1] for f, m in zip(*(p.data.numpy() for p in pairs), strict=True)],
        abs=1e-5,
    )
    assert (table["rms"][0] == 0).all()
    assert (table["folds"] == 0).all()
    np.testing.assert_allclose(table["loss"], table["ssd"] + 0.01 * table["regularity"], rtol=1e-5)
    null = per_step(apply_to_others(maps), *pairs, objective)
    assert null["ssd"][-1].mean() > table["ssd"][-1].mean()


def test_folds_are_counted(pairs, objective):
    grid = pairs[0].grid
    mirrored = torch.zeros(6, 2, *grid.shape)
    mirrored[:3, 0] = -2 * torch.arange(grid.shape[0]).view(-1, 1)
    table = per_step([DisplacementField(mirrored, grid)], *pairs, objective)
    assert table["folds"][1].tolist() == [1, 1, 1, 0, 0, 0]


def test_a_null_needs_two_pairs(pairs):
    with pytest.raises(ValueError, match="two pairs"):
        apply_to_others([DisplacementField(torch.zeros(1, 2, *pairs[0].grid.shape), pairs[0].grid)])


def test_a_single_step_that_is_no_chain_is_iterated(descent, pairs):
    single = descent().step
    torch.testing.assert_close(
        trajectory(single, *pairs, count=3)[-1].displacement, Repeat(single, 3)(*pairs).on(pairs[0].grid).displacement
    )


def test_lengths_inside_a_mask_do_not_see_the_rest():
    vectors = torch.zeros(2, 2, 3, 3)
    vectors[:, :, 0, 0] = 1
    inside = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    inside[:, :, 0] = True
    assert rms(vectors).tolist() == pytest.approx([(2 / 9) ** 0.5] * 2)
    assert rms(vectors, inside).tolist() == pytest.approx([(2 / 3) ** 0.5] * 2)
