"""ANTs must be given what its own users give it, and told what it is said to be told."""

import subprocess
import sys

import ants
import nibabel
import numpy as np
import pytest

from stepwarp.baselines import BASELINES
from stepwarp.baselines._exchange import as_files
from stepwarp.files import read_image, read_transform, write_volume
from stepwarp.geometry import Affine, Grid, Image

REPRODUCIBLE = "ants-syn-quick-repro"


def saved(image: Image, path) -> str:
    """The image as other software writes it: int16, sform and qform, gzip."""
    values = np.clip(image.data.numpy(), 0, 400).astype(np.int16)
    file = nibabel.Nifti1Image(values, image.grid.affine)
    file.set_qform(image.grid.affine, 1)
    nibabel.save(file, path)
    return str(path)


def small(image: Image) -> Image:
    """Coarse and axis-aligned: enough where only equality counts, and a header whose statements round alike."""
    spacing = 2 * image.grid.spacing.round(1)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    shape = tuple(n // 2 for n in image.grid.shape)
    affine[:3, 3] = image.grid.centre.round() - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return image.warp(Affine.identity(3), Grid(shape, affine))


def test_ants_gets_the_image_that_it_would_read_from_the_users_file(pair, tmp_path):
    path = saved(pair.fixed, tmp_path / "image.nii.gz")
    theirs = ants.image_read(path)
    image = read_image(path)
    with as_files(image, image) as (_, file, _):
        ours = ants.image_read(str(file))
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert ours.pixeltype == theirs.pixeltype
    # An oblique header rounds its sform, its qform and its voxel sizes each in its own way.
    for part in ("origin", "spacing", "direction"):
        np.testing.assert_allclose(getattr(ours, part), getattr(theirs, part), rtol=0, atol=1e-6)


@pytest.mark.data
def test_ants_gets_a_real_image_bit_by_bit(data_folder):
    path = sorted((data_folder / "oasis").rglob("*_SS.nii.gz"))[0]
    theirs = ants.image_read(str(path))
    image = read_image(path)
    with as_files(image, image) as (_, file, _):
        ours = ants.image_read(str(file))
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert (ours.origin, ours.spacing) == (theirs.origin, theirs.spacing)
    np.testing.assert_array_equal(ours.direction, theirs.direction)


def test_registration_is_the_one_of_the_users_own_call(pair, tmp_path):
    fixed, moving = (small(image) for image in (pair.fixed, pair.moving))
    paths = [saved(fixed, tmp_path / "fixed.nii.gz"), saved(moving, tmp_path / "moving.nii.gz")]
    outcome = BASELINES[REPRODUCIBLE](*map(read_image, paths), threads=1, seed=1)
    ants.config.set_ants_deterministic(on=False, seed_value=1)
    try:
        ants.registration(
            *map(ants.image_read, paths),
            type_of_transform=outcome.record["type_of_transform"],
            outprefix=f"{tmp_path}/own",
        )
    finally:
        ants.config.set_ants_deterministic(on=False, seed_value=None)
    affine, warp = (read_transform(tmp_path / name) for name in ("own0GenericAffine.mat", "own1Warp.nii.gz"))
    expected = (affine @ warp)(pair.points)
    np.testing.assert_allclose(outcome.transform(pair.points), expected, rtol=0, atol=1e-6)


def test_the_seed_reaches_ants(pair):
    images = small(pair.fixed), small(pair.moving)
    first, again, other = (
        BASELINES[REPRODUCIBLE](*images, threads=1, seed=seed).transform(pair.points) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(again, first)
    assert np.abs(other - first).max() > 1e-3
    assert ants.config._random_seed is None


@pytest.mark.slow
def test_threads_are_set_before_itk_counts_them(pair, tmp_path):
    paths = [tmp_path / "fixed.nii", tmp_path / "moving.nii"]
    for path, image in zip(paths, (pair.fixed, pair.moving), strict=True):
        write_volume(path, small(image))
    code = f"""
import os, stepwarp
from stepwarp.baselines import BASELINES
from stepwarp.files import read_image
images = [read_image(path) for path in {[str(path) for path in paths]}]
print(*(BASELINES["ants-affine"](*images, threads=threads, seed=1).record["threads"] for threads in (7, 3)))
print(len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, alive = map(int, done.stdout.split())
    assert (first, second) == (7, 7)  # the second call comes too late, and its record says so
    assert alive >= 7
