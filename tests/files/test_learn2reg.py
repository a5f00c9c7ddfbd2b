import pickle
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.spatial.transform import Rotation

from stepwarp.errors import InputError, OutputError
from stepwarp.files.learn2reg import is_learn2reg, read_learn2reg, write_learn2reg
from stepwarp.geometry import Affine, DisplacementField, Grid, Image

SHAPE = (16, 12, 10)


def turned(shape, spacing, degrees, origin):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return Grid(shape, affine)


FIXED = turned(SHAPE, (1.0, 1.5, 2.0), (10, -20, 30), (5, 60, -70))
MOVING = turned((14, 13, 12), (-1.2, 1.0, 1.8), (0, 5, 80), (-40, 10, 20))


def displacement(seed=0, shape=SHAPE, longest=1.5):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(*shape, 3)), (2, 2, 2, 0))
    return (noise * longest / np.abs(noise).max()).astype(np.float32)


def save(path, values, affine=None):
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def test_the_moving_image_is_read_at_index_plus_displacement_whatever_the_headers(tmp_path):
    """The challenge's own way of applying a displacement, with linear reading."""
    u = displacement()
    transform = read_learn2reg(save(tmp_path / "disp.nii.gz", u), FIXED, MOVING)
    values = gaussian_filter(np.random.default_rng(1).normal(size=MOVING.shape), 1.5).astype(np.float32)
    index = np.indices(SHAPE) + np.moveaxis(u, -1, 0)
    expected = map_coordinates(values, index, order=1, cval=0.0)
    warped = Image(torch.from_numpy(values), MOVING).warp(transform, onto=FIXED).data.numpy()
    inside = ((index > 0) & (index < np.array(MOVING.shape).reshape(3, 1, 1, 1) - 1)).all(0)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(warped[inside], expected[inside], atol=1e-5)


def test_landmarks_end_where_the_challenge_puts_them(tmp_path):
    u = displacement()
    transform = read_learn2reg(save(tmp_path / "disp.nii.gz", u), FIXED, MOVING)
    at = np.array([[3.0, 4.0, 5.0], [8.0, 6.0, 2.0]])  # voxels, where every interpolation agrees
    towards = at + u[tuple(at.astype(int).T)]
    world = nib.affines.apply_affine(FIXED.affine, at)
    np.testing.assert_allclose(transform(world), nib.affines.apply_affine(MOVING.affine, towards), atol=1e-4)


def test_what_is_written_is_read_as_the_same_map(tmp_path):
    field = DisplacementField(torch.from_numpy(np.moveaxis(displacement(), -1, 0)[None].copy()), FIXED)
    transform = Affine(nib.affines.from_matvec(np.diag([1.05, 0.95, 1.0]), (3, -2, 1))) @ field
    write_learn2reg(tmp_path / "disp_0001_0002.nii.gz", transform, FIXED, MOVING)
    stored = nib.load(tmp_path / "disp_0001_0002.nii.gz")
    assert stored.shape == (*SHAPE, 3)
    again = read_learn2reg(tmp_path / "disp_0001_0002.nii.gz", FIXED, MOVING)
    index = np.random.default_rng(0).uniform(0, np.array(SHAPE) - 1, (50, 3)).round()
    points = nib.affines.apply_affine(FIXED.affine, index)
    np.testing.assert_allclose(again(points), transform(points), atol=1e-3)
    with pytest.raises(OutputError, match="exists already"):
        write_learn2reg(tmp_path / "disp_0001_0002.nii.gz", transform, FIXED, MOVING)
    with pytest.raises(OutputError, match=r"\.nii"):
        write_learn2reg(tmp_path / "disp.npz", transform, FIXED, MOVING)


def test_half_resolution_of_2021_is_enlarged_as_the_challenge_does(tmp_path):
    halves = np.moveaxis(displacement(shape=(8, 6, 5)), -1, 0).astype(np.float16)
    np.savez_compressed(tmp_path / "disp.npz", halves)
    transform = read_learn2reg(tmp_path / "disp.npz", FIXED, MOVING)
    expected = np.stack([zoom(c.astype(np.float32), 2, order=2) for c in halves])
    expect(transform, expected)


def expect(transform, displacements):
    """displacements: (3, I, J, K)."""
    index = np.indices(SHAPE).reshape(3, -1)
    moved = transform(nib.affines.apply_affine(FIXED.affine, index.T))
    target = nib.affines.apply_affine(MOVING.affine, (index + displacements.reshape(3, -1)).T)
    np.testing.assert_allclose(moved, target, atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", ["disp.npz", "disp.nii.gz"])
def test_components_come_first_or_last_of_all_or_half_the_voxels_under_any_name(tmp_path, name, first, half):
    u = displacement(shape=(8, 6, 5) if half else SHAPE)
    stored = np.moveaxis(u, -1, 0) if first else u
    if name == "disp.npz":
        np.savez_compressed(tmp_path / name, spacing=np.ones(3), flow=stored)
    else:
        save(tmp_path / name, stored)
    assert is_learn2reg(tmp_path / name)
    components = np.moveaxis(u, -1, 0)
    expected = np.stack([zoom(c, 2, order=2) for c in components]) if half else components
    expect(read_learn2reg(tmp_path / name, FIXED, MOVING), expected)


def test_its_form_is_known_without_reading_it(tmp_path):
    assert is_learn2reg(save(tmp_path / "a.nii.gz", displacement()))
    assert is_learn2reg(tmp_path / "whatever.npz")
    assert not is_learn2reg(save(tmp_path / "b.nii.gz", np.zeros((4, 4, 4, 1, 3), np.float32)))
    assert not is_learn2reg(save(tmp_path / "c.nii.gz", np.zeros((4, 4, 4), np.float32)))
    assert not is_learn2reg(tmp_path / "0GenericAffine.mat")
    (tmp_path / "d.nii.gz").write_bytes(b"nonsense")
    assert not is_learn2reg(tmp_path / "d.nii.gz")


def test_wrong_shapes_and_values_are_refused(tmp_path):
    path = save(tmp_path / "a.nii.gz", displacement(shape=(16, 12, 11)))
    with pytest.raises(InputError, match=r"16 x 12 x 11 x 3.*needs 16 x 12 x 10 x 3"):
        read_learn2reg(path, FIXED, MOVING)
    broken = displacement()
    broken[0, 0, 0, 1] = np.nan
    with pytest.raises(InputError, match="1 displacements are NaN"):
        read_learn2reg(save(tmp_path / "b.nii.gz", broken), FIXED, MOVING)
    np.savez(tmp_path / "c.npz", np.zeros((3, 8, 6, 4), np.float16))
    with pytest.raises(InputError, match=r"3 x 8 x 6 x 4 numbers.*needs 16 x 12 x 10 x 3, or half"):
        read_learn2reg(tmp_path / "c.npz", FIXED, MOVING)
    odd = Grid((17, 12, 10), FIXED.affine)
    np.savez(tmp_path / "d.npz", np.zeros((3, 8, 6, 5), np.float16))
    with pytest.raises(InputError, match="odd"):
        read_learn2reg(tmp_path / "d.npz", odd, MOVING)


def test_archives_that_are_none_or_hold_code_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        read_learn2reg(path, FIXED, MOVING)
    np.savez(path, one=np.zeros(3), two=np.zeros(3))
    with pytest.raises(InputError, match="holds 3, 3 numbers"):
        read_learn2reg(path, FIXED, MOVING)
    np.savez(path, one=displacement(), two=displacement(), spacing=np.ones(3))
    with pytest.raises(InputError, match="one and two may each"):
        read_learn2reg(path, FIXED, MOVING)
    np.savez(path, np.array([{"an": "object"}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        read_learn2reg(path, FIXED, MOVING)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", pickle.dumps([1, 2, 3]))
    with pytest.raises(InputError, match="cannot be read"):
        read_learn2reg(path, FIXED, MOVING)


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWARP_MAX_GIB", "0.0001")
    np.savez_compressed(tmp_path / "a.npz", np.zeros((3, 80, 60, 50), np.float16))
    with pytest.raises(InputError, match="trap"):
        read_learn2reg(tmp_path / "a.npz", FIXED, MOVING)
