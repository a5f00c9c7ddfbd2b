import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from stepwarp.errors import InputError
from stepwarp.evaluation.evaluate import evaluate
from stepwarp.files import (
    Landmarks,
    sha256,
    write_affine,
    write_composite,
    write_displacement,
    write_landmarks,
    write_volume,
)
from stepwarp.files.learn2reg import write_learn2reg
from stepwarp.geometry import Affine, Composition, DisplacementField, Grid, Image, LabelMap
from stepwarp.workflow.evaluate import evaluate_files

TURN = nib.eulerangles.euler2mat(0.1, -0.05, 0.08)
FIXED = Grid((24, 22, 20), nib.affines.from_matvec(TURN * (-1.0, 1.5, 1.2), (20, -10, 5)))
MOVING = Grid((26, 24, 22), nib.affines.from_matvec(np.diag([-1.0, 1.4, 1.2]), (22, -12, 4)))

UP = np.array([0.0, 0.0, 1.0])


def smooth(seed, shape, sigma=2.0):
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return torch.from_numpy(20 + 100 * (values - values.min()) / (values.max() - values.min())).float()


def patches(seed, shape):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(4, *shape)), (0, 3, 3, 3))
    return torch.from_numpy(noise.argmax(0).astype(np.int16))


class Case:
    """Two images with labels and landmarks, and one transform between them in the files of every tool."""

    def __init__(self, folder):
        self.folder = folder
        noise = gaussian_filter(np.random.default_rng(3).normal(size=(*FIXED.shape, 3)), (4, 4, 4, 0))
        self.warp = DisplacementField.from_millimetres(2 * noise / np.abs(noise).max(), FIXED)
        self.affine = Affine(nib.affines.from_matvec(np.diag([1.02, 0.98, 1.0]), (0.5, -1.0, 0.3)))
        self.inverse_warp = self.warp.inverse()
        self.fixed = Image(smooth(0, FIXED.shape), FIXED)
        self.moving = Image(smooth(1, MOVING.shape), MOVING)
        self.labels = LabelMap(patches(0, FIXED.shape), FIXED), LabelMap(patches(1, MOVING.shape), MOVING)
        self.points = nib.affines.apply_affine(FIXED.affine, [[8, 9, 10], [12, 11, 9], [14, 12, 8]])
        for name, volume in zip(
            ("fixed", "moving", "fixed_labels", "moving_labels"), (self.fixed, self.moving, *self.labels), strict=True
        ):
            write_volume(self.path(name), volume)
        write_landmarks(folder / "fixed.csv", Landmarks(("a", "b", "c"), self.points))
        write_landmarks(folder / "moving.fcsv", Landmarks(("a", "b", "c"), self.transform(self.points) + UP))
        self._write_transforms()

    @property
    def transform(self):
        return Composition.of(self.affine, self.warp)

    @property
    def inverse(self):
        return Composition.of(self.inverse_warp, self.affine.inverse())

    def path(self, name):
        return self.folder / f"{name}.nii.gz"

    def _write_transforms(self):
        for name in ("result", "ants"):
            out = self.folder / name
            out.mkdir()
            prefix = "" if name == "result" else "sub_"
            write_affine(out / f"{prefix}0GenericAffine.mat", self.affine)
            write_displacement(out / f"{prefix}1Warp.nii.gz", self.warp)
            write_displacement(out / f"{prefix}1InverseWarp.nii.gz", self.inverse_warp)
        record = {
            "inputs": {
                side: {
                    "path": str(self.path(side)),
                    "sha256": sha256(self.path(side)),
                    "shape": grid.shape,
                    "affine": grid.affine.tolist(),
                }
                for side, grid in (("fixed", FIXED), ("moving", MOVING))
            },
            "settings": {"affine_only": False},
            "verdict": {"status": "pass", "reasons": []},
        }
        (self.folder / "result" / "registration.json").write_text(json.dumps(record))
        write_composite(self.folder / "all.h5", self.transform)
        write_learn2reg(self.folder / "disp.nii.gz", self.transform, FIXED, MOVING)

    def transforms(self, form):
        chain = [self.folder / "ants" / name for name in ("sub_1Warp.nii.gz", "sub_0GenericAffine.mat")]
        one = {
            "folder": "result",
            "ants folder": "ants",
            "ants prefix": "ants/sub_",
            "composite": "all.h5",
            "learn2reg": "disp.nii.gz",
        }
        return chain if form == "chain" else [self.folder / one[form]]

    def evaluate(self, form="folder", **options):
        options = {
            "fixed_labels": self.path("fixed_labels"),
            "moving_labels": self.path("moving_labels"),
            "fixed_landmarks": self.folder / "fixed.csv",
            "moving_landmarks": self.folder / "moving.fcsv",
        } | options
        transforms = () if form is None else self.transforms(form)
        return evaluate_files(self.path("fixed"), self.path("moving"), transforms, **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture
def own_result(case, tmp_path):
    """A copy of the folder of the registration, to be changed."""
    return shutil.copytree(case.folder / "result", tmp_path / "result")


@pytest.mark.parametrize("form", ["folder", "ants folder", "ants prefix", "chain", "composite", "learn2reg"])
def test_the_files_of_every_tool_are_judged_alike(case, form):
    expected = evaluate(
        case.fixed,
        case.moving,
        case.transform,
        inverse=case.inverse,
        fixed_labels=case.labels[0],
        moving_labels=case.labels[1],
    )
    result = case.evaluate(form)
    assert result["mean_dice"] == pytest.approx(expected["mean_dice"], abs=2e-3)
    assert result["mean_asd_mm"] == pytest.approx(expected["mean_asd_mm"], abs=5e-3)
    assert result["std_log_jacobian"] == pytest.approx(expected["std_log_jacobian"], rel=1e-2)
    assert result["similarity"]["after"] == pytest.approx(expected["similarity"]["after"], abs=5e-3)
    assert result["tre_mm"]["mean"] == pytest.approx(1, abs=0.01)
    in_file = form in ("folder", "ants folder", "ants prefix")
    assert result["inverse_mm"]["source"] == ("file of the result" if in_file else "numerical inversion")
    assert result["inverse_mm"]["p95"] < 0.05
    assert result["notes"] == []
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_inputs_and_files_are_recorded(case):
    result = case.evaluate("chain")
    assert result["inputs"]["fixed"] == {"path": str(case.path("fixed")), "sha256": sha256(case.path("fixed"))}
    assert set(result["inputs"]) == {
        *("fixed", "moving", "fixed_labels", "moving_labels", "fixed_landmarks", "moving_landmarks")
    }
    assert result["transform"] == [str(path) for path in case.transforms("chain")]


def test_without_a_transform_the_identity_is_judged(case):
    result = case.evaluate(None)
    assert result["transform"] == []
    assert result["inverse_mm"] == {"mean": 0, "median": 0, "p95": 0, "max": 0, "source": "identity"}
    assert result["similarity"]["before"] == result["similarity"]["after"]
    assert result["displacement_mm"]["max"] == pytest.approx(0, abs=1e-9)


def test_an_affine_needs_no_numerical_inversion(case):
    affine = case.folder / "ants" / "sub_0GenericAffine.mat"
    result = evaluate_files(case.path("fixed"), case.path("moving"), [affine])
    assert result["inverse_mm"]["source"] == "inverse of the affine"
    assert result["inverse_mm"]["max"] < 1e-6


def test_labels_are_named_and_ignored_by_name(case, tmp_path):
    names = tmp_path / "names.csv"
    names.write_text("id,name\n1,Left thing\n2,Right thing\n")
    result = case.evaluate(label_names=names, ignore_labels=["right thing", "3"])
    assert list(result["labels"]) == ["1"]
    assert result["labels"]["1"]["name"] == "Left thing"
    with pytest.raises(InputError, match="Did you mean 'Left thing'"):
        case.evaluate(label_names=names, ignore_labels=["left thin"])


def test_landmarks_in_voxels_belong_to_their_own_image(case, tmp_path):
    index = {"fixed": FIXED, "moving": MOVING}
    world = {"fixed": case.points, "moving": case.transform(case.points)}
    for side, grid in index.items():
        voxels = nib.affines.apply_affine(grid.inverse_affine, world[side])
        rows = [f"p{n},{','.join(map(str, row))}" for n, row in enumerate(voxels)]
        (tmp_path / f"{side}.csv").write_text("\n".join(["name,i,j,k", *rows]))
    result = case.evaluate(fixed_landmarks=tmp_path / "fixed.csv", moving_landmarks=tmp_path / "moving.csv")
    assert result["tre_mm"]["max"] < 0.01


def test_one_table_holds_the_landmarks_of_both_images(case, tmp_path):
    rows = np.hstack([case.points, case.transform(case.points)])
    header = [f"{side}_{axis}_ras" for side in ("fixed", "moving") for axis in "xyz"]
    (tmp_path / "both.csv").write_text("\n".join(",".join(map(str, row)) for row in (header, *rows.tolist())))
    result = case.evaluate(fixed_landmarks=tmp_path / "both.csv", moving_landmarks=tmp_path / "both.csv")
    assert result["tre_mm"]["max"] < 0.01


def test_learn2reg_as_it_is_now_is_judged_as_by_its_script(case, tmp_path):
    """An .npz at full resolution, lists of voxels without names; its displacements at landmarks restated.

    The script reads them by cubic splines, here as everywhere linearly: at a voxel both are the same."""
    u = nib.load(case.folder / "disp.nii.gz").get_fdata()
    at = np.array([[8, 9, 10], [12, 11, 9], [14, 12, 8], [3, 4, 15]], float)
    towards = at + np.random.default_rng(0).normal(size=at.shape)
    moved = at + np.stack([map_coordinates(u[..., axis], at.T) for axis in range(3)], -1)
    expected = np.linalg.norm((moved - towards) * MOVING.spacing, axis=1)
    np.savez_compressed(tmp_path / "disp.npz", flow=np.moveaxis(u, -1, 0).astype(np.float32))
    for name, points in (("fixed.csv", at), ("moving.csv", towards)):
        np.savetxt(tmp_path / name, points, delimiter=",")
    landmarks = {"fixed_landmarks": tmp_path / "fixed.csv", "moving_landmarks": tmp_path / "moving.csv"}
    images = case.path("fixed"), case.path("moving")
    result = evaluate_files(*images, [tmp_path / "disp.npz"], space="voxel", **landmarks)
    found = [point["after"] for point in result["tre_mm"]["landmarks"].values()]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(InputError, match="--landmark-space voxel"):
        evaluate_files(*images, [tmp_path / "disp.npz"], **landmarks)


def test_landmarks_of_an_unknown_world_or_length_are_refused(case, tmp_path):
    (tmp_path / "a.csv").write_text("name,x,y,z\na,1,2,3\nb,1,2,3\nc,1,2,3\n")
    with pytest.raises(InputError, match="does not say in which world"):
        case.evaluate(fixed_landmarks=tmp_path / "a.csv")
    result = case.evaluate(fixed_landmarks=tmp_path / "a.csv", space="lps")
    assert result["tre_mm"]["count"] == 3
    (tmp_path / "b.csv").write_text("name,x_ras,y_ras,z_ras\na,1,2,3\n")
    with pytest.raises(InputError, match=r"1 fixed and 3 moving .*lack b, c"):
        case.evaluate(fixed_landmarks=tmp_path / "b.csv")


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_landmarks_outside_their_image_are_noted(case, tmp_path, side):
    write_landmarks(tmp_path / "far.csv", Landmarks(("a", "b", "c"), case.points + 500 * UP))
    result = case.evaluate(**{f"{side}_landmarks": tmp_path / "far.csv"})
    assert [note.partition(" lie outside")[0] for note in result["notes"] if "outside" in note] == [
        f"3 of the {side} landmarks"
    ]


@pytest.mark.parametrize("voxels", [0.9, 1.1])
@pytest.mark.parametrize("end", [-1, 1])
def test_a_field_may_end_one_of_its_voxels_before_the_image(case, tmp_path, voxels, end):
    offset = FIXED.affine[:3, 3] - end * voxels * FIXED.spacing.max() * FIXED.linear[:, 0] / FIXED.spacing[0]
    write_displacement(
        tmp_path / "field.nii.gz", case.warp.on(Grid(FIXED.shape, nib.affines.from_matvec(FIXED.linear, offset)))
    )
    images = case.path("fixed"), case.path("moving")
    if voxels < 1:
        assert any("another grid" in note for note in evaluate_files(*images, [tmp_path / "field.nii.gz"])["notes"])
        return
    with pytest.raises(InputError, match="its displacement field ends"):
        evaluate_files(*images, [tmp_path / "field.nii.gz"])


def test_a_registration_of_other_images_is_refused(case, own_result, tmp_path):
    fixed, moving = case.path("fixed"), case.path("moving")
    with pytest.raises(InputError, match=r"another fixed image than .*moving\.nii\.gz: .* mm apart"):
        evaluate_files(moving, fixed, [own_result])
    same_grid = tmp_path / "other.nii.gz"
    write_volume(same_grid, Image(case.moving.data * 2, MOVING))
    with pytest.raises(InputError, match=r"another moving image than .*other.nii.gz: it was made from .*moving\.nii"):
        evaluate_files(fixed, same_grid, [own_result])
    chain = [own_result / name for name in ("1Warp.nii.gz", "0GenericAffine.mat")]
    assert evaluate_files(fixed, same_grid, chain)["folds"]["count"] == 0


def test_a_field_that_ends_before_the_image_is_refused_and_another_grid_noted(case, tmp_path):
    def field_on(grid):
        path = tmp_path / f"{grid.shape[0]}.nii.gz"
        write_displacement(path, case.warp.on(grid))
        return path

    away = Grid((24, 22, 21), nib.affines.from_matvec(FIXED.linear, FIXED.affine[:3, 3] + FIXED.linear @ (6, 0, 0)))
    with pytest.raises(InputError, match=r"24.nii.gz: its displacement field ends 6 mm before .*fixed.nii.gz"):
        evaluate_files(case.path("fixed"), case.path("moving"), [field_on(away)])
    result = evaluate_files(case.path("fixed"), case.path("moving"), [field_on(FIXED.coarser(2))])
    assert any("another grid" in note for note in result["notes"])


def test_labels_and_masks_on_another_grid_are_refused(case):
    with pytest.raises(InputError, match=r"moving_labels.nii.gz: .*does not fit .*mm apart"):
        case.evaluate(fixed_labels=case.path("moving_labels"))
    with pytest.raises(InputError, match=r"moving_labels.nii.gz: .*does not fit"):
        case.evaluate(mask=case.path("moving_labels"))


def test_a_displacement_in_voxels_stands_alone(case):
    paths = [*case.transforms("learn2reg"), *case.transforms("composite")]
    with pytest.raises(InputError, match=r"disp.nii.gz: is in voxels.*alone"):
        evaluate_files(case.path("fixed"), case.path("moving"), paths)


def test_files_that_are_not_there_are_named(case, tmp_path):
    with pytest.raises(InputError, match=r"absent.mat: does not exist"):
        evaluate_files(case.path("fixed"), case.path("moving"), [tmp_path / "absent.mat"])
    with pytest.raises(InputError, match=r"absent.nii.gz"):
        case.evaluate(fixed_labels=tmp_path / "absent.nii.gz")


def test_stages_are_reported(case):
    steps = []
    case.evaluate(progress=steps.append)
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["read", "transform", "labels", "surfaces", "regularity", "similarity"]


@pytest.mark.data
def test_two_brains_before_registration(data_folder):
    """The people 1013 and 1019 of OASIS, as their headers put them."""
    files = {
        f"{side}_{what}": data_folder / "oasis" / f"{person}_{name}"
        for side, person in (("fixed", 1013), ("moving", 1019))
        for what, name in (("labels", "glm.nii.gz"), ("landmarks", "landmarks.csv"))
    }
    images = [data_folder / "oasis" / f"{person}_SS.nii.gz" for person in (1013, 1019)]
    names = data_folder / "oasis" / "labels.json"
    ignored = ["15", "42", "43", "46", "63", "64", "65", "66", "69", "74", "126", "127"]
    result = evaluate_files(
        *images, **files, label_names=names, ignore_labels=ignored, unreliable_landmarks=["30", "15"]
    )
    assert result["mask"]["source"] == "non-zero voxels of the fixed image"
    assert (result["labels_scored"], result["tre_mm"]["count"]) == (132, 30)
    assert result["labels"]["4"]["name"] == "3rd Ventricle"
    assert result["tre_mm"]["before_mean"] == result["tre_mm"]["mean"] == pytest.approx(15.46, abs=0.01)
    assert 0 < result["mean_dice"] < 0.2
