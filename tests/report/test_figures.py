import re

import numpy as np
import pytest
import torch

from stepwarp.geometry import DisplacementField, Grid
from stepwarp.report.figures import grid_lines, line_distance
from stepwarp.report.views import VIEWS, Orientation

SIZE = 41


def upright_columns(sign, shift_mm):
    """Columns of the vertical lines in the axial view, for a shift along world x stored on a grid whose i axis has
    this sign."""
    affine = np.diag([float(sign), 1, 1, 1])
    affine[0, 3] = 0 if sign > 0 else SIZE - 1
    grid = Grid((SIZE,) * 3, affine)
    field = DisplacementField.from_millimetres(np.full((*grid.shape, 3), [shift_mm, 0, 0]), grid)
    paths = grid_lines(field.displacement, Orientation(grid), VIEWS[0], 20, 10.0)
    vertical = re.findall('d="(.*?)"', paths)[0]
    return sorted(int(x) / 10 for x in re.findall(r"M(\d+) ", vertical))


@pytest.mark.parametrize("sign", [1, -1])
def test_lines_lie_where_the_moved_coordinate_is_round(sign):
    # x + 2 is a multiple of 10 at x = 8, 18, 28, 38, and column 0 of the picture is the largest x.
    assert set(upright_columns(sign, 2.0)) >= {12.0, 22.0, 32.0}
    assert {column % 10 for column in upright_columns(sign, 2.0)} == {2.0}
    assert {column % 10 for column in upright_columns(sign, -3.0)} == {7.0}


def test_a_field_that_is_not_a_number_has_no_lines():
    grid = Grid.isotropic((8, 8, 8))
    nothing = grid_lines(torch.full((1, 3, 8, 8, 8), torch.nan), Orientation(grid), VIEWS[0], 4, 2.0)
    assert nothing == '<path d=""/><path d=""/>'


def test_distance_between_lines_follows_the_size():
    assert line_distance((180, 210, 180), np.ones(3)) in (6, 8)
    assert line_distance((180, 210, 180), np.full(3, 0.1)) in (0.5, 1)
