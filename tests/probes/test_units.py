"""The probes' lengths are millimetres, whatever the voxels are."""

import numpy as np
import pytest
import torch

from stepwarp.geometry import DisplacementField, Grid
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.probes import fixed_point, study
from stepwarp.probes.fixed_point import stays
from stepwarp.probes.objective import PairObjective
from stepwarp.probes.study import START_MM, START_WIDTH_MM, ProbedSubject
from stepwarp.probes.trajectory import identity
from stepwarp.registrar.steps import Downsampled, Images, Step

#: Without a regularity, which counts in mm, a descent is the same in voxels of any size.
OBJECTIVE = PairObjective(SSD())
PROBES = (study.per_step_probe, study.path_probe, study.optimum_probe, study.contrast_probe)


@pytest.fixture
def in_voxels_of(descent, pairs):
    """mm -> the pairs of the other tests with voxels of that size."""

    def make(mm: float) -> ProbedSubject:
        grid = Grid(pairs[0].grid.shape, np.diag([mm, mm, 1.0]))
        return ProbedSubject(descent(), *(Images(images.data, grid) for images in pairs), OBJECTIVE)

    return make


def is_length(name: str) -> bool:
    """Of the numbers that do not begin with a random start, whose size is in mm already."""
    lengths = ("rms,", "step,", "ends of", "distance,", "drift,", "from answer", "apart,")
    return name.startswith(lengths) and "random" not in name and "beside" not in name


@pytest.mark.parametrize("probe", PROBES)
def test_in_voxels_four_times_as_large_all_lengths_are_four_times_as_long(in_voxels_of, probe, monkeypatch):
    monkeypatch.setattr(study, "EVALUATIONS", 10)
    small, large = (probe(in_voxels_of(mm)) for mm in (1.0, 4.0))
    lengths = [name for name in small if is_length(name)]
    assert lengths
    for name in lengths:
        np.testing.assert_allclose(large[name]["values"], 4 * small[name]["values"], rtol=1e-4, atol=1e-6, err_msg=name)


def smoothness_mm(field: DisplacementField) -> float:
    """The sigma of the Gaussian by which white noise became as smooth as a field."""
    u = field.displacement
    slope = u.diff(dim=2).square().mean() / field.grid.spacing[0] ** 2
    return float((u.square().mean() / slope / 2).sqrt())


@pytest.mark.parametrize("mm", [2.0, 4.0])
def test_starts_are_as_far_away_and_as_smooth_in_any_voxels(descent, mm, monkeypatch):
    grid = Grid((48, 44), np.diag([mm, mm, 1.0]))
    images = Images(torch.rand(2, 1, *grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    starts, directions = [], []

    def random_start(*arguments):
        starts.append(fixed_point.random_start(*arguments))
        return starts[-1]

    def disturbed(start, *arguments):
        found = fixed_point.disturbed(start, *arguments)
        directions.append(DisplacementField(found.displacement - start.displacement, grid))
        return found

    monkeypatch.setattr(study, "random_start", random_start)
    monkeypatch.setattr(study, "disturbed", disturbed)
    monkeypatch.setattr(study, "EVALUATIONS", 2)
    subject = ProbedSubject(descent(), images, Images(images.data.flip(0), grid), OBJECTIVE)
    numbers = study.path_probe(subject)
    study.optimum_probe(subject)
    assert numbers["distance, random start 1"]["values"][0] == pytest.approx(START_MM, rel=0.1)
    assert list(map(smoothness_mm, starts)) == pytest.approx([START_WIDTH_MM] * study.STARTS, rel=0.4)
    assert list(map(smoothness_mm, directions)) == pytest.approx([START_WIDTH_MM / 2], rel=0.4)


class Shift(Step):
    """Half a voxel of whatever grid it is given."""

    def forward(self, fixed: Images, moving: Images) -> DisplacementField:
        return DisplacementField(torch.full((len(moving.data), 2, *fixed.grid.shape), 0.5), fixed.grid)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_step_on_a_coarser_grid_is_as_long_as_it_moves_the_pair(pairs, factor):
    found = stays(Downsampled(Shift(), factor), *pairs, identity(pairs[0]), OBJECTIVE)
    assert found["step"][1] == pytest.approx(factor * 0.5 * 2**0.5, rel=1e-4)
    assert found["step"][1] == pytest.approx(found["drift"][1], rel=1e-4)
