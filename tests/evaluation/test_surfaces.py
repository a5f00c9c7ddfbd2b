import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from stepwarp.errors import InputError
from stepwarp.evaluation.surfaces import surface_distances
from stepwarp.files import read_labels
from stepwarp.geometry import Affine, Grid, LabelMap

SHAPE, SPACING = (22, 26, 18), (0.7, 1.5, 2.5)


def blobs(seed, labels=4, shape=SHAPE):
    """Smooth patches of labels, some of which reach the border of the grid."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(labels, *shape)), (0, 3, 3, 3))
    return noise.argmax(0)


def turned(spacing=SPACING, degrees=(20, -15, 40), shape=SHAPE):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-30, 12, 55)
    return Grid(shape, affine)


def pair(grid, seed=0, labels=4):
    return [LabelMap(torch.from_numpy(blobs(s, labels, grid.shape)), grid, "labels") for s in (seed, seed + 1)]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
@pytest.mark.parametrize("seed", [0, 5])
def test_agrees_with_monai(spacing, seed):
    fixed, warped = pair(turned(spacing), seed)
    one_hot = [torch.stack([labels.data == n for n in range(4)])[None] for labels in (warped, fixed)]
    hd95 = compute_hausdorff_distance(*one_hot, percentile=95, spacing=list(spacing))[0]
    asd = compute_average_surface_distance(*one_hot, symmetric=True, spacing=list(spacing))[0]
    found = surface_distances(fixed, warped, [1, 2, 3])
    assert [found[n].hd95_mm for n in (1, 2, 3)] == pytest.approx(hd95.tolist(), abs=1e-5)
    assert [found[n].asd_mm for n in (1, 2, 3)] == pytest.approx(asd.tolist(), abs=1e-5)


def test_average_agrees_with_the_distance_maps_of_simpleitk():
    fixed, warped = pair(turned())
    images = []
    for labels in (fixed, warped):
        image = sitk.GetImageFromArray((labels.data == 2).numpy().astype(np.uint8).T)
        image.SetSpacing(SPACING)
        images.append(image)
    # Its contours know nothing beyond the image: a margin of background gives every label a border there.
    images = [sitk.ConstantPad(image, (2, 2, 2), (2, 2, 2)) for image in images]
    borders = [sitk.LabelContour(image, fullyConnected=False) for image in images]
    maps = [sitk.Abs(sitk.SignedMaurerDistanceMap(b, squaredDistance=False, useImageSpacing=True)) for b in borders]
    there, back = (
        sitk.GetArrayFromImage(distance)[sitk.GetArrayFromImage(border) > 0]
        for distance, border in zip(maps, reversed(borders), strict=True)
    )
    found = surface_distances(fixed, warped, [2])[2]
    assert found.asd_mm == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
    assert found.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_surfaces_between_voxels_are_another_measure(spacing):
    """DeepMind's, which Learn2Reg's script calls with a spacing of 1: as near as half a voxel on either side allows."""
    theirs = pytest.importorskip("surface_distance")
    fixed, warped = pair(Grid(SHAPE, np.diag([*spacing, 1])))
    for label, ours in surface_distances(fixed, warped, [1, 2, 3]).items():
        masks = [(m.data == label).numpy() for m in (fixed, warped)]
        in_mm, in_voxels = (
            theirs.compute_robust_hausdorff(theirs.compute_surface_distances(*masks, by), 95.0)
            for by in (spacing, np.ones(3))
        )
        assert 0.1 < abs(ours.hd95_mm - in_mm) < np.linalg.norm(spacing)
        assert (in_voxels == in_mm) == (spacing == (1, 1, 1))


def test_millimetres_do_not_depend_on_how_the_grid_lies_or_is_stored():
    grid = turned()
    fixed, warped = pair(grid)
    expected = surface_distances(fixed, warped, [1, 2])
    plain = [LabelMap(m.data, Grid(SHAPE, np.diag([*SPACING, 1])), "labels") for m in (fixed, warped)]
    flipped = np.eye(4)
    flipped[0, 0], flipped[0, 3] = -1, SHAPE[0] - 1
    stored = [LabelMap(m.data.flip(0), Grid(SHAPE, grid.affine @ flipped), "labels") for m in (fixed, warped)]
    for other in (plain, stored, [warped, fixed]):
        found = surface_distances(*other, [1, 2])
        for label in (1, 2):
            assert found[label].hd95_mm == pytest.approx(expected[label].hd95_mm)
            assert found[label].asd_mm == pytest.approx(expected[label].asd_mm)


def test_sheared_grid_measures_in_the_world():
    affine = np.eye(4)
    affine[0, 1] = 1.0
    ids = torch.zeros(9, 9, 3, dtype=torch.int16)
    ids[2, 2, 1] = 5
    moved = ids.roll((1, -1), (0, 1))  # by (1, -1) voxels: (0, -1) mm
    grid = Grid(ids.shape, affine)
    assert surface_distances(LabelMap(ids, grid), LabelMap(moved, grid), [5])[5].hd95_mm == pytest.approx(1.0)


def test_a_label_that_either_map_lacks_has_no_distance_and_the_same_has_none():
    fixed, warped = pair(Grid.isotropic(SHAPE))
    without = LabelMap(torch.where(warped.data == 3, 0, warped.data), warped.grid)
    steps = []
    found = surface_distances(fixed, without, [1, 3, 77], lambda done, total: steps.append((done, total)))
    assert found[3] is None
    assert found[77] is None
    assert found[1].asd_mm > 0
    assert steps == [(1, 3), (2, 3), (3, 3)]
    same = surface_distances(fixed, fixed, [1])[1]
    assert (same.hd95_mm, same.asd_mm) == (0, 0)
    with pytest.raises(InputError, match="different grids"):
        surface_distances(fixed, LabelMap(warped.data, Grid.isotropic(SHAPE, 2.0)), [1])


@pytest.mark.data
def test_agrees_with_monai_on_manual_labels(data_folder):
    fixed = read_labels(data_folder / "oasis" / "1013_glm.nii.gz")
    warped = read_labels(data_folder / "oasis" / "1019_glm.nii.gz").warp(Affine.identity(3), fixed.grid)
    labels = [4, 11, 59]  # ventricles and a hippocampus
    found = surface_distances(fixed, warped, labels)
    for label in labels:
        one_hot = [(m.data == label)[None, None] for m in (warped, fixed)]
        options = {"include_background": True, "spacing": [1.0, 1.0, 1.0]}
        hd95 = compute_hausdorff_distance(*one_hot, percentile=95, **options).item()
        asd = compute_average_surface_distance(*one_hot, symmetric=True, **options).item()
        assert (found[label].hd95_mm, found[label].asd_mm) == pytest.approx((hd95, asd), abs=1e-4)
