import os
import re
import warnings

import ants
import h5py
import nibabel as nib
import nitransforms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from stepwarp.errors import InputError, OutputError
from stepwarp.files import read_image, read_transform, write_affine, write_composite, write_displacement, write_volume
from stepwarp.files.learn2reg import is_learn2reg
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image

LPS = np.array([-1.0, -1.0, 1.0])
TURN = nib.eulerangles.euler2mat(0.3, -0.2, 0.5)


def grid_of(shape, linear, origin=(-30, 12, 7)):
    return Grid(shape, nib.affines.from_matvec(np.asarray(linear, float), origin))


GRIDS = {
    "RAS": grid_of((16, 18, 20), np.eye(3)),
    "LAS": grid_of((16, 18, 20), np.diag([-1, 1, 1])),
    "LPS": grid_of((16, 18, 20), np.diag([-1, -1, 1])),
    "PSR": grid_of((16, 18, 20), [[0, 0, 1], [-1, 0, 0], [0, 1, 0]]),
    "oblique": grid_of((16, 18, 20), TURN),
    "anisotropic": grid_of((21, 17, 9), np.diag([0.8, 1.1, 3.3])),
    "odd, oblique, anisotropic, mirrored": grid_of((15, 17, 11), TURN * (-1.5, 0.9, 2.1)),
}


@pytest.fixture(params=GRIDS)
def grid(request):
    return GRIDS[request.param]


@pytest.fixture
def affine():
    return Affine(nib.affines.from_matvec(TURN * (1.1, 0.9, 1.05) + 0.03, (12.3, -4.5, 6.7)))


def smooth_field(grid, millimetres=3.0):
    noise = np.random.default_rng(1).standard_normal((*grid.shape, 3)).astype(np.float32)
    vectors = gaussian_filter(noise, (3, 3, 3, 0))
    return DisplacementField.from_millimetres(vectors * (millimetres / np.abs(vectors).max()), grid)


def affine_about(affine, centre):
    """Its linear part, turning about a point."""
    linear = affine.matrix[:3, :3]
    return Affine(nib.affines.from_matvec(linear, centre - linear @ centre))


def points_in(grid, count=200):
    """Inside by a voxel: beyond its grid a displacement that is read ends."""
    index = np.random.default_rng(2).uniform(1, np.array(grid.shape) - 2, (count, 3))
    return index @ grid.linear.T + grid.affine[:3, 3]


def by_simpleitk(path, points):
    if str(path).endswith(".nii.gz"):
        transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    else:
        transform = sitk.ReadTransform(str(path))
    return by_transform(transform, points)


def by_transform(transform, points):
    return np.array([transform.TransformPoint(tuple(p)) for p in points * LPS]) * LPS


def field_of_simpleitk(grid):
    vectors = (smooth_field(grid).millimetres().double().numpy() * LPS).transpose(2, 1, 0, 3)
    image = sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)
    image.SetOrigin((LPS * grid.affine[:3, 3]).tolist())
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection((LPS[:, None] * grid.linear / grid.spacing).ravel().tolist())
    return sitk.DisplacementFieldTransform(image)


def field_of(path):
    return sitk.ReadImage(str(path), sitk.sitkVectorFloat64)


def by_ants(paths, points):
    table = pd.DataFrame(points * LPS, columns=list("xyz"))
    paths = [str(path) for path in paths]
    mapped = ants.apply_transforms_to_points(3, table, paths, whichtoinvert=[False] * len(paths))
    return mapped[list("xyz")].to_numpy() * LPS


def by_nitransforms(path, points):
    if str(path).endswith(".nii.gz"):
        return nitransforms.nonlinear.load(path, fmt="itk").map(points)
    if str(path).endswith(".h5"):
        return nitransforms.manip.load(path, fmt="itk").map(points)
    return nitransforms.linear.load(path, fmt="itk").map(points)


def refused(path, *words, **keywords):
    with pytest.raises(InputError) as caught:
        read_transform(path, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message


# --- what is written, judged by strangers


@pytest.mark.parametrize("centre", [None, (40.0, -17.5, 3.25)])
@pytest.mark.parametrize("name", ["0GenericAffine.mat", "a.tfm", "a.txt"])
def test_strangers_map_points_by_an_affine_as_we_do(tmp_path, affine, name, centre):
    path = tmp_path / name
    write_affine(path, affine, centre)
    points = points_in(GRIDS["RAS"])
    np.testing.assert_allclose(by_simpleitk(path, points), affine(points), atol=1e-9)
    np.testing.assert_allclose(by_ants([path], points), affine(points), atol=1e-4)
    np.testing.assert_allclose(by_nitransforms(path, points), affine(points), atol=1e-4)
    np.testing.assert_allclose(read_transform(path).matrix, affine.matrix, atol=1e-12)
    if centre is not None:
        np.testing.assert_allclose(sitk.AffineTransform(sitk.ReadTransform(str(path))).GetCenter(), LPS * centre)


def test_strangers_map_points_by_a_field_as_we_do(tmp_path, grid):
    field, path = smooth_field(grid), tmp_path / "1Warp.nii.gz"
    write_displacement(path, field)
    points = points_in(grid)
    np.testing.assert_allclose(by_simpleitk(path, points), field(points), atol=1e-4)
    np.testing.assert_allclose(by_ants([path], points), field(points), atol=1e-4)
    np.testing.assert_allclose(read_transform(path)(points), field(points), atol=1e-4)
    assert read_transform(path).grid == grid


@pytest.mark.parametrize("unit", [0.1, 0.01, 0.001])
def test_a_field_of_small_voxels_is_written_as_exactly_as_one_of_large_ones(tmp_path, unit):
    grid = Grid((9, 10, 11), np.diag([unit, unit, unit, 1]))
    field, path = smooth_field(grid, unit), tmp_path / "1Warp.nii.gz"
    write_displacement(path, field)
    points = points_in(grid)
    np.testing.assert_allclose(by_simpleitk(path, points) / unit, field(points) / unit, atol=1e-3)


def test_where_a_field_ends_strangers_read_the_identity_and_so_do_we(tmp_path, grid):
    """Its outermost half voxels and beyond, near and far, from every kind of file."""
    field = smooth_field(grid)
    field = DisplacementField(field.displacement + 1.5, grid)  # nowhere 0
    index = np.random.default_rng(3).uniform(-2, np.array(grid.shape) + 1, (400, 3))
    edge = np.array([[-0.49, 5, 5], [-0.51, 5, 5], [5, grid.shape[1] - 0.51, 5], [5, 5, grid.shape[2] - 0.49]])
    points = np.vstack([edge, index]) @ grid.linear.T + grid.affine[:3, 3]
    write_displacement(tmp_path / "w.nii.gz", field)
    expected = by_simpleitk(tmp_path / "w.nii.gz", points)
    still = np.linalg.norm(expected - points, axis=1) < 1e-9
    assert still[:4].tolist() == [False, True, False, True]
    assert 0.2 < still.mean() < 0.8
    np.testing.assert_allclose(by_ants([tmp_path / "w.nii.gz"], points), expected, atol=1e-4)
    for name in ("w.nii.gz", "w.h5", "w.tfm"):
        if name != "w.nii.gz":
            sitk.WriteTransform(sitk.DisplacementFieldTransform(field_of(tmp_path / "w.nii.gz")), str(tmp_path / name))
        np.testing.assert_allclose(read_transform(tmp_path / name)(points), expected, atol=1e-4)


def test_an_image_is_moved_as_by_strangers_where_the_field_ends(tmp_path, grid):
    """Onto a grid that reaches beyond the field's, at half its spacing: some voxels lie on the very edge."""
    field = smooth_field(grid)
    write_displacement(tmp_path / "w.nii.gz", DisplacementField(field.displacement + 1.5, grid))
    shape = tuple(2 * n + 9 for n in grid.shape)
    fine = Grid(shape, nib.affines.from_matvec(grid.linear / 2, grid.affine[:3, 3] - grid.linear @ [2.1, 2, 1.9]))
    values = torch.from_numpy(np.random.default_rng(4).random(shape, np.float32))
    write_volume(tmp_path / "m.nii.gz", Image(values, fine))
    image = sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    chain = sitk.DisplacementFieldTransform(field_of(tmp_path / "w.nii.gz"))
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, chain, sitk.sitkLinear, 0.0)).T
    warp, read = read_transform(tmp_path / "w.nii.gz"), read_image(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(read.warp(warp).data.numpy(), expected, atol=1e-3)
    both = Composition.of(Affine.identity(3), Affine(np.diag([1, 1, 1, 1.0])), warp)
    np.testing.assert_allclose(read.warp(both).data.numpy(), expected, atol=1e-3)


def test_nitransforms_reads_the_vectors_of_a_field(tmp_path, grid):
    # At the voxels: between them nitransforms interpolates by cubic splines.
    field, path = smooth_field(grid), tmp_path / "1Warp.nii.gz"
    write_displacement(path, field)
    index = np.random.default_rng(3).integers(2, np.array(grid.shape) - 2, (50, 3))
    points = index @ grid.linear.T + grid.affine[:3, 3]
    np.testing.assert_allclose(by_nitransforms(path, points), field(points), atol=1e-3)


def test_a_field_is_stored_in_the_form_that_all_readers_share(tmp_path):
    path = tmp_path / "1Warp.nii.gz"
    write_displacement(path, smooth_field(GRIDS["oblique"]))
    header = nib.load(path).header
    assert header.get_data_shape() == (16, 18, 20, 1, 3)
    assert header["intent_code"] == 1007
    assert header.get_data_dtype() == np.float32
    assert header["sform_code"] == header["qform_code"] == 1
    assert header.get_xyzt_units()[0] == "mm"


def test_ants_chains_the_files_as_the_composition_does(tmp_path, affine, grid):
    field = smooth_field(grid)
    write_affine(tmp_path / "0GenericAffine.mat", affine)
    write_displacement(tmp_path / "1Warp.nii.gz", field)
    points = points_in(grid)
    mapped = by_ants([tmp_path / "1Warp.nii.gz", tmp_path / "0GenericAffine.mat"], points)
    np.testing.assert_allclose(mapped, (affine @ field)(points), atol=2e-4)


def test_strangers_map_points_by_a_composite_as_we_do(tmp_path, affine, grid):
    field, path = smooth_field(grid), tmp_path / "Composite.h5"
    composition = affine @ field
    write_composite(path, composition)
    points = points_in(grid)
    np.testing.assert_allclose(by_simpleitk(path, points), composition(points), atol=1e-4)
    np.testing.assert_allclose(by_ants([path], points), composition(points), atol=1e-4)
    back = read_transform(path)
    assert [type(part) for part in back.parts] == [Affine, DisplacementField]
    np.testing.assert_allclose(back(points), composition(points), atol=1e-4)


def test_a_composite_keeps_the_order_of_many_parts(tmp_path, affine):
    fields = smooth_field(GRIDS["RAS"]), smooth_field(GRIDS["oblique"], 1.0)
    first, second = (DisplacementField(f.displacement, f.grid, outside="zero") for f in fields)
    for chain in (second @ affine @ first, affine, first, affine @ second @ affine.inverse()):
        write_composite(tmp_path / "c.h5", chain, overwrite=True)
        points = points_in(GRIDS["RAS"])
        back = read_transform(tmp_path / "c.h5")
        assert isinstance(back, type(chain))
        np.testing.assert_allclose(back(points), chain(points), atol=1e-4)


def test_ants_moves_an_image_by_the_files_as_we_do(tmp_path, affine):
    fixed, moving = GRIDS["oblique"], GRIDS["anisotropic"]
    values = gaussian_filter(np.random.default_rng(4).standard_normal(moving.shape), 1.5).astype(np.float32)
    image, still = Image(torch.from_numpy(values), moving), Image(torch.zeros(fixed.shape), fixed)
    field = smooth_field(fixed)
    write_volume(tmp_path / "moving.nii.gz", image)
    write_volume(tmp_path / "fixed.nii.gz", still)
    towards = Affine(nib.affines.from_matvec(np.eye(3), moving.centre - fixed.centre)) @ affine_about(
        affine, fixed.centre
    )
    write_affine(tmp_path / "0GenericAffine.mat", towards)
    write_displacement(tmp_path / "1Warp.nii.gz", field)
    moved = ants.apply_transforms(
        ants.image_read(str(tmp_path / "fixed.nii.gz")),
        ants.image_read(str(tmp_path / "moving.nii.gz")),
        [str(tmp_path / "1Warp.nii.gz"), str(tmp_path / "0GenericAffine.mat")],
    )
    ours = image.warp(towards @ field, onto=fixed).data.numpy()
    assert (ours != 0).mean() > 0.5
    close = np.abs(moved.numpy() - ours) < 1e-3 * np.abs(values).max()
    assert close.mean() > 0.998  # a voxel on the edge of the moving image may fall to either side


# --- what strangers wrote


def linear_transforms():
    euler = sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, -0.3, (4, 5, 6))
    versor = sitk.VersorRigid3DTransform((0, 0.6, 0.8), 0.4, (1, 2, 3), (7, 8, 9))
    similarity = sitk.Similarity3DTransform(1.2, (1, 0, 0), 0.3, (3, 2, 1), (5, 5, 5))
    scale = sitk.ScaleVersor3DTransform((1.1, 0.9, 1.0), (0, 0, 1), 0.2, (1, 1, 1), (2, 3, 4))
    skew = sitk.ScaleSkewVersor3DTransform((1.1, 0.9, 1.0), [0.1] * 6, (0, 0, 1), 0.2, (1, 1, 1), (2, 3, 4))
    others = (sitk.TranslationTransform(3, (1, 2, 3)), sitk.ScaleTransform(3, (1, 2, 3)), sitk.Transform(3, 1))
    return [euler, versor, similarity, scale, skew, sitk.CompositeTransform([euler, similarity]), *others]


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
@pytest.mark.parametrize("transform", linear_transforms(), ids=lambda t: t.GetName())
def test_every_linear_transform_of_itk_is_an_affine(tmp_path, transform, suffix):
    if suffix == ".mat" and transform.GetName() == "CompositeTransform":
        pytest.skip("ITK does not write it so")
    path = tmp_path / f"a{suffix}"
    sitk.WriteTransform(transform, str(path))
    points = points_in(GRIDS["RAS"])
    ours = read_transform(path)
    assert isinstance(ours, Affine)
    expected = by_transform(transform, points)
    np.testing.assert_allclose(ours(points), expected, atol=1e-9)


VERSOR, SHIFT, SCALE, SKEW, CENTRE = [0.1, -0.2, 0.3], [4, -5, 6], [1.1, 0.9, 1.05], [0.05, -0.04, 0.03], [10, 20, -30]
MATRIX = [1.1, 0.1, -0.05, 0.02, 0.9, 0.1, -0.1, 0.03, 1.05]
#: Those that SimpleITK has no class for; by itself it does not read them, inside a composite it does.
WITHOUT_A_CLASS = {
    "MatrixOffsetTransformBase": (MATRIX + SHIFT, CENTRE),
    "ScalableAffineTransform": (MATRIX + SHIFT, CENTRE),
    "FixedCenterOfRotationAffineTransform": (MATRIX + SHIFT + [0, 0, 0], CENTRE),
    "CenteredAffineTransform": (MATRIX + CENTRE + SHIFT, [1, 2, 3]),
    "CenteredEuler3DTransform": (VERSOR + CENTRE + SHIFT, [1, 2, 3, 0]),
    "CenteredEuler3DTransform, Z first": (VERSOR + CENTRE + SHIFT, [0, 0, 0, 1]),
    "CenteredEuler3DTransform of ITK 4": (VERSOR + CENTRE + SHIFT, [0, 0, 0]),
    "Euler3DTransform of ITK 4": (VERSOR + SHIFT, CENTRE),
    "ComposeScaleSkewVersor3DTransform": (VERSOR + SHIFT + SCALE + SKEW, CENTRE),
    "QuaternionRigidTransform": ([0.1, -0.2, 0.3, -0.927, *SHIFT], CENTRE),
    "QuaternionRigidTransform, longer than 1": ([0.2, -0.4, 0.6, 1.8, *SHIFT], CENTRE),
    "ScaleLogarithmicTransform": (VERSOR, CENTRE),
    "VersorTransform": (VERSOR, CENTRE),
    "ScaleTransform": (SCALE, CENTRE),
    "IdentityTransform": ([], []),
}
COMPOSITE = "Transform: CompositeTransform_double_3_3\n"


def in_text(name, parameters, fixed):
    lines = [f"{tag}: {' '.join(map(str, v))}\n" for tag, v in (("Parameters", parameters), ("FixedParameters", fixed))]
    return f"Transform: {name}_double_3_3\n" + "".join(lines)


def in_matlab(name, parameters, fixed):
    """Two records, as ITK writes them."""
    records = ((f"{name}_double_3_3", parameters), ("fixed", fixed))
    heads = [np.array([0, len(values), 1, 0, len(text) + 1], "<i4").tobytes() for text, values in records]
    return b"".join(
        head + text.encode() + b"\0" + np.array(values, "<f8").tobytes()
        for head, (text, values) in zip(heads, records, strict=True)
    )


@pytest.mark.parametrize("title", WITHOUT_A_CLASS)
def test_linear_transforms_that_simpleitk_does_not_read_by_themselves(tmp_path, title):
    (parameters, fixed), name = WITHOUT_A_CLASS[title], re.split("[ ,]", title)[0]
    text, points = in_text(name, parameters, fixed), points_in(GRIDS["oblique"])
    (tmp_path / "alone.tfm").write_text("#Insight Transform File V1.0\n" + text)
    (tmp_path / "alone.mat").write_bytes(in_matlab(name, parameters, fixed))
    (tmp_path / "chain.tfm").write_text("#Insight Transform File V1.0\n" + COMPOSITE + text)
    theirs = sitk.CompositeTransform(sitk.ReadTransform(str(tmp_path / "chain.tfm")))
    expected = by_transform(theirs, points)
    for path in ("alone.tfm", "alone.mat", "chain.tfm"):
        np.testing.assert_allclose(read_transform(tmp_path / path)(points), expected, atol=1e-9)
    theirs.AddTransform(field_of_simpleitk(GRIDS["oblique"]))
    for path in ("with_field.h5", "with_field.tfm"):
        sitk.WriteTransform(theirs, str(tmp_path / path))
        np.testing.assert_allclose(read_transform(tmp_path / path)(points), by_transform(theirs, points), atol=1e-4)


def test_a_rigid_transform_by_its_matrix_which_itk_writes_and_does_not_read(tmp_path):
    numbers = list(TURN.ravel()) + SHIFT, CENTRE
    for name in ("Rigid3DTransform", "AffineTransform"):
        (tmp_path / f"{name}.tfm").write_text("#Insight Transform File V1.0\n" + in_text(name, *numbers))
    ours, theirs = (read_transform(tmp_path / f"{n}.tfm").matrix for n in ("Rigid3DTransform", "AffineTransform"))
    np.testing.assert_array_equal(ours, theirs)


def test_single_precision_and_the_base_class_as_older_tools_write_them(tmp_path, affine):
    write_affine(tmp_path / "a.txt", affine, (1, 2, 3))
    text = (tmp_path / "a.txt").read_text()
    for name in ("AffineTransform_float_3_3", "MatrixOffsetTransformBase_double_3_3"):
        (tmp_path / "b.txt").write_text(text.replace("AffineTransform_double_3_3", name))
        np.testing.assert_allclose(read_transform(tmp_path / "b.txt").matrix, affine.matrix, atol=1e-6)


def test_nitransforms_affines_are_read(tmp_path, affine):
    for name in ("a.tfm", "a.mat"):
        nitransforms.linear.Affine(affine.matrix).to_filename(tmp_path / name, fmt="itk")
        np.testing.assert_allclose(read_transform(tmp_path / name).matrix, affine.matrix, atol=1e-4)


def test_transforms_of_ants_are_read(tmp_path):
    rng = np.random.default_rng(0)
    fixed = gaussian_filter(rng.standard_normal((24, 26, 28)), 3).astype(np.float32)
    fixed = ants.from_numpy(fixed, origin=(5, -6, 7), spacing=(2, 1.5, 2.5), direction=TURN)
    moving = ants.from_numpy(np.roll(fixed.numpy(), 1, 0), origin=(3, 3, 3), spacing=(2, 1.5, 2.5), direction=TURN)
    options = {"type_of_transform": "SyN", "reg_iterations": (5, 2), "aff_iterations": (5,), "aff_shrink_factors": (1,)}
    options |= {"aff_smoothing_sigmas": (0,), "random_seed": 1}
    lps = nib.affines.from_matvec(TURN * fixed.spacing, fixed.origin)
    points = points_in(Grid(fixed.shape, np.diag([-1, -1, 1, 1]) @ lps))
    files = ants.registration(fixed, moving, outprefix=f"{tmp_path}/a", **options)["fwdtransforms"]
    ours = Composition.of(*(read_transform(path) for path in reversed(files)))
    np.testing.assert_allclose(ours(points), by_ants(files, points), atol=1e-4)

    options["write_composite_transform"] = True
    composite = ants.registration(fixed, moving, outprefix=f"{tmp_path}/b", **options)["fwdtransforms"]
    np.testing.assert_allclose(read_transform(composite)(points), by_ants([composite], points), atol=1e-4)


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_composites_of_simpleitk_are_read(tmp_path, suffix, affine):
    write_displacement(tmp_path / "w.nii.gz", smooth_field(GRIDS["oblique"]))
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "w.nii.gz"), sitk.sitkVectorFloat64))
    chain = sitk.CompositeTransform([sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.3), field])
    path = tmp_path / f"c{suffix}"
    sitk.WriteTransform(chain, str(path))
    points = points_in(GRIDS["oblique"])
    np.testing.assert_allclose(read_transform(path)(points), by_simpleitk(path, points), atol=1e-4)


def test_fields_of_simpleitk_are_read(tmp_path):
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(7, 8, 9, 3)), isVector=True)
    image.SetDirection(TURN.ravel().tolist())
    image.SetSpacing((1, 2, 3))
    sitk.WriteImage(image, str(tmp_path / "w.nii.gz"))
    ours = read_transform(tmp_path / "w.nii.gz")
    points = points_in(ours.grid)
    np.testing.assert_allclose(ours(points), by_simpleitk(tmp_path / "w.nii.gz", points), atol=1e-4)


# --- what is refused


@pytest.mark.parametrize("name", ["a.mat", "a.tfm", "c.h5"])
def test_files_that_lost_their_end(tmp_path, affine, name):
    path = tmp_path / name
    write_composite(path, affine) if name == "c.h5" else write_affine(path, affine, (1.5, 2.25, 3.125))
    content = path.read_bytes()
    lengths = range(len(content)) if len(content) < 1000 else range(0, len(content), 97)
    for length in lengths:
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize("suffix", [".mat", ".tfm", ".txt", ".h5", ".hdf5", ".nii", ".nii.gz", ".xfm", ""])
def test_files_that_are_something_else(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    refused(path)
    path.touch()
    refused(path, "empty") if suffix != ".nii.gz" else refused(path)
    path.write_bytes(np.random.default_rng(0).bytes(2000))
    refused(path)
    path.write_text("1 0 0 5\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")  # FSL's
    refused(path)


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\n", "Parameters: 1 0 0\n"),
        ("Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\n", "Parameters: 1 0 0 0 1 0 0 0 1 0 0 x\n"),
        ("Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\n", "Parameters: nan 0 0 0 1 0 0 0 1 0 0 0\n"),
        ("Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\n", ""),
        ("FixedParameters: 0 0 0\n", ""),
        ("FixedParameters: 0 0 0\n", "FixedParameters: 0\n"),
        ("FixedParameters: 0 0 0\n", "FixedParameters: 0 0 0"),
        ("Transform: AffineTransform_double_3_3\n", "Transform: UnheardTransform_double_3_3\n"),
    ],
)
def test_texts_that_lack_something(tmp_path, line, instead):
    path = tmp_path / "a.tfm"
    write_affine(path, Affine.identity(3))
    text = path.read_text()
    assert line in text
    path.write_text(text.replace(line, instead))
    refused(path)


def test_several_transforms_in_one_file_are_not_taken_for_the_first(tmp_path, affine):
    for suffix in (".tfm", ".mat"):
        write_affine(tmp_path / f"a{suffix}", affine)
        content = (tmp_path / f"a{suffix}").read_bytes()
        path = tmp_path / f"two{suffix}"
        path.write_bytes(content + (content.split(b"\n", 1)[1] if suffix == ".tfm" else content))
        refused(path, "2 transforms")


def test_a_singular_affine(tmp_path):
    singular = sitk.AffineTransform(3)
    singular.SetParameters([0.0] * 9 + [1, 2, 3])
    sitk.WriteTransform(singular, str(tmp_path / "a.tfm"))
    refused(tmp_path / "a.tfm", "singular")


def test_transforms_of_a_plane_and_splines(tmp_path):
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "a.tfm"))
    refused(tmp_path / "a.tfm", "is a transform of 2D space")
    perspective = in_text("Rigid3DPerspectiveTransform", VERSOR + SHIFT, []).replace("3_3", "3_2")
    (tmp_path / "p.tfm").write_text("#Insight Transform File V1.0\n" + perspective)
    refused(tmp_path / "p.tfm", "3D to 2D")
    spline = sitk.BSplineTransformInitializer(sitk.Image(9, 9, 9, sitk.sitkFloat32), [2, 2, 2])
    for transform in (spline, sitk.CompositeTransform([sitk.Euler3DTransform(), spline])):
        sitk.WriteTransform(transform, str(tmp_path / "b.h5"))
        refused(tmp_path / "b.h5", "BSplineTransform", "antsApplyTransforms")


def field_file(path, shape, intent, value=0.5, affine=GRIDS["RAS"].affine, dtype=np.float32):
    image = nib.Nifti1Image(np.full(shape, value, dtype), affine)
    image.header.set_intent(intent)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


def test_fields_in_other_forms(tmp_path):
    refused(field_file(tmp_path / "a.nii.gz", (8, 9, 10, 3), 1007), "8 x 9 x 10 x 3", "I x J x K x 1 x 3")
    refused(field_file(tmp_path / "b.nii.gz", (8, 9, 10), 0), "8 x 9 x 10")
    refused(field_file(tmp_path / "c.nii.gz", (8, 9, 10, 1, 3), 1006), "1006", "sign")
    refused(field_file(tmp_path / "d.nii.gz", (8, 9, 10, 1, 3), 0), "intent")
    refused(field_file(tmp_path / "e.nii.gz", (8, 9, 10, 1, 2), 1007), "8 x 9 x 10 x 1 x 2")
    refused(field_file(tmp_path / "f.nii.gz", (8, 9, 10, 1, 3), 1007, np.nan), "720 displacements")
    assert isinstance(read_transform(field_file(tmp_path / "g.nii.gz", (8, 9, 10, 1, 3), 1007)), DisplacementField)


def spoilt(content, at, length=200):
    return content[:at] + np.random.default_rng(0).bytes(length) + content[at + length :]


@pytest.mark.parametrize("name", ["none.h5", "spoilt.h5", "huge.h5", "spoilt.nii", "huge.nii"])
def test_what_the_readers_of_a_damaged_file_say_of_it_is_not_on_the_terminal(tmp_path, capfd, caplog, name):
    path = tmp_path / name
    if name == "none.h5":
        path.write_bytes(b"nonsense" * 99)
    elif path.suffix == ".h5":
        sitk.WriteTransform(sitk.CompositeTransform([field_of_simpleitk(GRIDS["RAS"])]), str(path))
        with h5py.File(path, "r+") as file:
            group = file["TransformGroup/1"]
            values = group["TransformParameters"][()]
            values[5] = 1e300 if name == "huge.h5" else 0.0
            del group["TransformParameters"]
            at = (
                group.create_dataset("TransformParameters", data=values, compression=4).id.get_chunk_info(0).byte_offset
            )
        if name == "spoilt.h5":
            path.write_bytes(spoilt(path.read_bytes(), at))
    else:
        field_file(path, (8, 9, 10, 1, 3), 1007, 1e300 if name == "huge.nii" else 0.5, dtype=np.float64)
        if name == "spoilt.nii":
            path.write_bytes(spoilt(path.read_bytes(), 252, 4))  # the codes of qform and sform
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(path)
        assert not is_learn2reg(path)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_truncated_field_is_not_filled_with_zeros(tmp_path):
    path = tmp_path / "w.nii.gz"
    write_displacement(path, smooth_field(GRIDS["RAS"]))
    path.write_bytes(path.read_bytes()[:-2000])
    refused(path, "cut off")


def test_a_field_without_a_place(tmp_path):
    path = field_file(tmp_path / "a.nii.gz", (8, 9, 10, 1, 3), 1007)
    image = nib.load(path)
    image.header["qform_code"] = image.header["sform_code"] = 0
    header = image.header
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, header), tmp_path / "b.nii.gz")
    refused(tmp_path / "b.nii.gz", "does not say where it lies")
    assert read_transform(tmp_path / "b.nii.gz", trust="sform").grid == Grid((8, 9, 10), GRIDS["RAS"].affine)


def test_a_composite_with_values_that_are_not_finite(tmp_path, affine):
    write_composite(tmp_path / "c.h5", affine @ smooth_field(GRIDS["RAS"]))
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file["TransformGroup/2/TransformParameters"][5] = np.nan
    refused(tmp_path / "c.h5", "1 displacements")


def test_what_cannot_be_written_leaves_nothing(tmp_path, affine):
    field = smooth_field(GRIDS["RAS"])
    sheared = Grid(field.grid.shape, GRIDS["RAS"].affine + 0.1 * np.eye(4, k=1) * (1, 1, 1, 0))
    broken = DisplacementField(field.displacement * torch.nan, field.grid)
    with pytest.raises(OutputError, match=r"\.mat"):
        write_affine(tmp_path / "a.xfm", affine)
    with pytest.raises(OutputError, match=r"\.nii"):
        write_displacement(tmp_path / "a.h5", field)
    with pytest.raises(OutputError, match=r"\.h5"):
        write_composite(tmp_path / "a.mat", affine)
    with pytest.raises(OutputError, match="not finite"):
        write_displacement(tmp_path / "a.nii.gz", broken)
    with pytest.raises(OutputError, match="shear"):
        write_displacement(tmp_path / "a.nii.gz", DisplacementField(field.displacement, sheared))
    with pytest.raises(OutputError, match="shear"):
        write_composite(tmp_path / "a.h5", DisplacementField(field.displacement, sheared))
    with pytest.raises(OutputError, match="missing"):
        write_composite(tmp_path / "missing" / "a.h5", affine)
    assert list(tmp_path.iterdir()) == []
    for write, name, transform in (
        (write_affine, "a.mat", affine),
        (write_displacement, "a.nii.gz", field),
        (write_composite, "a.h5", field),
    ):
        write(tmp_path / name, transform)
        with pytest.raises(OutputError, match="--force"):
            write(tmp_path / name, transform)
        write(tmp_path / name, transform, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "a.mat", "a.nii.gz"]


def test_a_name_that_is_not_utf8(tmp_path):
    folder = tmp_path / b"J\xf6rg".decode("utf-8", "surrogateescape")
    folder.mkdir()
    affine = Affine(np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 7)
    write_affine(folder / "a.mat", affine)
    np.testing.assert_allclose(read_transform(folder / "a.mat")(np.zeros((1, 3))), [[7, 0, 0]])
    assert [path.name for path in folder.iterdir()] == ["a.mat"]


@pytest.mark.parametrize("kept", [0, 60])
@pytest.mark.parametrize("name", ["a.mat", "a.tfm"])
def test_a_disk_that_takes_less_than_itk_writes_is_noticed(tmp_path, monkeypatch, name, kept):
    write = sitk.WriteTransform

    def cut_off(transform, path):
        write(transform, path)
        os.truncate(path, kept)

    monkeypatch.setattr(sitk, "WriteTransform", cut_off)
    with pytest.raises(OutputError, match="Is the disk full"):
        write_affine(tmp_path / name, Affine.identity(3))
    assert not list(tmp_path.iterdir())
