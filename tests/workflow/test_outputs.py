"""The folder of a registration: what is in it, what strangers make of it, and that a failure leaves nothing behind."""

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import ants
import nibabel as nib
import nitransforms
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import binary_erosion

from stepwarp import files
from stepwarp.errors import InputError, OutputError, VerificationError
from stepwarp.files import read_image, read_transform, write_volume
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image
from stepwarp.layout import FURTHER_MOVED, MASKS, NAMES, RECORD, REPORT
from stepwarp.report.text import methods
from stepwarp.workflow import outputs, result_folder
from stepwarp.workflow.folders import RegistrationFolder
from stepwarp.workflow.outputs import check_target
from stepwarp.workflow.register import register
from stepwarp.workflow.subjects import ants_options

LPS = np.array([-1.0, -1.0, 1.0])
#: Of a registration that found no mask by itself.
WRITTEN = set(NAMES) - set(MASKS) - set(FURTHER_MOVED)
WARPS = {"1Warp.nii.gz", "1InverseWarp.nii.gz", "Jacobian.nii.gz"}
#: The directions of the axes of the fixed and of the moving grid.
TURN = nib.eulerangles.euler2mat(0.3, -0.2, 0.4)
AXES = {"RAS, LAS": None, "LAS, oblique": (np.diag([-1, 1, 1]), TURN), "oblique, LPS": (TURN, np.diag([-1, -1, 1]))}


def short_page(_registration, folder, *_):
    (folder / "report.html").write_text("a page")


@pytest.fixture
def no_page(monkeypatch):
    """The page has tests of its own, and takes longer than all the rest."""
    monkeypatch.setattr(outputs, "_write_report", short_page)


@pytest.fixture
def fresh(registration):
    """The registered pair with a record of its own: saving adds to it."""
    return replace(registration, record=dict(registration.record))


@pytest.fixture
def linear(fresh):
    """The same pair as if only its linear part had been asked for."""
    settings = fresh.record["settings"] | {"affine_only": True}
    return replace(fresh, warp=None, inverse_warp=None, record=fresh.record | {"settings": settings})


def resampled(image, axes):
    """The image on a grid whose axes have other directions, around the same centre."""
    linear = 4.0 * np.asarray(axes, float)
    shape = tuple(n + 6 for n in image.grid.shape)
    offset = image.grid.centre - linear @ ((np.array(shape) - 1) / 2)
    grid = Grid(shape, nib.affines.from_matvec(linear, offset))
    return image.warp(Affine.identity(3), grid)


@pytest.fixture(scope="module", params=AXES)
def saved(request, tmp_path_factory, brains, recipe):
    """A registration and the folder that it was saved to, in several directions of the axes."""
    pair = brains.fixed, brains.moving
    if AXES[request.param] is not None:
        pair = tuple(resampled(image, axes) for image, axes in zip(pair, AXES[request.param], strict=True))
    result = register(*pair, preset=recipe, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "_write_report", short_page)
        folder = result.save(tmp_path_factory.mktemp("saved") / "out")
    for name, image in zip(("fixed", "moving"), pair, strict=True):
        write_volume(folder / f"{name}.nii.gz", image)
    return result, folder


def inner(grid, at, margin=1.5):
    """Which world points `at` (*shape, 3) lie well inside a grid."""
    index = at @ grid.inverse_affine[:3, :3].T + grid.inverse_affine[:3, 3]
    return ((index > margin) & (index < np.array(grid.shape) - 1 - margin)).all(-1)


def voxels(grid):
    """World points of all voxels, (*shape, 3)."""
    return np.moveaxis(grid.indices(dtype=torch.float64)[0].numpy(), 0, -1) @ grid.linear.T + grid.affine[:3, 3]


def left_over(folder):
    return sorted(path.name for path in folder.iterdir())


def by_ants(folder, reference, moving, names, inverted=None, by="linear"):
    """What antsApplyTransforms makes of an image of the folder, as an array in the order of nibabel."""
    onto, image = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in (reference, moving))
    chain = [str(folder / name) for name in names]
    return ants.apply_transforms(onto, image, chain, whichtoinvert=inverted, interpolator=by).numpy()


def test_a_whole_folder_with_its_page_and_its_record(tmp_path, fresh):
    steps = []
    out = fresh.save(tmp_path / "a" / "out", progress=steps.append)
    assert out == tmp_path / "a" / "out"
    assert left_over(out) == sorted(WRITTEN)
    assert left_over(out.parent) == ["out"]
    record = json.loads((out / "registration.json").read_text())
    assert record["outputs"] == {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in WRITTEN if name != "registration.json"
    }
    assert [stage["name"] for stage in record["stages"]][-3:] == ["write", "verify", "report"]
    assert [step.stage for step in steps if step.done == step.total] == ["write", "verify", "report"]
    assert record["self_check"]["point_error_mm"] <= 0.01
    assert record["self_check"]["inverse_point_error_mm"] <= 0.01
    assert record["self_check"]["voxel_error"] <= 1e-3
    assert record["self_check"]["reader"] == "SimpleITK"
    assert json.loads(json.dumps(fresh.record)) == record
    assert "<html" in (out / "report.html").read_text()[:500].lower()


def test_a_cubic_moved_image_is_that_of_ants_and_its_record_says_so(tmp_path, fresh, no_page):
    settings = fresh.record["settings"] | {"interpolation": "cubic"}
    out = replace(fresh, record=fresh.record | {"settings": settings}).save(tmp_path / "out")
    record = json.loads((out / "registration.json").read_text())
    assert record["self_check"]["voxel_error"] <= 1e-3
    assert ants_options(record, ["W"]).startswith("-t W -n BSpline")
    assert "interpolated once, by cubic B-splines," in methods(record, "A", "B", "voxels")
    for name, image in (("fixed", fresh.fixed), ("moving", fresh.moving)):
        write_volume(out / f"{name}.nii.gz", image)
    names, ours = ["1Warp.nii.gz", "0GenericAffine.mat"], read_image(out / "Warped.nii.gz").data.numpy()
    cubic, linear = (by_ants(out, "fixed", "moving", names, by=way) for way in ("bSpline", "linear"))
    well_inside = inner(fresh.moving.grid, fresh.transform(voxels(fresh.fixed.grid)))
    spread = np.ptp(ours)
    assert np.abs(cubic - ours)[well_inside].max() < 1e-3 * spread
    assert np.abs(linear - ours)[well_inside].max() > 1e-2 * spread
    said = replace(fresh, record=fresh.record | {"settings": settings})
    vars(said)["moved"] = fresh.moved  # linear, whatever the record says
    with pytest.raises(VerificationError, match="do not say what was computed"):
        said.save(tmp_path / "wrong")


def test_the_files_say_what_was_computed(saved, brains):
    registration, out = saved
    read = Composition.of(read_transform(out / "0GenericAffine.mat"), read_transform(out / "1Warp.nii.gz"))
    back = Composition.of(read_transform(out / "1InverseWarp.nii.gz"), registration.affine.inverse())
    np.testing.assert_allclose(read(brains.points), registration.transform(brains.points), atol=1e-3)
    np.testing.assert_allclose(back(brains.points), registration.inverse(brains.points), atol=1e-3)
    moved = read_image(out / "Warped.nii.gz")
    assert moved.grid == registration.fixed.grid
    torch.testing.assert_close(moved.data, registration.moved.data)


def test_ants_makes_the_warped_image_of_the_files(saved):
    registration, out = saved
    theirs = by_ants(out, "fixed", "moving", ["1Warp.nii.gz", "0GenericAffine.mat"])
    ours = read_image(out / "Warped.nii.gz").data.numpy()
    well_inside = inner(registration.moving.grid, registration.transform(voxels(registration.fixed.grid)))
    assert well_inside.mean() > 0.5
    spread = np.ptp(registration.moving.data.numpy())
    assert np.abs(theirs - ours)[well_inside].max() < 1e-3 * spread
    assert np.ptp(ours[well_inside]) > 0.5 * spread


def test_ants_brings_the_fixed_image_back_with_the_inverse(saved):
    registration, out = saved
    theirs = by_ants(out, "moving", "fixed", ["0GenericAffine.mat", "1InverseWarp.nii.gz"], [True, False])
    ours = registration.fixed.warp(registration.inverse, registration.moving.grid).data.numpy()
    at = voxels(registration.moving.grid)
    well_inside = inner(registration.fixed.grid, registration.inverse(at))
    well_inside &= inner(registration.fixed.grid, registration.affine.inverse()(at))
    assert well_inside.mean() > 0.3
    spread = np.ptp(registration.fixed.data.numpy())
    assert np.abs(theirs - ours)[well_inside].max() < 1e-3 * spread
    assert np.ptp(ours[well_inside]) > 0.5 * spread


def test_simpleitk_maps_points_the_same(saved, brains):
    registration, out = saved
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(out / "1Warp.nii.gz"), sitk.sitkVectorFloat64))
    chain = sitk.CompositeTransform([sitk.ReadTransform(str(out / "0GenericAffine.mat")), field])
    mapped = np.array([chain.TransformPoint(point) for point in (brains.points * LPS).tolist()]) * LPS
    np.testing.assert_allclose(mapped, registration.transform(brains.points), atol=1e-3)


def test_nitransforms_maps_points_the_same(saved):
    registration, out = saved
    # At the voxels: between them nitransforms interpolates by cubic splines.
    points = voxels(registration.fixed.grid)[8:-8:5, 8:-8:5, 8:-8:5].reshape(-1, 3)
    warped = nitransforms.nonlinear.load(out / "1Warp.nii.gz", fmt="itk").map(points)
    mapped = nitransforms.linear.load(out / "0GenericAffine.mat", fmt="itk").map(warped)
    np.testing.assert_allclose(mapped, registration.transform(points), atol=2e-3)


def test_the_jacobian_is_that_of_simpleitk_times_that_of_the_affine(saved):
    registration, out = saved
    field = sitk.ReadImage(str(out / "1Warp.nii.gz"), sitk.sitkVectorFloat64)
    # SimpleITK differentiates along the axes of the grid: so the vectors must be given along them, too.
    along_axes = sitk.GetArrayFromImage(field) @ np.array(field.GetDirection()).reshape(3, 3)
    turned = sitk.GetImageFromArray(along_axes, isVector=True)
    turned.SetSpacing(field.GetSpacing())
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(turned)).T
    ours = read_image(out / "Jacobian.nii.gz").data.numpy()
    whole = theirs * np.linalg.det(registration.affine.matrix[:3, :3])
    middle = binary_erosion(np.ones(ours.shape, bool), iterations=2)
    np.testing.assert_allclose(ours[middle], whole[middle], atol=2e-3)
    assert np.ptp(ours[middle]) > 0.1


def test_a_linear_registration_has_no_warps(tmp_path, linear, no_page):
    out = linear.save(tmp_path / "out")
    assert set(left_over(out)) == WRITTEN - WARPS
    assert "inverse_point_error_mm" not in json.loads((out / "registration.json").read_text())["self_check"]


@pytest.mark.parametrize("present", ["registration.json", "1Warp.nii.gz", "report.html"])
def test_results_that_are_there_are_kept(tmp_path, fresh, no_page, present):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / present).write_text("precious")
    with pytest.raises(OutputError, match=rf"holds {re.escape(present)} already.*--force"):
        fresh.save(tmp_path / "out")
    assert left_over(tmp_path) == ["out"]
    assert left_over(tmp_path / "out") == [present]
    assert (tmp_path / "out" / present).read_text() == "precious"


def test_a_file_of_that_name_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="is a file; the results need a folder"):
        check_target(tmp_path / "out", overwrite=True)


def test_a_record_of_a_strangers_leads_to_no_file_of_the_users(tmp_path, linear, no_page):
    """A result folder may have been downloaded: what its record lists is removed only by the names of results."""
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    out.mkdir()
    victim.write_text("precious")
    (out / "notes.txt").write_text("precious")
    listed = {"../victim.txt": "", str(victim): "", "notes.txt": "", "report.html": ""}
    (out / "registration.json").write_text(json.dumps({"outputs": listed}))
    linear.save(out, overwrite=True)
    assert victim.read_text() == (out / "notes.txt").read_text() == "precious"


def test_a_folder_with_other_things_is_shared(tmp_path, linear, no_page):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    linear.save(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "registration.json").is_file()


def test_overwriting_by_a_linear_result_leaves_no_stale_warp(tmp_path, fresh, linear, no_page):
    out = fresh.save(tmp_path / "out")
    assert set(left_over(out)) >= WARPS
    linear.save(out, overwrite=True)
    assert set(left_over(out)) == WRITTEN - WARPS
    assert json.loads((out / "registration.json").read_text())["settings"]["affine_only"]
    assert left_over(tmp_path) == ["out"]


class Disk:
    """What the folder `out` holds each time that a file is about to be named or removed: what a death then leaves.

    told: which names were given in `out`, and which folders were flushed, in this order."""

    def __init__(self, out, monkeypatch):
        self.out, self.moments, self.told = out, [], []
        for name in ("replace", "rename", "link", "unlink", "remove"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        flush = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: (self._flushed(descriptor), flush(descriptor))[1])

    def look(self):
        if self.out.is_dir():
            self.moments.append({p.name: p.read_bytes() for p in self.out.iterdir() if not p.name.startswith(".")})

    def _watched(self, real):
        def call(*args, **kwargs):
            self.look()
            if Path(args[-1]).parent == self.out or Path(args[-1]) == self.out:
                self.told.append(Path(args[-1]).name)
            return real(*args, **kwargs)

        return call

    def _flushed(self, descriptor):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if place in (self.out, self.out.parent):
            self.told.append(f"flushed {place.name}")


@pytest.fixture
def quick(monkeypatch, no_page):
    """The names of the files alone matter here; what is in them says of which run they are."""

    def write(registration, folder):
        for name in WRITTEN - {RECORD, REPORT} - (WARPS if registration.warp is None else set()):
            files.write_text(folder / name, f"{name} of {id(registration)}")

    monkeypatch.setattr(outputs, "_write_volumes", write)
    monkeypatch.setattr(outputs, "_verified", lambda *_: {})


@pytest.mark.parametrize("order", [("fresh", "linear"), ("linear", "fresh"), ("fresh", "again")])
def test_a_death_while_files_are_moved_leaves_no_record_beside_files_of_another_run(
    tmp_path, monkeypatch, fresh, linear, quick, order
):
    runs = {"fresh": fresh, "linear": linear, "again": replace(fresh, record=dict(fresh.record))}
    first, second = (runs[name] for name in order)
    out = first.save(tmp_path / "out")
    with monkeypatch.context() as patch:
        disk = Disk(out, patch)
        second.save(out, overwrite=True)
    disk.look()
    complete = []
    for number, moment in enumerate(disk.moments):
        died = tmp_path / f"died{number}"
        died.mkdir()
        for name, content in moment.items():
            (died / name).write_bytes(content)
        check_target(died, overwrite=True)  # the next run with --force goes through
        listed = json.loads(moment[RECORD])
        if listed.get("being_replaced"):
            with pytest.raises(InputError, match="not the record of a registration"):
                RegistrationFolder(died)
        else:
            complete.append(number)
            assert listed["outputs"] == {
                name: hashlib.sha256(moment[name]).hexdigest() for name in moment if name != RECORD
            }
    assert {complete[0], complete[-1]} == {0, len(disk.moments) - 1}
    assert len(disk.moments) - len(complete) > 3


def test_the_record_is_named_once_the_disk_holds_all_other_names(tmp_path, monkeypatch, linear, quick):
    disk = Disk(tmp_path / "out", monkeypatch)
    linear.save(disk.out)
    assert disk.told[-2:] == ["out", f"flushed {tmp_path.name}"]
    linear.save(disk.out, overwrite=True)
    assert disk.told[-3:] == ["flushed out", RECORD, "flushed out"]
    assert set(disk.told[-6:-3]) == WRITTEN - WARPS - {RECORD}


def test_every_file_of_a_result_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, fresh):
    flushed, flush, publish = set(), os.fsync, result_folder.ResultFolder.publish
    known = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.add(os.fstat(descriptor).st_ino), flush(descriptor)))
    monkeypatch.setattr(result_folder.ResultFolder, "publish", lambda *args: (known.extend(flushed), publish(*args)))
    out = fresh.save(tmp_path / "out")
    assert {path.stat().st_ino for path in out.iterdir()} <= set(known)


def test_a_link_in_the_way_is_refused_wherever_it_leads(tmp_path, fresh, quick):
    """One that leads nowhere is no free name: what is written would appear where it points."""
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    for force in (False, True):
        with pytest.raises(OutputError, match="is a file; the results need a folder"):
            fresh.save(tmp_path / "out", overwrite=force)
    out = fresh.save(tmp_path / "result")
    victim = tmp_path / "victim"
    for name in ("1Warp.nii.gz", RECORD):
        kept = (out / name).read_bytes()
        victim.write_bytes(kept)
        for target in (tmp_path / "nowhere", victim):
            (out / name).unlink()
            (out / name).symlink_to(target)
            with pytest.raises(OutputError, match=f"{name}: is a link"):
                fresh.save(out, overwrite=True)
        (out / name).unlink()
        (out / name).write_bytes(kept)
        assert victim.read_bytes() == kept
    assert not (tmp_path / "nowhere").exists()
    fresh.save(out, overwrite=True)


def test_a_link_to_nowhere_is_a_name_that_is_taken(tmp_path, fresh, quick):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1Warp.nii.gz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"holds 1Warp\.nii\.gz already"):
        fresh.save(tmp_path / "out")
    assert left_over(tmp_path / "out") == ["1Warp.nii.gz"]


def test_what_appears_while_it_computes_is_not_replaced(tmp_path, monkeypatch, fresh, quick):
    """Another program's file: the work is complete, and stays where it was made."""
    said = r"holds 1Warp\.nii\.gz already.*The result is complete, in"

    def late(*_):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "1Warp.nii.gz").write_text("precious")
        return {}

    monkeypatch.setattr(outputs, "_verified", late)
    with pytest.raises(OutputError, match=said):
        fresh.save(tmp_path / "out")
    assert (tmp_path / "out" / "1Warp.nii.gz").read_text() == "precious"
    assert [path.parent.name for path in tmp_path.rglob(RECORD)] == ["work"]


def test_a_run_that_ended_while_another_waited_is_seen(tmp_path, monkeypatch, fresh, quick):
    lend = result_folder.workspace

    def later(out, kind):
        monkeypatch.setattr(result_folder, "workspace", lend)
        fresh.save(out)
        return lend(out, kind)

    monkeypatch.setattr(result_folder, "workspace", later)
    with pytest.raises(OutputError, match="already"), outputs.claimed(tmp_path / "out", False):
        pytest.fail("it was claimed")


def shifted(write, name, by):
    """A writer that writes another thing than it is given into the file of that name."""

    def tampering(path, content, *args, **kwargs):
        return write(path, by(content) if path.name == name else content, *args, **kwargs)

    return tampering


def field_elsewhere(field):
    return DisplacementField(field.displacement + 0.02, field.grid)


def field_elsewhere_in_a_part(field):
    """A few hundredths of the voxels, by a twentieth of a millimetre."""
    displacement = field.displacement.clone()
    displacement[..., 5:17, 5:17, 5:17] += 0.05 / float(field.grid.spacing.min())
    return DisplacementField(displacement, field.grid)


TAMPERED = {
    "1Warp.nii.gz": ("write_displacement", field_elsewhere),
    "1InverseWarp.nii.gz": ("write_displacement", field_elsewhere),
    "0GenericAffine.mat": ("write_affine", lambda affine: Affine(affine.matrix + np.eye(4, k=3) * 0.02)),
    "Warped.nii.gz": ("write_volume", lambda image: Image(image.data * 1.01, image.grid, image.name)),
}


@pytest.mark.parametrize("name", TAMPERED)
@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_files_that_say_something_else_are_not_kept(tmp_path, monkeypatch, fresh, linear, no_page, name, existing):
    before = []
    if existing:
        before = left_over(linear.save(tmp_path / "out"))
        old = (tmp_path / "out" / "registration.json").read_bytes()
    writer, change = TAMPERED[name]
    monkeypatch.setattr(files, writer, shifted(getattr(files, writer), name, change))
    with pytest.raises(VerificationError, match="the written files do not say what was computed"):
        fresh.save(tmp_path / "out", overwrite=existing)
    assert left_over(tmp_path) == (["out"] if existing else [])
    if existing:
        assert left_over(tmp_path / "out") == before
        assert (tmp_path / "out" / "registration.json").read_bytes() == old


def refuses_what_is_written(tmp_path, monkeypatch, registration, name, change):
    writer = TAMPERED[name][0]
    monkeypatch.setattr(files, writer, shifted(getattr(files, writer), name, change))
    with pytest.raises(VerificationError, match="the written files do not say what was computed"):
        registration.save(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("1Warp.nii.gz", field_elsewhere_in_a_part),
        ("1InverseWarp.nii.gz", field_elsewhere_in_a_part),
        ("0GenericAffine.mat", lambda affine: Affine(affine.matrix + np.eye(4, k=3) * 0.015)),
    ],
)
def test_a_map_that_is_little_off_or_in_a_part_is_not_kept(tmp_path, monkeypatch, fresh, no_page, name, change):
    refuses_what_is_written(tmp_path, monkeypatch, fresh, name, change)


@pytest.mark.parametrize("place", [(20, 20, 20), (21, 22, 23)], ids=["resampled", "between those"])
@pytest.mark.parametrize("share", [1.5e-3, -1.5e-3])
def test_one_voxel_that_is_little_off_is_not_kept(tmp_path, monkeypatch, fresh, no_page, place, share):
    """By half more than the tolerance."""

    def change(image):
        data = image.data.clone()
        data[place] += share * float(fresh.moving.data.max() - fresh.moving.data.min())
        return replace(image, data=data)

    refuses_what_is_written(tmp_path, monkeypatch, fresh, "Warped.nii.gz", change)


@pytest.mark.parametrize("error", [0.9, 1.1, np.nan])
@pytest.mark.parametrize("of", ["forward", "back", "voxels"])
def test_the_limits_of_the_self_check(tmp_path, monkeypatch, fresh, no_page, of, error):
    found = {"forward": 0.0, "back": 0.0, "voxels": 0.0}
    found[of] = error * (1e-3 if of == "voxels" else 0.01)
    monkeypatch.setattr(outputs.proof, "read_chain", lambda paths: "back" if "Inverse" in str(paths[0]) else "forward")
    monkeypatch.setattr(outputs.proof, "point_error", lambda chain, *_: found[chain])
    monkeypatch.setattr(outputs.proof, "voxel_error", lambda *_: found["voxels"])
    if error < 1:
        fresh.save(tmp_path / "out")
        return
    with pytest.raises(VerificationError):
        fresh.save(tmp_path / "out")


@pytest.mark.parametrize("failing", ["_write_volumes", "_verified", "_write_report", "_move_into_place"])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, fresh, no_page, failing):
    def fail(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(outputs if hasattr(outputs, failing) else result_folder.ResultFolder, failing, fail)
    stages = len(fresh.record["stages"])
    with pytest.raises(RuntimeError, match="out of luck"):
        fresh.save(tmp_path / "out")
    assert left_over(tmp_path) == []
    assert len(fresh.record["stages"]) == stages
    assert "outputs" not in fresh.record


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path, fresh):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/sub/out: cannot be created, ") as caught:
        fresh.save(tmp_path / "file" / "sub" / "out")
    assert "\n" not in str(caught.value)
    assert left_over(tmp_path) == ["file"]
