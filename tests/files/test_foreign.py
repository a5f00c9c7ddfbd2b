"""Fields of other programs: read as what they mean, or refused with the program and the command that converts."""

import subprocess

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stepwarp.doctor.image import examine_file
from stepwarp.errors import InputError
from stepwarp.files import read_transform
from stepwarp.files.learn2reg import read_learn2reg
from stepwarp.geometry import Grid

SHAPE = (9, 8, 7)
AFFINE = nib.affines.from_matvec(
    Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix() * (-2, 2.5, 3), (60, -50, -40)
)
INDEX = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
WORLD = INDEX @ AFFINE[:3, :3].T + AFFINE[:3, 3]
#: A map that differs in every axis and from place to place, RAS mm.
DISPLACEMENT = np.array([6.0, -4, 8]) + 0.05 * WORLD[..., [1, 2, 0]]


def field(path, vectors, intent=1007, name="", p1=0.0, description="", extension=None):
    image = nib.Nifti1Image(vectors.astype(np.float32), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = intent, name, p1
    image.header["descrip"] = description
    if extension is not None:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(extension, b"<AFNI_attributes/>"))
    nib.save(image, path)
    return path


def five_axes(vectors):
    return vectors[:, :, :, None, :]


@pytest.mark.parametrize(
    ("vectors", "header"),
    [
        (DISPLACEMENT * (-1, -1, 1), {}),
        (DISPLACEMENT * (-1, -1, 1), {"description": "made from an image of MRtrix"}),
        (WORLD + DISPLACEMENT, {"name": "Mapping", "description": "Deformation"}),
        (WORLD + DISPLACEMENT, {"intent": 0, "description": "Deformation (templ. to. ind.)"}),
        (WORLD + DISPLACEMENT, {"name": "NREG_TRANS", "p1": 0}),
        (DISPLACEMENT, {"name": "NREG_TRANS", "p1": 1}),
    ],
    ids=["ITK", "ITK, described", "SPM", "SPM Shoot", "NiftyReg -def", "NiftyReg -disp"],
)
def test_fields_that_are_certain_are_read_as_what_they_mean(tmp_path, vectors, header):
    path = field(tmp_path / "field.nii.gz", five_axes(vectors), **header)
    points = WORLD[2:6, 2:6, 2:5].reshape(-1, 3)
    expected = points + DISPLACEMENT[2:6, 2:6, 2:5].reshape(-1, 3)
    np.testing.assert_allclose(read_transform(path)(points), expected, atol=1e-4)
    assert not examine_file(path).findings


def test_positions_whose_file_has_lost_its_name_are_no_displacements(tmp_path):
    path = field(tmp_path / "y.nii.gz", five_axes(WORLD + DISPLACEMENT))
    with pytest.raises(InputError, match="holds positions in RAS mm, as the maps of SPM and NiftyReg do"):
        read_transform(path)


@pytest.mark.parametrize(
    ("axes", "header", "words"),
    [
        (5, {"name": "NREG_TRANS", "p1": 2}, ("NiftyReg", "control points", "reg_transform")),
        (5, {"name": "NREG_TRANS", "p1": 3}, ("NiftyReg", "velocity", "reg_transform")),
        (5, {"name": "NREG_TRANS", "p1": 5}, ("NiftyReg", "velocity", "reg_transform")),
        (5, {"name": "NREG_TRANS", "p1": np.nan}, ("NiftyReg", "not known", "reg_transform")),
        (5, {"name": "NREG_CPP_FILE"}, ("NiftyReg", "reg_transform")),
        (5, {"intent": 0, "description": "Flow Field"}, ("SPM", "flow", "y_")),
        (4, {"intent": 2006}, ("FSL", "wb_command -convert-warpfield -from-fnirt")),
        (4, {"intent": 2007}, ("FSL", "cubic splines", "fnirtfileutils")),
        (4, {"intent": 2009}, ("FSL", "quadratic splines", "fnirtfileutils")),
        (5, {"intent": 0, "extension": 4}, ("AFNI", "nifti_tool")),
        (5, {"intent": 1007, "extension": 4}, ("AFNI", "nifti_tool")),
    ],
)
def test_others_are_refused_by_name_everywhere(tmp_path, axes, header, words):
    path = field(tmp_path / "field.nii.gz", five_axes(DISPLACEMENT) if axes == 5 else DISPLACEMENT, **header)
    readers = [read_transform] if axes == 5 else [read_transform, lambda p: read_learn2reg(p, GRID, GRID)]
    for read in readers:
        with pytest.raises(InputError) as caught:
            read(path)
        assert all(word in str(caught.value) for word in (str(path), *words))
    (finding,) = examine_file(path).findings
    assert finding.severity == "error"
    assert all(word in f"{finding.text} {finding.remedy}" for word in words)


GRID = Grid(SHAPE, AFFINE)


@pytest.mark.parametrize(
    "header", [{"intent": 0, "description": "MRtrix version: 3.0.4"}, {"intent": 0, "extension": 4}]
)
def test_what_learn2reg_would_take_for_voxels_is_refused_by_name(tmp_path, header):
    path = field(tmp_path / "warp.nii.gz", DISPLACEMENT, **header)
    with pytest.raises(InputError, match=r"MRtrix|AFNI"):
        read_learn2reg(path, GRID, GRID)


@pytest.mark.parametrize("end", [" ", "\n"])
def test_the_command_that_converts_a_matrix_of_afni_does_it(tmp_path, end):
    lps = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.2, 0.3) * (1.1, 1.0, 0.9), (3, -4, 5))
    rows = end.join(" ".join(f"{number:.9f}" for number in row) for row in lps[:3])
    path = tmp_path / "anat to epi.aff12.1D"
    path.write_text(f"# 3dAllineate matrices (DICOM-to-DICOM, row-by-row):\n{rows}\n")
    with pytest.raises(InputError) as caught:
        read_transform(path)
    subprocess.run(str(caught.value).split("Convert it: ")[1], shell=True, check=True, cwd=tmp_path)
    flip = np.diag([-1.0, -1, 1, 1])
    np.testing.assert_allclose(read_transform(tmp_path / "affine.tfm").matrix, flip @ lps @ flip, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.m3z", "?", ("FreeSurfer", "mri_warp_convert --inm3z")),
        ("a.lta", "type = 1\n", ("FreeSurfer", "lta_convert")),
        ("a.mat", "1 0 0 5\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", ("FSL", "c3d_affine_tool", "-fsl2ras")),
        ("a.txt", "1 0 0 5\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", ("NiftyReg", "c3d_affine_tool")),
        ("a.txt", '(Transform "BSplineTransform")\n', ("elastix", "transformix -def all")),
        ("a.1D", "# 3dAllineate matrices\n1 0 0 0 0 1 0 0 0 0 1 0\n", ("AFNI", "awk")),
        ("a.1D", "1 0 0 0\n0 1 0 0\n0 0 1 0\n", ("AFNI", "awk")),
        ("a+tlrc.HEAD", "type = string-attribute\n", ("AFNI", "3dcopy", "nifti_tool -rm_ext", "intent_code 1007")),
        ("a.aff12.1D", "1 0 0 0 0 1 0 0 0 0 1 0\n", ("AFNI", "awk")),
        ("a.mat", "MATLAB 5.0 MAT-file, written by SPM", ("SPM", "y_")),
    ],
)
def test_files_that_are_no_images_are_refused_by_name(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_transform(path)
    assert all(word in str(caught.value) for word in (str(path), *words))
