import pytest

from stepwarp.errors import InputError
from stepwarp.files import read_image, read_landmarks, read_transform, sha256
from stepwarp.presence import check_present

DICOM = bytes(128) + b"DICM" + bytes(50)


def no_content(path):
    path.symlink_to("../.git/annex/objects/aa/bb/MD5E-s123.nii.gz")


def lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")


def annex(path):
    path.write_text("/annex/objects/MD5E-s123.nii.gz\n")


def dicom(path):
    path.write_bytes(DICOM)


def dicom_folder(path):
    (path / "series").mkdir(parents=True)
    dicom(path / "series" / "IM0001")


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (no_content, "datalad get"),
        (annex, "git annex get"),
        (lfs, "git lfs pull --include"),
        (dicom, "dcm2niix -z y -o"),
        (dicom_folder, "dcm2niix -z y -o"),
        (lambda path: path.symlink_to("nowhere"), "is a link to nowhere"),
        (lambda path: path.mkdir(), "is a folder"),
    ],
)
@pytest.mark.parametrize(
    ("read", "name"),
    [
        (check_present, "a"),
        (read_image, "a b.nii.gz"),
        (read_image, "a.img"),
        (read_landmarks, "a.csv"),
        (read_transform, "a.h5"),
        (sha256, "a.nii"),
    ],
)
def test_the_remedy_is_that_of_the_cause(tmp_path, make, remedy, read, name):
    path = tmp_path / name
    if name == "a.img":
        (tmp_path / "a.hdr").write_bytes(bytes(348))
    make(path)
    with pytest.raises(InputError, match=remedy) as caught:
        read(path)
    assert str(path) in str(caught.value)
    if "--include" in remedy and " " in name:
        assert f"--include '{name}'" in str(caught.value)
