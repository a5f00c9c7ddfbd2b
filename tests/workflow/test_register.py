"""`stepwarp.register`: what it takes, what it does not depend on, and what it says about itself."""

import hashlib
import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from stepwarp.config import AffineSettings, DeformableSettings, Level, Preset, preset
from stepwarp.data.manifest import pairs, read_manifest
from stepwarp.errors import InputError
from stepwarp.evaluation.landmarks import target_registration_error
from stepwarp.evaluation.overlap import dice, mean_dice
from stepwarp.files import read_image, read_labels, read_landmarks, read_transform, write_volume
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image, LabelMap, inverse_residual
from stepwarp.geometry.intensities import scale_intensities
from stepwarp.kernels import backend, jacobian
from stepwarp.kernels.smoothing import gaussian
from stepwarp.registrar.deformable import as_deformation
from stepwarp.workflow.register import register

#: Labels that the study does not score: exterior, CSF, vessels, rare ids.
NOT_SCORED = (15, 42, 43, 46, 63, 64, 65, 66, 69, 74, 126, 127)
#: All ways of ordering and directing three axes.
ORIENTATIONS = [
    np.column_stack([order, flips])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
#: Enough to tell whether two registrations are the same.
HASTY = Preset(
    affine=AffineSettings(across=10, refine_across=(), candidates=1),
    deformable=DeformableSettings(levels=(Level(across=10, iterations=5),)),
)


@pytest.fixture
def run(brains, recipe):
    """Register the brains, or what is given in place of them, with the quick recipe."""

    def make(fixed=None, moving=None, **kwargs):
        kwargs = {"preset": recipe, "threads": 1} | kwargs
        fixed, moving = (
            ours if theirs is None else theirs
            for ours, theirs in zip((brains.fixed, brains.moving), (fixed, moving), strict=True)
        )
        return register(fixed, moving, **kwargs)

    return make


@pytest.fixture
def mask(brains):
    """A label map on the fixed grid that trusts the brain and its surroundings."""
    return LabelMap((brains.fixed.data > -1).to(torch.uint8), brains.fixed.grid, "mask.nii.gz")


def as_nibabel(image):
    return nib.Nifti1Image(image.data.numpy(), image.grid.affine)


def apart(first, second, points):
    """The largest distance in mm between where two transforms send points."""
    return float(np.linalg.norm(first(points) - second(points), axis=1).max())


def apart_on_average(first, second, points):
    """The mean distance: the last bit of the inputs decides where a field is mended, so single points may differ."""
    return float(np.linalg.norm(first(points) - second(points), axis=1).mean())


def moved_header(image, motion):
    """The same voxels, said to lie elsewhere."""
    return Image(image.data, Grid(image.grid.shape, motion.matrix @ image.grid.affine), image.name)


def test_two_brains_are_brought_together(brains, registration):
    errors = [brains.error(t) for t in (Affine.identity(3), registration.affine, registration.transform)]
    assert errors[1] < 0.45 * errors[0]
    assert errors[2] < 0.8 * errors[1]


def test_the_parts_fit_together(brains, registration):
    chain = Composition.of(registration.affine, registration.warp)
    assert apart(registration.transform, chain, brains.points) == 0
    assert inverse_residual(registration.transform, registration.inverse, brains.points).mean() < 0.2
    assert registration.moved.grid == brains.fixed.grid
    inside = brains.fixed.data > 0.1
    similarity = [
        np.corrcoef(brains.fixed.data[inside], moved.data[inside])[0, 1]
        for moved in (brains.moving.warp(registration.affine, brains.fixed.grid), registration.moved)
    ]
    assert similarity[1] > similarity[0] + 0.02


def test_paths_nibabel_images_and_images_give_the_same(tmp_path, brains, run):
    paths = [tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"]
    for path, image in zip(paths, (brains.fixed, brains.moving), strict=True):
        write_volume(path, image)
    first = run(*paths)
    for kind in (str, nib.load, read_image):
        other = run(*map(kind, paths))
        assert apart(other.transform, first.transform, brains.points) == 0
        assert torch.equal(other.moved.data, first.moved.data)


def test_equal_calls_give_equal_results_to_the_last_bit(registration, run):
    torch.manual_seed(17)
    before = torch.get_rng_state()
    again = run()
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn at random, so there is no seed to set"
    assert again.affine.matrix.tobytes() == registration.affine.matrix.tobytes()
    assert torch.equal(again.warp.displacement, registration.warp.displacement)
    assert again.record["loss"] == registration.record["loss"]


def test_all_48_orientations_of_either_give_the_same_transform_in_the_world(brains, run):
    assert len({orientation.tobytes() for orientation in ORIENTATIONS}) == 48
    fixed, moving = (
        as_nibabel(image.warp(Affine.identity(3), image.grid.coarser(2))) for image in (brains.fixed, brains.moving)
    )
    first = run(fixed, moving, preset=HASTY)
    # Each of the 48 comes by once for the fixed and once, beside another one, for the moving image.
    for one, other in zip(ORIENTATIONS, reversed(ORIENTATIONS), strict=True):
        turned = run(fixed.as_reoriented(one), moving.as_reoriented(other), preset=HASTY)
        assert apart(turned.transform, first.transform, brains.points) < 0.01
        assert apart(turned.inverse, first.inverse, brains.points) < 0.01
        assert turned.fixed.grid == turned.moved.grid == turned.warp.grid


@pytest.mark.parametrize(("which", "factor", "offset"), [("fixed", 0.3, 0), ("moving", 3.0, 0), ("moving", 1.0, -500)])
def test_the_unit_of_the_intensities_does_not_matter(brains, registration, run, which, factor, offset):
    image = getattr(brains, which)
    other = run(**{which: Image(factor * image.data + offset, image.grid, image.name)})
    assert apart_on_average(other.transform, registration.transform, brains.points) < 0.1


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_where_the_headers_say_that_the_brains_are_does_not_matter(brains, registration, run, which):
    turn = Rotation.from_rotvec(np.radians(10) * np.array([0.6, 0.0, 0.8])).as_matrix()
    motion = Affine(np.column_stack([turn, (250.0, -150.0, 80.0)]))
    other = run(**{which: moved_header(getattr(brains, which), motion)})
    if which == "fixed":
        back = Composition.of(other.transform, motion)
    else:
        back = Composition.of(motion.inverse(), other.transform)
    # The finest grid of the linear stage has voxels of 8 mm here.
    assert apart_on_average(back, registration.transform, brains.points) < 0.2


def test_the_record_says_all_and_fits_into_json(tmp_path, brains, run, recipe):
    path = tmp_path / "brain.nii.gz"
    write_volume(path, brains.fixed)
    record = run(path).record
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    assert record["inputs"]["fixed"]["path"] == str(path)
    assert record["inputs"]["fixed"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["inputs"]["fixed"]["orientation"] == "RAS"
    assert record["inputs"]["moving"]["path"] is None
    assert record["inputs"]["moving"]["shape"] == list(brains.moving.grid.shape)
    assert record["inputs"]["moving"]["orientation"] == "LAS"
    assert {"python", "torch", "numba", "nibabel", "SimpleITK", "numpy"} <= record["versions"].keys()
    assert [stage["name"] for stage in record["stages"]] == ["read", "affine", "deformable", "measure"]
    assert all(stage["seconds"] >= 0 and stage["peak_mib"] > 0 for stage in record["stages"])
    assert record["settings"]["preset"] == "custom"
    assert record["settings"]["deformable"] == json.loads(recipe.deformable.model_dump_json()) | {
        "levels": record["settings"]["deformable"]["levels"]
    }
    assert {row["level_mm"] for row in record["loss"]} == {16, 8}
    assert record["verdict"]["status"] in ("pass", "check", "fail")
    assert record["threads"] == 1
    assert record["kernels"] == "cpu"


def test_the_record_names_the_kernels_that_were_left_in_the_end(run, monkeypatch):
    """A back end that cannot compute here is given up on the way."""
    from stepwarp.kernels.cpu import jacobian as kernels

    def fail(*given, **named):
        raise backend.UnusableError("it does not compile")

    monkeypatch.setattr(backend, "_unusable", set())
    monkeypatch.setattr(kernels, "invert", fail)
    with pytest.warns(UserWarning, match=r"plain torch .* 'cpu'.*does not compile"):
        record = run(preset=HASTY).record
    assert record["kernels"] == "reference"


def test_the_record_holds_the_whole_recipe_and_what_was_set_and_makes_a_preset(tmp_path, run, recipe):
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps(recipe.model_dump(mode="json")))
    settings = run(preset=own, set=["levels.0.iterations=1", "deformable.radius=1"], affine_only=True).record[
        "settings"
    ]
    assert settings["preset"] == str(own)
    assert settings["set"] == ["levels.0.iterations=1", "deformable.radius=1"]
    assert (settings["weights"], settings["steps"], settings["refine"], settings["escalate"]) == (
        None,
        None,
        True,
        True,
    )
    own.write_text(json.dumps({stage: settings[stage] for stage in ("affine", "deformable")}))
    assert preset(own) == preset(recipe, settings["set"])


def test_progress_arrives_in_order_and_ends_where_it_said(run):
    steps = []
    run(progress=steps.append)
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["read", "affine", "deformable 16 mm", "deformable 8 mm", "measure"]
    assert [stages.index(step.stage) for step in steps] == sorted(stages.index(step.stage) for step in steps)
    for stage in stages:
        mine = [step for step in steps if step.stage == stage]
        assert len({step.total for step in mine}) == 1
        assert [step.done for step in mine] == sorted(step.done for step in mine)
        assert mine[-1].done == mine[-1].total


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_affine_only_ends_after_the_linear_stage(registration, run, kind):
    linear = run(affine_only=True, transform=kind)
    assert linear.warp is None
    assert linear.inverse_warp is None
    assert linear.transform is linear.affine
    assert linear.record["loss"] == []
    assert linear.record["stopped"] is None
    assert [stage["name"] for stage in linear.record["stages"]] == ["read", "affine", "measure"]
    if kind == "affine":
        assert linear.affine.matrix.tobytes() == registration.affine.matrix.tobytes()
    else:
        assert np.linalg.det(linear.affine.matrix) == pytest.approx(1, abs=1e-5)


def test_no_iteration_starts_after_the_time_budget(brains, registration, run):
    short = run(time_budget=1e-3)
    assert short.record["loss"] == []
    assert short.record["stopped"] == "the time budget was spent at 16 mm"
    assert not short.warp.displacement.any()
    stopped = short.record["affine"]["stopped"]
    assert stopped.endswith("starts were optimised")
    assert f"the time budget ended the linear stage {stopped}" in short.record["verdict"]["reasons"]
    assert short.record["verdict"]["status"] != "pass"
    assert registration.record["affine"]["stopped"] is None


def test_a_time_budget_that_suffices_changes_no_bit(registration, run):
    whole = run(time_budget=1e6)
    assert whole.affine.matrix.tobytes() == registration.affine.matrix.tobytes()
    assert torch.equal(whole.warp.displacement, registration.warp.displacement)


@pytest.mark.parametrize("similarity", ["ncc", "ssd", "mi", "mind"])
def test_another_similarity_in_place_of_the_recipe_s(brains, run, similarity):
    other = run(similarity=similarity)
    assert other.record["settings"]["deformable"]["similarity"] == similarity
    assert brains.error(other.transform) < 0.6 * brains.error(Affine.identity(3))


def test_images_of_one_contrast_are_compared_as_the_recipe_says(registration, run):
    assert registration.record["contrast"]["alike"]
    given = run(similarity="lncc")
    assert given.record["contrast"] is None
    assert torch.equal(given.warp.displacement, registration.warp.displacement)


def test_what_a_mask_excludes_does_not_decide_the_contrast(brains, run):
    """Also where the voxels on which contrasts are looked at are larger than the image's, and some partly excluded."""
    fine = brains.fixed.grid.shape[0] // 2 | 1
    trusted = torch.zeros_like(brains.fixed.data)
    trusted[:fine] = 1
    mask = Image(trusted, brains.fixed.grid)
    spoilt = Image(torch.where(trusted > 0, brains.fixed.data, 200.0), brains.fixed.grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepwarp.workflow.compared._CONTRAST_ACROSS", 22)
        one, other = (run(fixed, fixed_mask=mask, affine_only=True).record for fixed in (brains.fixed, spoilt))
    assert one["contrast"] == other["contrast"]


def test_another_contrast_is_noticed_and_its_greys_are_mapped(brains, run):
    """Greys folded at a tissue's: correlation is misled, and mutual information sees less exactly."""
    data = brains.moving.data.float()
    folded = torch.where(data > 0.05 * data.max(), (data - 0.6 * data.max()).abs(), 0)
    other = Image(folded, brains.moving.grid, "folded")
    found, *told = (run(moving=other, similarity=name, escalate=False) for name in ("auto", "mi", "lncc"))
    assert not found.record["contrast"]["alike"]
    assert any("different contrasts" in reason for reason in found.record["verdict"]["reasons"])
    assert brains.error(found.transform) < 0.9 * min(brains.error(each.transform) for each in told)
    assert {row["stage"] for row in found.record["loss"]} == {"deformable"}
    linear = run(moving=other, affine_only=True, escalate=False)
    assert linear.affine.matrix.tobytes() == found.affine.matrix.tobytes()


def test_a_deformation_that_makes_the_brains_less_alike_is_no_deformation(brains, run, monkeypatch):
    def harmful(fixed, moving, affine, settings, **_):
        noise = torch.randn(1, 3, *fixed.grid.shape, generator=torch.Generator().manual_seed(0))
        wild = DisplacementField(gaussian(noise, 2.0) * 12, fixed.grid)
        return as_deformation(wild, fixed.grid, settings, "it went astray")

    monkeypatch.setattr("stepwarp.workflow.search.optimise", harmful)
    found = run(escalate=False)
    assert not found.warp.displacement.any()
    assert not found.inverse_warp.displacement.any()
    assert found.record["measures"]["similarity"] == found.record["measures"]["similarity_affine"]
    assert found.record["stopped"] == "it lowered the similarity and was dropped"


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_what_a_mask_excludes_does_not_count(brains, run, which):
    """A lesion that is masked out, whatever it looks like."""
    image = getattr(brains, which)
    lesion = tuple(slice(n // 3, n // 2) for n in image.grid.shape)
    trusted = torch.ones(image.grid.shape, dtype=torch.uint8)
    trusted[lesion] = 0
    results = []
    for share in (0.0, 3.0):
        data = image.data.clone()
        data[lesion] = share * image.data.max()
        labels = LabelMap(trusted, image.grid, "mask")
        results.append(run(**{which: Image(data, image.grid, which), f"{which}_mask": labels}))
    assert results[0].affine.matrix.tobytes() == results[1].affine.matrix.tobytes()
    assert torch.equal(results[0].warp.displacement, results[1].warp.displacement)
    assert torch.equal(results[0].inverse_warp.displacement, results[1].inverse_warp.displacement)
    assert results[0].record["measures"] == results[1].record["measures"]


@pytest.mark.parametrize("which", ["fixed", "moving"])
@pytest.mark.parametrize("excluded", ["nothing", "background", "a lesion", "nearly all"])
def test_a_mask_without_effect_and_one_that_leaves_little_are_reported(brains, run, which, excluded):
    image = getattr(brains, which)
    data = image.data
    trusted = torch.ones(data.shape, dtype=torch.uint8)
    lesion = tuple(slice(n // 3, n // 2) for n in data.shape)
    if excluded == "background":
        trusted[data < data.min() + 0.01 * (data.max() - data.min())] = 0
    elif excluded == "a lesion":
        trusted[lesion] = 0
    elif excluded == "nearly all":
        trusted[:] = 0
        trusted[lesion] = 1
    record = run(
        affine_only=True, preset=HASTY, escalate=False, **{f"{which}_mask": LabelMap(trusted, image.grid, "mask")}
    ).record
    share = record["inputs"][f"{which}_mask"]["excluded_of_subject"]
    reasons = " ".join(record["verdict"]["reasons"])
    assert (f"the {which} mask had no effect on the subject" in reasons) == (excluded in ("nothing", "background"))
    assert (f"the {which} mask excludes" in reasons) == (excluded == "nearly all")
    assert (share == 0) == (excluded in ("nothing", "background"))
    assert record["verdict"]["status"] != "pass" or excluded != "nearly all"


@pytest.mark.parametrize("kind", ["path", "nibabel", "labels"])
def test_a_mask_from_a_path_from_nibabel_and_as_labels(tmp_path, mask, run, kind):
    path = tmp_path / "mask.nii.gz"
    write_volume(path, mask)
    source = {"path": path, "nibabel": nib.load(path), "labels": mask}[kind]
    record = run(fixed_mask=source, affine_only=True).record
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if kind == "path" else None
    assert record["inputs"]["fixed_mask"]["sha256"] == digest


def test_a_mask_of_another_shape_is_refused_by_name(mask, run):
    short = LabelMap(mask.data[1:].contiguous(), Grid((mask.grid.shape[0] - 1, *mask.grid.shape[1:]), mask.grid.affine))
    with pytest.raises(InputError, match=r"does not fit .*Resample it onto the image"):
        run(fixed_mask=short)


def test_a_mask_that_lies_elsewhere_is_refused_with_the_distance(mask, run):
    shifted = np.array(mask.grid.affine)
    shifted[0, 3] += 2.5
    with pytest.raises(InputError, match=r"^mask\.nii\.gz: lies up to 2\.5 mm away from fixed\."):
        run(fixed_mask=LabelMap(mask.data, Grid(mask.grid.shape, shifted), mask.name))


def test_an_empty_mask_is_refused_by_name(mask, run):
    with pytest.raises(InputError, match=r"^mask\.nii\.gz: the mask is empty"):
        run(fixed_mask=LabelMap(torch.zeros_like(mask.data), mask.grid, mask.name))


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"preset": "defualt"}, "preset 'defualt' does not exist; did you mean 'default'?"),
        ({"preset": "x"}, "preset 'x' does not exist; there are best, ct, default, fast"),
        ({"similarity": "cc"}, "similarity 'cc' does not exist; did you mean 'ncc'?"),
        ({"transform": "syn"}, "transform 'syn' does not exist; there are rigid, similarity, affine"),
        ({"device": "gpu"}, "device 'gpu' does not exist; did you mean 'cpu'?"),
        ({"time_budget": 0}, "a time budget of 0 s is no time at all"),
        ({"threads": 0}, "threads: Input should be greater than or equal to 1"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused_with_a_hint(run, wrong, hint):
    with pytest.raises(InputError) as caught:
        run(**wrong)
    assert hint in str(caught.value)


def test_a_wrong_choice_is_found_before_anything_is_read(run):
    with pytest.raises(InputError, match="similarity 'cc'"):
        run("absent.nii.gz", similarity="cc")


@pytest.mark.gpu
def test_a_gpu_finds_what_the_processor_finds_and_says_where_it_was(brains, recipe, registration):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = register(brains.fixed, brains.moving, preset=recipe, threads=1, device="cuda")
    apart = np.linalg.norm(found.transform(brains.points) - registration.transform(brains.points), axis=1)
    assert apart.mean() < 0.05
    assert found.warp.displacement.device.type == "cpu", "what is written lies where it is written from"
    assert found.record["gpu_failure"] is None
    assert found.record["device"] == torch.cuda.get_device_name(0)
    assert all(stage["gpu_peak_mib"] > 0 for stage in found.record["stages"] if stage["name"] == "deformable")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(run):
    with pytest.raises(InputError, match="torch sees no CUDA device; use --device cpu"):
        run(device="cuda")


def test_an_image_in_which_nothing_stands_out_is_refused_by_name(run):
    image = Image(torch.full((16, 16, 16), 7.0), Grid.isotropic((16, 16, 16)), "flat.nii")
    with pytest.raises(InputError, match=r"^flat\.nii: is 7 everywhere"):
        run(image)
    image.data[3, 3, 3] = 6
    with pytest.raises(InputError, match=r"^flat\.nii: no voxel stands out"):
        run(image)


@pytest.mark.parametrize(("factor", "offset"), [(1.0, 0.0), (250.0, 0.0), (3.0, -1000.0)])
def test_scaled_intensities_reach_from_0_to_about_1(brains, factor, offset):
    scaled = scale_intensities(Image(factor * brains.fixed.data + offset, brains.fixed.grid)).data
    assert float(scaled.min()) == 0
    assert float(scaled[scaled > 0].quantile(0.995)) == pytest.approx(1, abs=0.02)
    assert float(scaled.max()) <= 1.2


def test_a_mask_sets_the_scale_by_what_it_trusts(brains):
    image = brains.fixed
    bright = image.data.clone()
    bright[:4] = 100
    mask = torch.ones_like(bright)
    mask[:4] = 0
    scaled = scale_intensities(Image(bright, image.grid), Image(mask, image.grid)).data
    torch.testing.assert_close(scaled[4:], scale_intensities(image).data[4:], atol=0.05, rtol=0)


@pytest.mark.data
def test_two_brains_of_the_study_from_file_to_file(tmp_path, data_folder):
    brain = {n: data_folder / "oasis" / f"{n}_SS.nii.gz" for n in (1000, 1001)}
    labels = {n: read_labels(data_folder / "oasis" / f"{n}_glm.nii.gz") for n in (1000, 1001)}
    registration = register(brain[1000], brain[1001], preset="fast")
    out = registration.save(tmp_path / "out")
    check = json.loads((out / "registration.json").read_text())["self_check"]
    assert check["point_error_mm"] <= 0.01
    assert check["voxel_error"] <= 1e-3

    warp, affine = (read_transform(out / name) for name in ("1Warp.nii.gz", "0GenericAffine.mat"))
    carried = labels[1001].warp(Composition.of(affine, warp), labels[1000].grid)
    assert mean_dice(dice(labels[1000], carried, NOT_SCORED)) > 0.56
    inside = labels[1000].data > 0
    assert float(jacobian.determinant(warp.displacement)[0][inside].min()) > 0
    assert float(jacobian.smallest_corner_determinant(warp.displacement)[0][inside].min()) > 0


def contradicting(path, image, moved_by):
    """The image as a file whose qform lies elsewhere than its sform."""
    header = nib.Nifti1Header()
    header.set_data_shape(image.data.shape)
    header.set_data_dtype(np.float32)
    header.set_sform(image.grid.affine, 1)
    header.set_qform(nib.affines.from_matvec(np.eye(3), moved_by) @ image.grid.affine, 1)
    nib.save(nib.Nifti1Image(image.data.numpy(), None, header), path)
    return path


def test_trust_moves_the_file_that_needs_it_and_no_other(brains, tmp_path):
    write_volume(tmp_path / "fixed.nii.gz", brains.fixed)
    moving = contradicting(tmp_path / "moving.nii.gz", brains.moving, (0, 0, 30))
    done = register(tmp_path / "fixed.nii.gz", moving, preset=HASTY, affine_only=True, threads=1, trust="qform")
    assert done.fixed.grid == brains.fixed.grid
    np.testing.assert_allclose(done.moving.grid.centre - brains.moving.grid.centre, (0, 0, 30), atol=1e-3)
    (touched,) = done.record["trusted"]
    assert touched["file"] == str(moving)
    assert touched["statement"] == "qform"
    assert any(str(moving) in reason and "as asked for" in reason for reason in done.record["verdict"]["reasons"])
    needless = register(brains.fixed, brains.moving, preset=HASTY, affine_only=True, threads=1, trust=["sform"])
    assert needless.record["trusted"] == []
    assert "--trust sform changed nothing" in " ".join(needless.record["verdict"]["reasons"])


@pytest.mark.data
@pytest.mark.slow
def test_a_breath_in_ct_is_found(data_folder):
    """`default` ends at half a millimetre and more."""
    pair = next(pair for pair in pairs(read_manifest("chest"), data_folder, verify=False) if pair.id == "same_scan")
    points = [read_landmarks(scan.landmarks, of=scan.landmark_columns).points for scan in (pair.fixed, pair.moving)]
    registration = register(pair.fixed.image, pair.moving.image, preset="ct", outside=-1000)
    assert target_registration_error(registration.transform, *points).mean() < 0.4
    assert registration.record["measures"]["regularity"]["corner_folds"]["count"] == 0
