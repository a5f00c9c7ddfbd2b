"""What goes back and forth between a GPU and the processor while a pair is registered.

Counted without a GPU, on torch's device "meta": its tensors have a shape and no values, so that whatever waits for one
(a float, a test, the places that are not 0, a copy to the processor) is an error there."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stepwarp.config import DeformableSettings, Level
from stepwarp.geometry import Grid, Image
from stepwarp.losses.similarity import find_similarity
from stepwarp.registrar import affine, deformable, linear_levels, quasi_newton
from stepwarp.registrar.linear_maps import LinearMaps
from stepwarp.registrar.subject import ImagedSubject

ITERATIONS = 11
GPU = torch.device("meta")


class Waits(TorchDispatchMode):
    """Names the operations on what lies on two devices, above all copies, unless they are told not to wait."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {each.device for each in (*args, result) if isinstance(each, torch.Tensor) and each.ndim}
        if len(devices) > 1 and not (kwargs or {}).get("non_blocking"):
            self.names.append(str(function))
        return result


@pytest.fixture
def subjects():
    """Two images that their borders cut, so that there are weights, with a mask for one of them."""
    random = torch.Generator().manual_seed(0)
    grid = Grid.isotropic((14, 12, 13))
    images = [Image(torch.rand(grid.shape, generator=random), grid) for _ in range(2)]
    mask = Image((torch.rand(grid.shape, generator=random) > 0.1).float(), grid)
    return ImagedSubject(images[0], mask), ImagedSubject(images[1])


def prepared(subjects, *several):
    """A level of the optimiser on a GPU, with a pair of images for each of the settings."""
    level = deformable._UsefulLevel(several[0].levels[0], 1.0, (1, 1, 1))
    sides = tuple(deformable._Side(np.eye(4), GPU, None) for _ in subjects)
    grid = subjects[0].blocks(level.factors, 2).grid
    for side in sides:
        side.enter(grid)
    pairs = [deformable._ComparedSubjects(subjects, deformable.make_similarity(each)) for each in several]
    return level, sides, [pair.on(grid, level.edge, sides) for pair in pairs]


def settings(similarity="lncc"):
    level = Level(across=8, iterations=ITERATIONS, keep_volume=0.1)
    return DeformableSettings(levels=[level], similarity=similarity, patience=50)


@pytest.mark.parametrize("similarities", [["lncc"], ["ncc"], ["ssd"], ["mi"], ["mind"], ["lncc", "ssd"]])
def test_a_level_waits_for_its_losses_alone_and_reads_several_at_once(subjects, monkeypatch, similarities):
    read = []

    def counted(unread, level):
        assert all(loss.device == GPU for loss in unread)
        read.append(len(unread))
        unread.clear()
        return [0.5] * read[-1]

    level, sides, compared = prepared(subjects, *map(settings, similarities))
    monkeypatch.setattr(deformable, "_read", counted)
    with Waits() as waits:
        losses = deformable._run_level(level, sides, 500.0, compared, settings(), None, lambda report: None)
    assert waits.names == []
    assert read == [5, 5, 2]  # with the loss after the last
    assert len(losses) == ITERATIONS + 1
    assert {side.displacement.device for side in sides} == {GPU}


def test_a_look_at_a_value_would_not_go_unnoticed(subjects, monkeypatch):
    """What the optimiser did before: the test above fails where it does so again."""
    level, sides, compared = prepared(subjects, settings())
    monkeypatch.setattr(deformable, "nth_smallest", lambda values, n: torch.tensor(float(values.max())))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        deformable._run_level(level, sides, 500.0, compared, settings(), None, lambda report: None)


@pytest.mark.parametrize("similarity", ["lncc", "ncc", "mi"])
def test_linear_fits_wait_once_in_several_rounds(subjects, monkeypatch, similarity):
    read = []

    def counted(problems, points, values, ended):
        read.append({each.device for each in (problems.points, problems.values, points)})
        return problems

    pair = linear_levels.LinearPair(*subjects, GPU)
    level = linear_levels.BothWays(pair, 8, find_similarity(similarity)())
    fits = [affine._Fit(np.eye(3), np.zeros(3), affine.LinearStart("a", 0.0)) for _ in range(3)]
    maps = LinearMaps("affine", *affine._together(fits, pair))

    def function(parameters, which):
        matrices, translations, back = maps.at(parameters, which)
        losses, *gradients = level.losses_with_gradients(matrices, translations)
        return losses, back(*gradients)

    monkeypatch.setattr(quasi_newton, "_settled", counted)
    with Waits() as waits, pytest.raises(NotImplementedError, match="meta"):  # for the losses, once all is done
        quasi_newton.minimised(function, maps.start, 0.1, ITERATIONS, 1e-6)
    assert waits.names == []
    assert read == [{GPU}] * 4  # of 11 rounds the first, the sixth and the last, and once in the end
