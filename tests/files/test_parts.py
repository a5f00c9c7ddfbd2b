import hashlib

import nibabel as nib
import numpy as np
import pytest

from stepwarp.errors import InputError
from stepwarp.files import read_image, sha256
from stepwarp.files.parts import parts_of

VALUES = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


def test_one_file_has_the_checksum_that_every_tool_gives(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"some bytes")
    assert sha256(path) == hashlib.sha256(b"some bytes").hexdigest()


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_of_a_pair_both_files_are_read_and_hashed(tmp_path, ending):
    head, voxels = (tmp_path / f"a.{kind}{ending}" for kind in ("hdr", "img"))
    nib.save(nib.Nifti1Pair(VALUES, np.diag([2, 2, 2, 1])), voxels)
    for path in (head, voxels):
        assert parts_of(path) == (head, voxels)
        np.testing.assert_array_equal(read_image(path).data.numpy(), VALUES)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (head, voxels)]
    stated = hashlib.sha256(f"hdr {digests[0]}\nimg {digests[1]}\n".encode()).hexdigest()
    assert sha256(head) == sha256(voxels) == stated
    nib.save(nib.Nifti1Pair(VALUES[::-1], np.diag([2, 2, 2, 1])), tmp_path / f"b.img{ending}")
    (tmp_path / f"b.img{ending}").replace(voxels)
    assert sha256(head) != stated


def test_half_a_pair(tmp_path):
    (tmp_path / "a.hdr").write_bytes(bytes(348))
    with pytest.raises(InputError, match=r"a\.img: does not exist"):
        sha256(tmp_path / "a.hdr")
