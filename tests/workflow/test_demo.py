import importlib.util

import nibabel as nib
import numpy as np
import pytest
import torch

from stepwarp.config import AffineSettings, DeformableSettings, Level, Preset
from stepwarp.data.mni152 import Template, mni152
from stepwarp.errors import InputError, OutputError
from stepwarp.files import read_image, read_labels, read_transform
from stepwarp.geometry import Affine, DisplacementField, Image, inverse_residual
from stepwarp.kernels import jacobian
from stepwarp.workflow import demo as module
from stepwarp.workflow.demo import demo, make_pair, measured

#: A recipe that is done in seconds, and good enough to tell better from worse.
QUICK = Preset(
    affine=AffineSettings(across=10, refine_across=(20,), candidates=1),
    deformable=DeformableSettings(levels=(Level(across=20, iterations=40),)),
)


@pytest.fixture(scope="module")
def template():
    """The brain of the demo at 4 mm, so that tests are quick."""
    fine = mni152()
    brain, *tissues = (image.coarser(4) for image in (fine.brain, *fine.tissues))
    return Template(brain, tuple(tissues), brain.data > 0.1)


@pytest.fixture(scope="module")
def pair(template):
    return make_pair(template, seed=0)


def brain_points(pair):
    return nib.affines.apply_affine(pair.fixed.grid.affine, pair.mask.nonzero().numpy())


def test_template_is_nilearns_brain_with_a_margin():
    template = mni152()
    rim = torch.ones_like(template.mask)
    rim[16:-16, 16:-16, 16:-16] = False
    assert not template.mask[rim].any()
    assert template.mask.sum() > 1_800_000
    # The anterior commissure is the origin of the MNI world, and lies in the brain.
    origin = np.rint(nib.affines.apply_affine(template.brain.grid.inverse_affine, [0, 0, 0])).astype(int)
    assert template.mask[tuple(origin)]


def test_nilearn_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="nilearn"):
        mni152()


def test_moving_brain_under_the_true_transform_is_the_fixed_one_up_to_contrast(pair):
    back = pair.moving.warp(pair.transform, onto=pair.fixed.grid).data[pair.mask]
    before = pair.moving.warp(Affine.identity(3), onto=pair.fixed.grid).data[pair.mask]
    curve = (pair.fixed.data[pair.mask] / 255) ** 1.5
    assert np.corrcoef(back, curve)[0, 1] > 0.9
    assert np.corrcoef(before, curve)[0, 1] < 0.5


def test_true_inverse_undoes_the_true_transform(pair):
    residual = inverse_residual(pair.transform, pair.inverse, brain_points(pair))
    # 4 mm voxels; at the 1 mm of the demo it is a hundredth of this.
    assert np.percentile(residual, 95) < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_truth_is_a_diffeomorphism_of_up_to_twelve_millimetres(template, seed):
    pair = make_pair(template, seed)
    length = pair.warp.millimetres().norm(dim=-1)[pair.mask]
    assert 8 < length.max() <= 12.5
    for field in (pair.warp, pair.inverse_warp):
        assert jacobian.smallest_corner_determinant(field.displacement).min() > 0


def test_affine_turns_by_eight_degrees_and_stretches(pair):
    left, stretch, right = np.linalg.svd(pair.affine.matrix[:3, :3])
    degrees = np.degrees(np.arccos((np.trace(left @ right) - 1) / 2))
    assert degrees == pytest.approx(8, abs=0.5)
    assert (abs(stretch - 1) <= 0.06 + 1e-9).all()


def test_moving_image_has_another_grid_and_holds_the_whole_brain(pair):
    moving = pair.moving
    assert nib.aff2axcodes(moving.grid.affine) == ("L", "A", "S")
    assert moving.grid.shape != pair.fixed.grid.shape
    assert moving.grid.spacing / pair.fixed.grid.spacing == pytest.approx([1, 1.1, 1])
    inside = Image(torch.ones_like(moving.data), moving.grid).warp(pair.transform, onto=pair.fixed.grid).data
    assert (inside[pair.mask] == 1).all()


def test_labels_overlap_under_the_truth_only(pair):
    truth, nothing = measured(pair, pair.transform), measured(pair, Affine.identity(3))
    assert set(truth.dice) == {"grey matter", "white matter"}
    assert all(truth.dice[name] > 0.8 > nothing.dice[name] for name in truth.dice)


def test_error_is_the_distance_from_the_truth(pair):
    assert measured(pair, pair.transform).error.max_mm == 0
    shift = Affine(nib.affines.from_matvec(np.eye(3), (3, 0, 4)))
    error = measured(pair, shift @ pair.transform).error
    assert (error.mean_mm, error.max_mm) == pytest.approx((5, 5))


def test_equal_seeds_give_equal_pairs(template, pair):
    again, other = make_pair(template, seed=0), make_pair(template, seed=1)
    assert (again.moving.data == pair.moving.data).all()
    assert (again.affine.matrix == pair.affine.matrix).all()
    assert not np.allclose(other.affine.matrix, pair.affine.matrix)


@pytest.fixture(scope="module")
def demonstration(template, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "mni152", lambda: template)
        steps = []
        yield demo(tmp_path_factory.mktemp("demo") / "out", preset=QUICK, progress=steps.append), steps


def test_demo_brings_the_brains_together(demonstration):
    rows = demonstration[0].rows()
    before, affine, after = rows["error, mean (mm)"]
    assert after < affine < before
    assert all(values[-1] > values[0] for name, values in rows.items() if name.startswith("Dice"))


def test_demo_leaves_the_pair_and_the_truth(demonstration, pair):
    out = demonstration[0].folder.parent
    assert (read_image(out / "fixed.nii.gz").data == pair.fixed.data).all()
    assert (read_image(out / "moving.nii.gz").data == pair.moving.data).all()
    assert (read_labels(out / "moving_labels.nii.gz").data == pair.moving_labels.data).all()
    points = brain_points(pair)
    warp, back = (read_transform(out / "truth" / name) for name in ("1Warp.nii.gz", "1InverseWarp.nii.gz"))
    affine = read_transform(out / "truth" / "0GenericAffine.mat")
    assert isinstance(warp, DisplacementField)
    assert np.abs((affine @ warp)(points) - pair.transform(points)).max() < 1e-3
    assert np.abs((back @ affine.inverse())(points) - pair.inverse(points)).max() < 1e-3


def test_demo_shows_the_truth_in_the_report(demonstration):
    result, steps = demonstration
    page = (result.folder / "report.html").read_text()
    assert all(name in page for name in result.rows())
    assert steps[0].stage == "second brain"
    assert result.registration.record["inputs"]["moving"]["path"].endswith("moving.nii.gz")


def test_demo_replaces_nothing_unasked(demonstration, template, monkeypatch):
    monkeypatch.setattr(module, "mni152", lambda: template)
    with pytest.raises(OutputError, match=r"already\. Choose another folder"):
        demo(demonstration[0].folder.parent, preset=QUICK)


def test_demo_replaces_no_file_that_no_demo_has_made(template, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "mni152", lambda: template)
    (tmp_path / "fixed.nii.gz").write_text("precious")
    with pytest.raises(OutputError, match=r"fixed\.nii\.gz: is there already"):
        demo(tmp_path, preset=QUICK, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["fixed.nii.gz"]
    (tmp_path / "result").mkdir()  # the user's images, and their registration
    (tmp_path / "result" / "registration.json").write_text('{"outputs": {}}')
    with pytest.raises(OutputError, match=r"fixed\.nii\.gz: is there already"):
        demo(tmp_path, preset=QUICK, overwrite=True)


def test_a_result_that_cannot_be_replaced_is_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "make_pair", lambda *arguments: pytest.fail("it was made"))
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "report.html").write_text("precious")
    with pytest.raises(OutputError, match=r"report\.html: is there already"):
        demo(tmp_path, preset=QUICK, overwrite=True)


def test_demo_needs_a_place_to_write(template, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "mni152", lambda: template)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        demo(tmp_path / "file" / "out", preset=QUICK)
