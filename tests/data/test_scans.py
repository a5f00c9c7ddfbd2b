import gzip
import pickle
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass
from scipy.spatial.transform import Rotation

from stepwarp.data import scans as module
from stepwarp.data.manifest import Scan
from stepwarp.data.scans import CachedScans, hold, pack, read_packed
from stepwarp.errors import InputError, OutputError
from stepwarp.files import read_image, read_labels
from stepwarp.geometry import Affine, Grid
from stepwarp.registrar.weights.recipe import Recipe, Spacing, Tissue, Window

from .conftest import LANDMARKS

SHAPE = (44, 50, 38)


def around(centre, spacing=(1.0, 1.0, 1.0), axes=None, shape=SHAPE):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if axes is None else axes) * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


@pytest.fixture
def alignment():
    """Box world -> scan world: a turn and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (8, -12, 15), degrees=True).as_matrix() * 1.05
    matrix[:3, 3] = (1, -2, 0.5)
    return matrix


@pytest.fixture
def scan(scan_at):
    return scan_at("a", around((0, 0, 0)), split="training", subject="p")


def points_of(grid):
    """World points (N, 3) of all voxels."""
    return grid.indices(dtype=torch.float64)[0].flatten(1).T.numpy() @ grid.linear.T + grid.affine[:3, 3]


def world_centre(values, grid):
    return grid.linear @ center_of_mass(values.numpy()) + grid.affine[:3, 3]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 1.2, 2.5)])
def test_landmarks_land_where_the_alignment_says(scan_at, box, recipe, alignment, spacing):
    turned = Rotation.from_euler("zyx", (70, 10, -20), degrees=True).as_matrix()
    scan = scan_at("a", around((2, 1, -1), spacing, turned, (60, 52, 40)))
    prepared = CachedScans([scan], {"a": alignment}, box, recipe, labels=True)["a"]
    labels = prepared.labelled().values()[0, 0]
    for label, point in LANDMARKS.items():
        expected = Affine(alignment).inverse()(point[None])[0]
        assert np.linalg.norm(world_centre((labels == label).float(), box) - expected) < 0.7
        away = np.linalg.norm(Affine(alignment)(points_of(box)) - point, axis=1).reshape(box.shape)
        image = prepared.intensities()[0, 0] * torch.from_numpy(away < 6)
        assert np.linalg.norm(world_centre(image, box) - expected) < 0.25


@pytest.mark.parametrize("codes", ["LAS", "LIA", "PSR", "SAL", "IPL"])
def test_how_a_file_stores_its_axes_does_not_matter(scan, box, recipe, alignment, codes):
    before = CachedScans([scan], {"a": alignment}, box, recipe, labels=True)["a"].parts()
    for path in (scan.image, scan.labels):
        stored = nibabel.load(path)
        ours = nibabel.orientations.io_orientation(stored.affine)
        turn = nibabel.orientations.ornt_transform(ours, nibabel.orientations.axcodes2ornt(codes))
        nibabel.save(stored.as_reoriented(turn), path)
        assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == codes
    after = CachedScans([scan], {"a": alignment}, box, recipe, labels=True)["a"].parts()
    assert before["unit"] == pytest.approx(after["unit"], rel=1e-5)
    assert (before["image"].int() - after["image"].int()).abs().max() <= 1
    assert torch.equal(before["index"], after["index"])


@pytest.mark.parametrize(("image_type", "dtype"), [("uint8", torch.uint8), ("float16", torch.float16)])
def test_intensities_are_those_of_the_recipe_to_the_last_bit_of_the_type(scan, box, recipe, image_type, dtype):
    prepared = CachedScans([scan], {"a": np.eye(4)}, box, recipe, image_type=image_type)["a"]
    exact = recipe.grid.read(recipe.intensities.scale(read_image(scan.image)), Affine.identity(3), box).data
    assert prepared.image.dtype == dtype
    half_a_count = 1.2 / 255 / 2 + 1e-6
    assert (prepared.intensities()[0, 0] - exact).abs().max() <= (half_a_count if dtype == torch.uint8 else 1e-3)
    with pytest.raises(InputError, match="without labels"):
        prepared.labelled()


def test_labels_come_back_as_they_are_whatever_their_number(scan, box, recipe):
    stored = nibabel.load(scan.labels)
    labels = np.random.default_rng(0).choice([-3, 5, *range(1000, 1400)], SHAPE).astype(np.int32)
    nibabel.save(nibabel.Nifti1Image(labels, stored.affine), scan.labels)
    prepared = CachedScans([scan], {"a": np.eye(4)}, box, recipe, labels=True)["a"]
    # The file's voxels are 1 mm along the world's axes: the nearest one is a matter of rounding.
    nearest = np.floor(points_of(box) - stored.affine[:3, 3] + 0.5).astype(int)
    inside = ((nearest >= 0) & (nearest < SHAPE)).all(1)
    expected = np.where(inside, labels[tuple(np.where(inside[:, None], nearest, 0).T)], 0)
    expected = torch.from_numpy(expected.reshape(box.shape))
    assert torch.equal(prepared.labelled().values()[0, 0], expected)
    assert prepared.ids[0] == 0


@pytest.fixture
def reads(monkeypatch):
    """The paths that were read, in order."""
    paths = []
    original = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: (paths.append(path), original(path))[1])
    return paths


@pytest.fixture
def open_cached(scan, box, recipe, tmp_path):
    """Opens the scan through the cache, with something changed."""

    def make(scan=scan, shift=0, recipe=recipe, **more):
        matrix = np.eye(4)
        matrix[0, 3] = shift
        return CachedScans([scan], {"a": matrix}, box, recipe, cache=tmp_path / "cache", **more)["a"]

    return make


def same(one, other):
    assert one.parts().keys() == other.parts().keys()
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one.parts().values(), other.parts().values(), strict=True)
    )


def test_what_was_made_is_kept_and_a_renamed_file_is_the_same(open_cached, scan, reads, tmp_path):
    first = open_cached()
    moved = replace(scan, image=tmp_path / "moved.nii.gz")
    shutil.copy(scan.image, moved.image)
    assert same(first, open_cached())
    assert same(first, open_cached(scan=moved))
    assert len(reads) == 1


def test_a_changed_file_alignment_or_setting_is_made_anew(open_cached, scan, reads):
    first = open_cached()
    assert not same(first, open_cached(shift=4))
    other = Recipe(intensities=Window(low=0, high=500), grid=Spacing(mm=2))
    assert not same(first, open_cached(recipe=other))
    assert open_cached(image_type="float16").image.dtype == torch.float16
    assert open_cached(labels=True).index is not None
    stored = nibabel.load(scan.image)
    changed = np.asarray(stored.dataobj).copy()
    changed[20:24] = 300
    nibabel.save(nibabel.Nifti1Image(changed, stored.affine), scan.image)
    assert not same(first, open_cached())
    assert len(reads) == 6


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damaged(kind, content, trap):
    if kind == "cut off":
        return content[: len(content) // 2]
    if kind == "one bit":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    return {"empty": b"", "text": b"no tensor", "code": pickle.dumps(trap)}[kind]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["cut off", "one bit", "empty", "text", "code"])
def test_a_damaged_file_of_the_cache_is_made_anew(open_cached, reads, tmp_path, kind):
    first = open_cached()
    (file,) = (tmp_path / "cache").iterdir()
    good = file.read_bytes()
    file.write_bytes(damaged(kind, good, _Trap(tmp_path / "trapped")))
    assert same(first, open_cached())
    assert len(reads) == 2
    assert same(first, open_cached())
    assert len(reads) == 2
    assert not (tmp_path / "trapped").exists()


def test_a_cache_that_cannot_be_is_said_so(scan, box, recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cache"):
        CachedScans([scan], {"a": np.eye(4)}, box, recipe, cache=tmp_path / "file")


def test_problems_of_a_scan_are_told_with_its_file(scan, box, recipe):
    with pytest.raises(InputError, match="no alignment for the scan 'a'"):
        CachedScans([scan], {}, box, recipe)
    with pytest.raises(InputError, match="no label map"):
        CachedScans([replace(scan, labels=None)], {"a": np.eye(4)}, box, recipe, labels=True)
    away = np.eye(4)
    away[1, 3] = 500
    with pytest.raises(InputError, match=r"a\.nii\.gz: lies outside"):
        CachedScans([scan], {"a": away}, box, recipe)["a"]
    stored = nibabel.load(scan.labels)
    nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj)[:-3], stored.affine), scan.labels)
    with pytest.raises(InputError, match="does not fit"):
        CachedScans([scan], {"a": np.eye(4)}, box, recipe, labels=True)["a"]
    content = gzip.decompress(scan.image.read_bytes())
    scan.image.write_bytes(gzip.compress(content[: len(content) // 2]))
    with pytest.raises(InputError, match=r"a\.nii\.gz: is cut off"):
        CachedScans([scan], {"a": np.eye(4)}, box, recipe)["a"]


def test_packed_scans_need_nothing_else(scan_at, box, recipe, tmp_path):
    scans = [scan_at(name, around((0, 0, z)), split="training", subject="p") for name, z in (("a", 0), ("b", 3))]
    cached = CachedScans(scans, {"a": np.eye(4), "b": np.eye(4)}, box, recipe, labels=True)
    packed = tmp_path / "scans.safetensors"
    pack(cached, packed)
    for scan in scans:
        scan.image.unlink()
        scan.labels.unlink()
    read = read_packed(packed)
    assert read.grid == box
    assert dict(read.about) == cached.about
    assert read.about["a"].person == "p"
    assert packed.stat().st_size < 2.2 * 2 * np.prod(box.shape)
    with pytest.raises(OutputError, match="exists"):
        pack(read, packed)
    pack(read, tmp_path / "again.safetensors")
    assert all(same(read[name], read_packed(tmp_path / "again.safetensors")[name]) for name in "ab")


def test_packing_changes_nothing(held, tmp_path):
    scans = held(2)
    pack(scans, tmp_path / "p.safetensors")
    read = read_packed(tmp_path / "p.safetensors")
    assert all(same(scans[name], read[name]) for name in scans.about)
    assert all(same(scans[name], hold(scans)[name]) for name in scans.about)


def test_a_damaged_pack_is_refused(held, tmp_path):
    path = tmp_path / "p.safetensors"
    pack(held(2), path)
    content = path.read_bytes()
    bit = bytearray(content)
    bit[-5000] ^= 1
    for broken in (content[:-100], bytes(bit), b"", b"nothing of the kind"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"p\.safetensors: is no file of packed scans"):
            read_packed(path)
    with pytest.raises(InputError, match=r"absent"):
        read_packed(tmp_path / "absent")


@pytest.mark.data
def test_a_real_brain_keeps_its_regions(data_folder, tmp_path):
    """The mean intensity of each tissue in the box is that in the file, in the recipe's unit."""
    scan = Scan("1000", data_folder / "oasis/1000_SS.nii.gz", data_folder / "oasis/1000_glm.nii.gz")
    recipe = Recipe(intensities=Tissue(), grid=Spacing(mm=2))
    full, labels = recipe.intensities.scale(read_image(scan.image)), read_labels(scan.labels)
    box = around(full.grid.centre, (2, 2, 2), shape=(90, 112, 90))
    prepared = CachedScans([scan], {"1000": np.eye(4)}, box, recipe, labels=True)["1000"]
    small = prepared.labelled().values()[0, 0]
    for label in (44, 45, 59, 60):
        expected = full.data[labels.data == label].mean()
        assert prepared.intensities()[0, 0][small == label].mean() == pytest.approx(float(expected), abs=0.04)
        assert (small == label).sum() * 8 == pytest.approx(int((labels.data == label).sum()), rel=0.05)
