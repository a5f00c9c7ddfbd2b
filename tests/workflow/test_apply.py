import json
import shutil

import ants
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import center_of_mass, gaussian_filter

from stepwarp.errors import InputError, OutputError
from stepwarp.files import (
    Landmarks,
    read_image,
    read_labels,
    read_landmarks,
    read_transform,
    write_affine,
    write_composite,
    write_displacement,
    write_landmarks,
    write_volume,
)
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image, LabelMap
from stepwarp.workflow.apply import apply

TURN = nib.eulerangles.euler2mat(0.3, -0.2, 0.5)


def grid_of(shape, linear, centre=(3.0, -8.0, 5.0)):
    """A grid whose middle lies at `centre` (mm)."""
    linear = np.asarray(linear, float)
    return Grid(shape, nib.affines.from_matvec(linear, centre - linear @ ((np.array(shape) - 1) / 2)))


GRIDS = {
    "RAS": (grid_of((24, 26, 28), np.eye(3)), grid_of((28, 30, 26), np.diag([1.1, 1.0, 1.2]))),
    "LAS, RAS": (grid_of((24, 26, 28), np.diag([-1, 1, 1])), grid_of((28, 30, 26), np.eye(3))),
    "RAS, LAS": (grid_of((24, 26, 28), np.eye(3)), grid_of((28, 30, 26), np.diag([-1, 1.2, 1]))),
    "oblique": (grid_of((24, 26, 28), TURN), grid_of((30, 28, 26), TURN.T * (-1.0, 1.2, 0.9))),
}
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, -0.08) * (1.05, 0.95, 1.0), (1.5, -1.0, 0.5))


def field_on(grid, longest_mm=2.5):
    """Smooth and random up to the border."""
    noise = np.random.default_rng(1).standard_normal((*grid.shape, 3))
    vectors = gaussian_filter(noise, (4, 4, 4, 0))
    return DisplacementField.from_millimetres(vectors * (longest_mm / np.abs(vectors).max()), grid)


def smooth_image(grid, seed=2):
    values = gaussian_filter(np.random.default_rng(seed).standard_normal(grid.shape), 2.5)
    return Image(torch.from_numpy(100 + 500 * values).float(), grid)


def blob(grid, point, sigma=2.0):
    """A Gaussian bump about a world point."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    distance = np.linalg.norm(index @ grid.linear.T + grid.affine[:3, 3] - point, axis=-1)
    return Image(torch.from_numpy(100 * np.exp(-(distance**2) / (2 * sigma**2))).float(), grid)


def top_of(image):
    """The world point of a bump's top: the power narrows it to where the map is about linear."""
    return nib.affines.apply_affine(image.grid.affine, center_of_mass(image.data.numpy() ** 6))


def points_near(grid, count=20):
    return grid.centre + np.random.default_rng(3).uniform(-6, 6, (count, 3))


class Folder:
    """The folder of a registration, without having registered, and the images that belong to it."""

    def __init__(self, path, fixed_grid, moving_grid, affine_only=False, status="pass"):
        self.path, self.fixed_grid, self.moving_grid = path, fixed_grid, moving_grid
        path.mkdir()
        self.affine, self.warp = Affine(AFFINE), field_on(fixed_grid)
        self.inverse_warp = self.warp.inverse()
        write_affine(path / "0GenericAffine.mat", self.affine)
        if not affine_only:
            write_displacement(path / "1Warp.nii.gz", self.warp)
            write_displacement(path / "1InverseWarp.nii.gz", self.inverse_warp)
        grids = {"fixed": fixed_grid, "moving": moving_grid}
        record = {
            "inputs": {side: {"shape": g.shape, "affine": g.affine.tolist()} for side, g in grids.items()},
            "settings": {"affine_only": affine_only},
            "verdict": {"status": status, "reasons": []},
        }
        (path / "registration.json").write_text(json.dumps(record))
        self.fixed, self.moving = path.parent / "fixed.nii.gz", path.parent / "moving.nii.gz"
        write_volume(self.fixed, smooth_image(fixed_grid, 5))
        write_volume(self.moving, smooth_image(moving_grid))

    @property
    def files(self):
        """What antsApplyTransforms is given to bring the moving image to the fixed one."""
        return [str(self.path / "1Warp.nii.gz"), str(self.path / "0GenericAffine.mat")]

    @property
    def files_back(self):
        return [str(self.path / "0GenericAffine.mat"), str(self.path / "1InverseWarp.nii.gz")]


@pytest.fixture(params=GRIDS, scope="module")
def any_folder(request, tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("any") / "result", *GRIDS[request.param])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("one") / "result", *GRIDS["oblique"])


@pytest.fixture
def own_path(folder, tmp_path):
    """A copy of the folder to be damaged."""
    return shutil.copytree(folder.path, tmp_path / "result")


def write_points(path, points, space="ras"):
    write_landmarks(path, Landmarks([f"p{n}" for n in range(len(points))], points), space)
    return path


def carried(tmp_path, transforms, path, name, **options):
    """What one file becomes."""
    out = tmp_path / name
    transforms = transforms if isinstance(transforms, list) else [transforms]
    [done] = apply(transforms, [path], [out], **options)
    assert done.output == out
    return out, done


# Images, beside ANTs and SimpleITK.


def test_moving_image_lands_where_ants_puts_it(any_folder, tmp_path):
    out, done = carried(tmp_path, any_folder.path, any_folder.moving, "moved.nii.gz")
    fixed, moving = (ants.image_read(str(path)) for path in (any_folder.fixed, any_folder.moving))
    theirs = ants.apply_transforms(fixed, moving, any_folder.files).numpy()
    ours = read_image(out)
    assert ours.grid == any_folder.fixed_grid
    assert np.abs(ours.data.numpy() - theirs).max() < 1e-3 * np.ptp(theirs)
    assert done.kind == "image"


def test_fixed_image_lands_where_ants_puts_it(any_folder, tmp_path):
    out, _ = carried(tmp_path, any_folder.path, any_folder.fixed, "back.nii.gz", source="fixed")
    fixed, moving = (ants.image_read(str(path)) for path in (any_folder.fixed, any_folder.moving))
    theirs = ants.apply_transforms(moving, fixed, any_folder.files_back, whichtoinvert=[True, False]).numpy()
    ours = read_image(out)
    assert ours.grid == any_folder.moving_grid
    # At the rim of the fixed image one voxel may be inside for one and outside for the other.
    assert (np.abs(ours.data.numpy() - theirs) > 1e-3 * np.ptp(theirs)).mean() < 1e-3


WAYS = {"linear": sitk.sitkLinear, "cubic": sitk.sitkBSpline3}


@pytest.mark.parametrize("way", WAYS)
def test_moving_image_lands_where_simpleitk_puts_it(any_folder, tmp_path, way):
    out, _ = carried(tmp_path, any_folder.path, any_folder.moving, "moved.nii.gz", interpolation=way)
    fixed, moving = (sitk.ReadImage(str(path)) for path in (any_folder.fixed, any_folder.moving))
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(any_folder.files[0], sitk.sitkVectorFloat64))
    # SimpleITK, too, applies the last of a composite first.
    chain = sitk.CompositeTransform([sitk.ReadTransform(any_folder.files[1]), field])
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, chain, WAYS[way])).transpose(2, 1, 0)
    assert np.abs(read_image(out).data.numpy() - theirs).max() < 1e-3 * np.ptp(theirs)


def test_files_in_the_order_of_ants_do_what_their_folder_does(folder, tmp_path):
    by_folder, _ = carried(tmp_path, folder.path, folder.moving, "a.nii.gz")
    by_files, _ = carried(tmp_path, folder.files, folder.moving, "b.nii.gz", reference=folder.fixed)
    assert torch.allclose(read_image(by_folder).data, read_image(by_files).data, atol=0.01)


def test_bracketed_files_do_what_their_folder_does_backwards(folder, tmp_path):
    chain = [f"[{folder.files_back[0]},1]", folder.files_back[1]]
    by_folder, _ = carried(tmp_path, folder.path, folder.fixed, "a.nii.gz", target="moving")
    by_files, _ = carried(tmp_path, chain, folder.fixed, "b.nii.gz", reference=folder.moving)
    assert torch.allclose(read_image(by_folder).data, read_image(by_files).data, atol=0.01)


def test_inverse_of_a_chain_of_files_is_close_to_the_inverse_on_disk(folder, tmp_path):
    by_folder, _ = carried(tmp_path, folder.path, folder.fixed, "a.nii.gz", source="fixed")
    options = {"inverse": True, "reference": folder.moving}
    by_files, done = carried(tmp_path, folder.files, folder.fixed, "b.nii.gz", **options)
    assert (read_image(by_folder).data - read_image(by_files).data).abs().max() < 0.1
    assert any("inverted numerically" in note for note in done.notes)


def test_a_folder_in_a_chain_stands_for_its_files(folder, tmp_path):
    further = tmp_path / "further.mat"
    write_affine(further, Affine(nib.affines.from_matvec(np.eye(3), (2, 0, -1))))
    by_files, _ = carried(tmp_path, [*folder.files, further], folder.moving, "a.nii.gz", reference=folder.fixed)
    by_both, _ = carried(tmp_path, [folder.path, further], folder.moving, "b.nii.gz", reference=folder.fixed)
    assert (read_image(by_files).data == read_image(by_both).data).all()


def test_a_composite_file_is_applied(folder, tmp_path):
    composite = tmp_path / "both.h5"
    write_composite(composite, Composition.of(folder.affine, folder.warp))
    by_folder, _ = carried(tmp_path, folder.path, folder.moving, "a.nii.gz")
    by_file, _ = carried(tmp_path, composite, folder.moving, "b.nii.gz", reference=folder.fixed)
    assert torch.allclose(read_image(by_folder).data, read_image(by_file).data, atol=0.05)


def test_a_reference_gives_the_grid(folder, tmp_path):
    reference = tmp_path / "reference.nii.gz"
    write_volume(reference, smooth_image(grid_of((12, 13, 14), 2 * np.eye(3))))
    out, _ = carried(tmp_path, folder.path, folder.moving, "moved.nii.gz", reference=reference)
    assert read_image(out).grid == read_image(reference).grid


def test_trust_places_the_reference_and_the_transform_as_well(folder, tmp_path):
    """Files that are named one by one; each of them says nothing of its own place."""
    paths = {"moving": folder.moving, "fixed": folder.fixed, "warp": folder.path / "1Warp.nii.gz"}
    for name, path in paths.items():
        image = nib.load(path)
        image.header["sform_code"] = image.header["qform_code"] = 0
        nib.Nifti1Image(image.dataobj, None, image.header).to_filename(tmp_path / f"{name}.nii.gz")
    chain = [tmp_path / "warp.nii.gz", folder.path / "0GenericAffine.mat"]
    options = {"reference": tmp_path / "fixed.nii.gz"}
    with pytest.raises(InputError, match="does not say where it lies"):
        carried(tmp_path, chain, tmp_path / "moving.nii.gz", "none.nii.gz", **options)
    out, done = carried(tmp_path, chain, tmp_path / "moving.nii.gz", "a.nii.gz", trust="sform", **options)
    expected, _ = carried(tmp_path, folder.path, folder.moving, "b.nii.gz")
    assert torch.allclose(read_image(out).data, read_image(expected).data, atol=0.01)
    assert sum("placed by its sform" in note for note in done.notes) == 3


def test_affine_only_folder_needs_no_warp(tmp_path):
    folder = Folder(tmp_path / "result", *GRIDS["LAS, RAS"], affine_only=True)
    out, done = carried(tmp_path, folder.path, folder.moving, "moved.nii.gz")
    expected = read_image(folder.moving).warp(Affine(AFFINE), onto=folder.fixed_grid)
    assert torch.allclose(read_image(out).data, expected.data, atol=1e-3)
    assert "1Warp" not in done.how


# Landmarks, beside ANTs.


def test_landmarks_through_files_go_where_ants_sends_them(any_folder, tmp_path):
    points = points_near(any_folder.fixed_grid)
    source = write_points(tmp_path / "in.csv", points, "lps")
    out, _ = carried(tmp_path, any_folder.files, source, "out.csv", space="lps")
    theirs = ants.apply_transforms_to_points(3, pd.read_csv(source)[["x", "y", "z"]], any_folder.files)
    ours = pd.read_csv(out)
    assert np.abs(ours[["x", "y", "z"]].to_numpy() - theirs[["x", "y", "z"]].to_numpy()).max() < 1e-3
    assert list(ours.name) == [f"p{n}" for n in range(len(points))]


def test_landmarks_from_fixed_go_through_the_same_map_as_moving_images(any_folder, tmp_path):
    points = points_near(any_folder.fixed_grid)
    source = write_points(tmp_path / "in.csv", points)
    out, _ = carried(tmp_path, any_folder.path, source, "out.csv", source="fixed")
    expected = any_folder.affine(any_folder.warp(points))
    assert np.abs(read_landmarks(out).points - expected).max() < 1e-3


def test_landmarks_from_moving_are_brought_back(any_folder, tmp_path):
    points = points_near(any_folder.fixed_grid)
    in_moving = write_points(tmp_path / "in.csv", any_folder.affine(any_folder.warp(points)))
    out, _ = carried(tmp_path, any_folder.path, in_moving, "out.csv")
    assert np.abs(read_landmarks(out).points - points).max() < 0.1


@pytest.mark.parametrize("suffix", ["csv", "fcsv", "mrk.json"])
def test_every_format_of_landmarks_is_carried(folder, tmp_path, suffix):
    points = points_near(folder.fixed_grid)
    source = write_points(tmp_path / f"in.{suffix}", points)
    out, done = carried(tmp_path, folder.path, source, f"out.{suffix}", source="fixed")
    assert np.abs(read_landmarks(out).points - folder.affine(folder.warp(points))).max() < 1e-3
    assert done.kind == "landmarks"


def test_voxel_indices_are_those_of_the_image_that_the_landmarks_come_from(folder, tmp_path):
    source = tmp_path / "in.csv"
    world = nib.affines.apply_affine(folder.moving_grid.affine, [15, 14, 12])
    expected = folder.inverse_warp(folder.affine.inverse()(world))
    for text, space in (("name,i,j,k\na,15,14,12\n", None), ("x,y,z\n15,14,12\n", "voxel"), ("15,14,12\n", "voxel")):
        source.write_text(text)
        out, done = carried(tmp_path, folder.path, source, "out.csv", space=space, overwrite=True)
        assert np.abs(read_landmarks(out).points - expected).max() < 1e-3
        assert not any("kept" in note for note in done.notes)
    with pytest.raises(InputError, match="is in voxels, and nothing says of which image"):
        carried(tmp_path, folder.files, source, "none.csv", space="voxel")


@pytest.mark.parametrize("source", ["moving", "fixed"])
def test_an_image_and_a_landmark_on_one_journey_arrive_together(any_folder, tmp_path, source):
    """The pain of every user: whatever the direction, a bump and the point on its top stay together."""
    grids = {"fixed": any_folder.fixed_grid, "moving": any_folder.moving_grid}
    point = any_folder.fixed_grid.centre + np.array([2.0, -1.5, 1.0])
    image, csv = tmp_path / "bump.nii.gz", write_points(tmp_path / "top.csv", point[None])
    write_volume(image, blob(grids[source], point))
    outputs = [tmp_path / "bump_out.nii.gz", tmp_path / "top_out.csv"]
    apply([any_folder.path], [image, csv], outputs, source=source)
    arrived = read_landmarks(outputs[1]).points[0]
    assert np.linalg.norm(arrived - point) > 1
    assert np.linalg.norm(top_of(read_image(outputs[0])) - arrived) < 0.3


# Label maps and interpolation.


def labels_on(grid, step=3):
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    values = 1000 + (index // (grid.shape[0] // step)).sum(0)
    values[:3] = 0
    return LabelMap(torch.from_numpy(values.astype(np.int16)), grid)


def test_label_map_is_recognised_and_keeps_its_labels(folder, tmp_path):
    source = tmp_path / "labels.nii.gz"
    write_volume(source, labels_on(folder.moving_grid))
    out, done = carried(tmp_path, folder.path, source, "out.nii.gz")
    ours = read_labels(out)
    assert ours.data.dtype == torch.int16
    assert set(ours.data.unique().tolist()) <= set(labels_on(folder.moving_grid).data.unique().tolist()) | {0}
    assert done.kind == "labels"
    assert "label map by its values" in done.how


def test_label_map_equals_that_of_ants(folder, tmp_path):
    source = tmp_path / "labels.nii.gz"
    write_volume(source, labels_on(folder.moving_grid))
    out, _ = carried(tmp_path, folder.path, source, "out.nii.gz", labels=True)
    fixed, moving = ants.image_read(str(folder.fixed)), ants.image_read(str(source))
    theirs = ants.apply_transforms(fixed, moving, folder.files, interpolator="nearestNeighbor").numpy()
    assert (read_labels(out).data.numpy() != theirs).mean() < 1e-3


def test_mask_is_recognised_whatever_its_shape(folder, tmp_path):
    source = tmp_path / "mask.nii.gz"
    dots = torch.zeros(folder.moving_grid.shape)
    dots[::3, ::3, ::3] = 1
    write_volume(source, Image(dots, folder.moving_grid))
    _, done = carried(tmp_path, folder.path, source, "out.nii.gz")
    assert done.kind == "labels"


def test_image_of_whole_numbers_is_no_label_map(folder, tmp_path):
    source = tmp_path / "t1.nii.gz"
    write_volume(source, read_image(folder.moving), dtype=torch.int16)
    out, done = carried(tmp_path, folder.path, source, "out.nii.gz")
    assert done.kind == "image"
    assert (read_image(out).data % 1 != 0).any()


def test_what_could_be_either_is_refused_until_it_is_stated(folder, tmp_path):
    source = tmp_path / "either.nii.gz"
    values = labels_on(folder.moving_grid).data.clone().reshape(-1)
    values[::8] += torch.arange(len(values[::8]), dtype=torch.int16) % 97
    write_volume(source, LabelMap(values.reshape(folder.moving_grid.shape), folder.moving_grid))
    with pytest.raises(InputError, match=r"either.nii.gz.*--labels"):
        carried(tmp_path, folder.path, source, "out.nii.gz")
    _, done = carried(tmp_path, folder.path, source, "out.nii.gz", interpolation="linear")
    assert done.kind == "image"


def test_nearest_makes_no_new_intensities(folder, tmp_path):
    out, done = carried(tmp_path, folder.path, folder.moving, "out.nii.gz", interpolation="nearest")
    known = torch.cat([read_image(folder.moving).data.flatten(), torch.zeros(1)])
    assert torch.isin(read_image(out).data.flatten(), known).all()
    assert done.kind == "image"


def test_lost_labels_are_told(folder, tmp_path):
    labels = labels_on(folder.moving_grid)
    labels.data[-1, -1, -1] = 77
    source = tmp_path / "labels.nii.gz"
    write_volume(source, labels)
    _, done = carried(tmp_path, folder.path, source, "out.nii.gz")
    assert any("77" in note for note in done.notes)


@pytest.mark.parametrize("way", ["linear", "cubic", "sinc"])
def test_labels_have_nothing_in_between(folder, tmp_path, way):
    with pytest.raises(InputError, match=f"--labels with --interpolation {way}"):
        carried(tmp_path, folder.path, folder.moving, "out.nii.gz", labels=True, interpolation=way)


def test_partial_volumes_are_linear_and_sum_to_one(folder, tmp_path):
    labels = labels_on(folder.moving_grid)
    source = tmp_path / "labels.nii.gz"
    write_volume(source, labels)
    out, done = carried(tmp_path, folder.path, source, "parts.nii.gz", partial_volumes=True)
    parts = nib.load(out)
    listed = json.loads((tmp_path / "parts.json").read_text())["LabelMap"]
    assert listed == sorted({0, *labels.data.unique().tolist()})
    assert parts.shape == (*folder.fixed_grid.shape, len(listed))
    np.testing.assert_allclose(parts.affine, folder.fixed_grid.affine, atol=1e-5)
    values = np.asarray(parts.dataobj)
    assert values.dtype == np.float32
    assert values.min() >= 0
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
    assert done.kind == "labels"
    value = listed[-1]
    write_volume(tmp_path / "one.nii.gz", Image((labels.data == value).float(), labels.grid))
    one, _ = carried(tmp_path, folder.path, tmp_path / "one.nii.gz", "alone.nii.gz", interpolation="linear")
    np.testing.assert_allclose(values[..., -1], np.asarray(nib.load(one).dataobj), atol=1e-6)
    for options in ({"interpolation": "nearest"}, {"outside": 3}):
        with pytest.raises(InputError, match="--partial-volumes with"):
            carried(tmp_path, folder.path, source, "again.nii.gz", partial_volumes=True, **options)
    with pytest.raises(OutputError, match=r"parts\.json"):
        carried(tmp_path, folder.path, source, "parts.nii", partial_volumes=True)


# What is said, and what is refused.


def test_it_says_which_files_were_used(folder, tmp_path):
    _, forward = carried(tmp_path, folder.path, folder.moving, "a.nii.gz")
    _, back = carried(tmp_path, folder.path, folder.fixed, "b.nii.gz", source="fixed")
    assert "moving to fixed" in forward.how
    assert f"{folder.files[0]}, then {folder.files[1]}" in forward.how
    assert "fixed to moving" in back.how
    assert f"[{folder.files_back[0]},1], then {folder.files_back[1]}" in back.how


def test_failed_registration_is_mentioned(tmp_path):
    folder = Folder(tmp_path / "result", *GRIDS["RAS"], status="fail")
    _, done = carried(tmp_path, folder.path, folder.moving, "a.nii.gz")
    assert any("fail" in note for note in done.notes)


def test_landmarks_outside_their_image_are_mentioned(folder, tmp_path):
    source = write_points(tmp_path / "in.csv", np.array([folder.moving_grid.centre, (300.0, 0, 0)]))
    _, done = carried(tmp_path, folder.path, source, "out.csv")
    assert any("1 of 2" in note for note in done.notes)


def test_image_on_the_wrong_side_is_refused_unless_it_is_meant(folder, tmp_path):
    with pytest.raises(InputError, match=r"fixed.nii.gz.*--from fixed"):
        carried(tmp_path, folder.path, folder.fixed, "out.nii.gz")
    carried(tmp_path, folder.path, folder.fixed, "out.nii.gz", source="moving")


def test_image_that_misses_the_grid_is_refused(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere.nii.gz"
    write_volume(elsewhere, smooth_image(grid_of((12, 13, 14), np.eye(3), centre=(900, 0, 0))))
    with pytest.raises(InputError, match=r"elsewhere.nii.gz.*nothing"):
        carried(tmp_path, folder.path, elsewhere, "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()


def test_images_and_landmarks_do_not_go_through_files_together(folder, tmp_path):
    csv = write_points(tmp_path / "in.csv", points_near(folder.fixed_grid))
    with pytest.raises(InputError, match="opposite ways"):
        apply(folder.files, [folder.moving, csv], [tmp_path / "a.nii.gz", tmp_path / "b.csv"], reference=folder.fixed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inverse": True}, "--from fixed"),
        ({"source": "fixed", "target": "fixed"}, "nothing to do"),
        ({"target": "moving", "source": "moving"}, "nothing to do"),
    ],
)
def test_contradictions_about_a_folder_are_refused(folder, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        carried(tmp_path, folder.path, folder.moving, "out.nii.gz", **options)


def test_files_know_no_sides_and_no_grid(folder, tmp_path):
    with pytest.raises(InputError, match="--from, --to"):
        carried(tmp_path, folder.files, folder.moving, "out.nii.gz", source="moving", reference=folder.fixed)
    with pytest.raises(InputError, match="--reference"):
        carried(tmp_path, folder.files, folder.moving, "out.nii.gz")


def test_landmarks_want_no_reference(folder, tmp_path):
    csv = write_points(tmp_path / "in.csv", points_near(folder.fixed_grid))
    with pytest.raises(InputError, match="landmarks need no grid"):
        carried(tmp_path, folder.path, csv, "out.csv", reference=folder.fixed)


def test_folder_that_lost_its_record_is_refused(folder, own_path, tmp_path):
    (own_path / "registration.json").unlink()
    (own_path / "report.html").touch()
    with pytest.raises(InputError, match=r"result.*registration.json"):
        carried(tmp_path, own_path, folder.moving, "out.nii.gz")


def test_folder_without_any_transform_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"registration.json"):
        carried(tmp_path, tmp_path, folder.moving, "out.nii.gz")


@pytest.mark.parametrize("prefix", ["", "sub-01_"])
def test_result_of_ants_is_used_as_that_of_register_but_has_no_grid(folder, own_path, tmp_path, prefix):
    expected = carried(tmp_path, folder.path, folder.moving, "expected.nii.gz")[0]
    csv = write_points(tmp_path / "in.csv", points_near(folder.moving_grid))
    expected_points = carried(tmp_path, folder.path, csv, "expected.csv")[0]
    (own_path / "registration.json").unlink()
    for path in list(own_path.iterdir()):
        path.rename(own_path / (prefix + path.name))
    for transform in (own_path, *([own_path / prefix] if prefix else [])):
        name = transform.name
        out, _ = carried(tmp_path, transform, folder.moving, f"{name}.nii.gz", reference=folder.fixed)
        np.testing.assert_allclose(read_image(out).data, read_image(expected).data, atol=1e-3)
        points, _ = carried(tmp_path, transform, csv, f"{name}.csv")
        assert points.read_text() == expected_points.read_text()
    with pytest.raises(InputError, match="--reference"):
        carried(tmp_path, own_path, folder.moving, "out.nii.gz")


def test_two_results_of_ants_in_one_folder_are_told_apart_by_their_prefixes(folder, own_path, tmp_path):
    (own_path / "registration.json").unlink()
    shutil.copy(own_path / "0GenericAffine.mat", own_path / "other_0GenericAffine.mat")
    with pytest.raises(InputError, match=r"several registrations.*other_"):
        carried(tmp_path, own_path, folder.moving, "out.nii.gz", reference=folder.fixed)
    _, done = carried(tmp_path, own_path / "other_", folder.moving, "out.nii.gz", reference=folder.fixed)
    assert "other_0GenericAffine.mat" in done.how
    assert "Warp" not in done.how


def test_composite_of_ants_uses_its_inverse_file(folder, tmp_path):
    write_composite(tmp_path / "x_Composite.h5", Composition.of(folder.affine, folder.warp))
    write_composite(tmp_path / "x_InverseComposite.h5", Composition.of(folder.inverse_warp, folder.affine.inverse()))
    csv = write_points(tmp_path / "in.csv", points_near(folder.moving_grid))
    _, done = carried(tmp_path, tmp_path / "x_", csv, "out.csv")
    assert "x_InverseComposite.h5" in done.how
    assert not done.notes


def test_damaged_record_is_refused(folder, own_path, tmp_path):
    (own_path / "registration.json").write_text('{"inputs": ')
    with pytest.raises(InputError, match=r"registration.json.*not the record"):
        carried(tmp_path, own_path, folder.moving, "out.nii.gz")


def test_folder_that_lost_its_warp_is_refused(folder, own_path, tmp_path):
    (own_path / "1InverseWarp.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1InverseWarp.nii.gz is missing"):
        carried(tmp_path, own_path, folder.moving, "out.nii.gz")


def test_missing_transform_is_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"absent.mat.*does not exist"):
        carried(tmp_path, tmp_path / "absent.mat", folder.moving, "out.nii.gz", reference=folder.fixed)


def test_outputs_are_checked_before_anything_is_written(folder, tmp_path):
    existing = tmp_path / "there.nii.gz"
    existing.write_text("precious")
    outputs = [tmp_path / "new.nii.gz", existing]
    with pytest.raises(OutputError, match=r"there.nii.gz.*--force"):
        apply([folder.path], [folder.moving, folder.moving], outputs)
    assert not outputs[0].exists()
    apply([folder.path], [folder.moving, folder.moving], outputs, overwrite=True)
    assert read_image(existing).grid == folder.fixed_grid


def test_an_input_is_never_overwritten(folder):
    with pytest.raises(InputError, match="is an input"):
        apply([folder.path], [folder.moving], [folder.moving], overwrite=True)


def test_output_of_another_kind_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"out.csv.*\.nii"):
        carried(tmp_path, folder.path, folder.moving, "out.csv")


def test_inputs_and_outputs_pair_up(folder, tmp_path):
    with pytest.raises(InputError, match="2 inputs and 1 output do not pair up"):
        apply([folder.path], [folder.moving, folder.fixed], [tmp_path / "a.nii.gz"])


def test_the_files_say_what_the_fixture_means(folder):
    """The transform of the folder, read back, is the affine after the warp."""
    points = points_near(folder.fixed_grid)
    warp, affine = (read_transform(path) for path in folder.files)
    assert np.abs(affine(warp(points)) - folder.affine(folder.warp(points))).max() < 1e-3


def test_outputs_that_cannot_be_written_are_found_before_anything_is_read(tmp_path):
    names = {"missing/a.csv": "no such file", "x" * 300 + ".csv": "too long", "taken.csv": "exists already"}
    (tmp_path / "taken.csv").symlink_to(tmp_path / "nowhere")
    for name, reason in names.items():
        with pytest.raises(OutputError, match=f"(?i){reason}"):
            apply(["absent.mat"], ["absent.csv", "too.csv"], [tmp_path / "fine.csv", tmp_path / name])
    assert [path.name for path in tmp_path.iterdir()] == ["taken.csv"]
