"""Surfaces and streamlines, which move as landmarks do and stay what they are."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.gifti import GiftiCoordSystem, GiftiDataArray, GiftiImage, GiftiMetaData
from nibabel.streamlines import Field, TckFile, Tractogram, TrkFile

from stepwarp.errors import InputError
from stepwarp.files import Landmarks, read_landmarks, streamlines, write_affine, write_displacement, write_landmarks
from stepwarp.geometry import Affine, DisplacementField, Grid
from stepwarp.workflow.apply import apply

GRID = Grid((12, 14, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
POINTS = np.random.default_rng(0).uniform(4, 18, (30, 3)).astype(np.float32)
LENGTHS = (7, 1, 12, 10)
TRIANGLES = np.arange(30, dtype=np.int32).reshape(10, 3)


@pytest.fixture
def chain(tmp_path):
    """Files as antsApplyTransforms is given them: a field, then a turn."""
    vectors = np.stack(np.meshgrid(*(np.sin(np.arange(n) / 3) for n in GRID.shape), indexing="ij"), -1)
    write_displacement(tmp_path / "warp.nii.gz", DisplacementField.from_millimetres(vectors, GRID))
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.2, 0.3), (5, -4, 3))
    write_affine(tmp_path / "turn.mat", Affine(turn))
    return [tmp_path / "warp.nii.gz", tmp_path / "turn.mat"]


@pytest.fixture
def expected(chain, tmp_path):
    """Where landmarks at the same points go."""
    write_landmarks(tmp_path / "p.csv", Landmarks([str(n) for n in range(len(POINTS))], POINTS))
    apply(chain, [tmp_path / "p.csv"], [tmp_path / "q.csv"])
    return read_landmarks(tmp_path / "q.csv").points


def write_surface(path, points=POINTS, **more):
    meta = GiftiMetaData({"AnatomicalStructurePrimary": "CortexLeft", **more})
    system = GiftiCoordSystem("NIFTI_XFORM_SCANNER_ANAT", "NIFTI_XFORM_SCANNER_ANAT")
    thickness = np.linspace(0, 1, 30, dtype=np.float32)
    arrays = [
        GiftiDataArray(points, "NIFTI_INTENT_POINTSET", coordsys=system, meta=meta),
        GiftiDataArray(TRIANGLES, "NIFTI_INTENT_TRIANGLE", encoding="GIFTI_ENCODING_ASCII"),
        GiftiDataArray(thickness, "NIFTI_INTENT_SHAPE"),
    ]
    nib.save(GiftiImage(darrays=arrays, meta=GiftiMetaData({"Name": "white"})), path)
    return path


def write_lines(path):
    lines = np.split(POINTS, np.cumsum(LENGTHS)[:-1])
    further = {}
    if path.suffix == ".trk":
        header = {
            Field.VOXEL_TO_RASMM: np.diag([-2.0, 2.5, 3, 1]) + np.eye(4, k=3) * 7,
            Field.DIMENSIONS: (12, 14, 16),
            Field.VOXEL_SIZES: (2.0, 2.5, 3.0),
            Field.VOXEL_ORDER: "LAS",
        }
        further = {
            "data_per_point": {"FA": [np.linspace(0, 1, n, dtype=np.float32)[:, None] for n in LENGTHS]},
            "data_per_streamline": {"bundle": [np.array([n], np.float32) for n in range(4)]},
        }
        kind = TrkFile
    else:
        kind, header = TckFile, {"method": "FACT"}
    kind(Tractogram(lines, affine_to_rasmm=np.eye(4), **further), header).save(str(path))
    return path


def test_a_colon_in_a_header_of_mrtrix_is_no_obstacle(chain, tmp_path):
    source = write_lines(tmp_path / "in.tck")
    source.write_bytes(source.read_bytes().replace(b"method: FACT", b"method: F:CT"))
    [done] = apply(chain, [source], [tmp_path / "out.tck"])
    assert nib.streamlines.load(str(tmp_path / "out.tck")).header["method"] == "F;CT"
    assert any("colons" in note for note in done.notes)


def test_a_surface_moves_as_landmarks_do_and_keeps_all_else(chain, expected, tmp_path):
    source, out = write_surface(tmp_path / "lh.surf.gii"), tmp_path / "moved.surf.gii"
    [done] = apply(chain, [source], [out])
    assert done.kind == "surface"
    assert "30 points" in done.how
    before, after = nib.load(source), nib.load(out)
    points, triangles, thickness = after.darrays
    np.testing.assert_allclose(points.data, expected, atol=1e-4)
    assert np.linalg.norm(points.data - POINTS, axis=1).min() > 0.5
    assert points.data.dtype == np.float32
    np.testing.assert_array_equal(triangles.data, TRIANGLES)
    np.testing.assert_array_equal(thickness.data, before.darrays[2].data)
    assert dict(after.meta) == dict(before.meta)
    for old, new in zip(before.darrays, after.darrays, strict=True):
        assert (dict(old.meta), old.intent, old.encoding) == (dict(new.meta), new.intent, new.encoding)
    assert points.coordsys.dataspace == before.darrays[0].coordsys.dataspace


def test_points_of_freesurfers_own_are_pointed_out(chain, tmp_path):
    source = write_surface(tmp_path / "lh.surf.gii", VolGeomC_R="5.0", VolGeomC_A="0")
    [done] = apply(chain, [source], [tmp_path / "out.gii"])
    assert any("mris_convert --to-scanner" in note for note in done.notes)


@pytest.mark.parametrize("at_once", [5, 2**17])
@pytest.mark.parametrize("suffix", [".trk", ".tck"])
def test_streamlines_move_as_landmarks_do_and_keep_all_else(chain, expected, tmp_path, monkeypatch, suffix, at_once):
    monkeypatch.setattr(streamlines, "_AT_ONCE", at_once)
    source, out = write_lines(tmp_path / f"lines{suffix}"), tmp_path / f"moved{suffix}"
    [done] = apply(chain, [source], [out])
    assert done.kind == "streamlines"
    before, after = (nib.streamlines.load(str(path)) for path in (source, out))
    assert tuple(map(len, after.streamlines)) == LENGTHS
    np.testing.assert_allclose(after.streamlines.get_data(), expected, atol=1e-4)
    assert before.header.keys() == after.header.keys()
    for key in set(before.header) - {"file", "_offset_data"}:
        np.testing.assert_array_equal(before.header[key], after.header[key])
    for old, new in zip(before.tractogram, after.tractogram, strict=True):
        np.testing.assert_equal(new.data_for_points, old.data_for_points)
        np.testing.assert_equal(new.data_for_streamline, old.data_for_streamline)


@pytest.mark.parametrize("suffix", [".trk", ".tck", ".surf.gii"])
def test_there_and_back_is_where_it_was(chain, tmp_path, suffix):
    source = (write_surface if suffix == ".surf.gii" else write_lines)(tmp_path / f"in{suffix}")
    apply(chain[1:], [source], [tmp_path / f"there{suffix}"])
    apply(chain[1:], [tmp_path / f"there{suffix}"], [tmp_path / f"back{suffix}"], inverse=True)
    name = str(tmp_path / f"back{suffix}")
    back = (
        nib.load(name).darrays[0].data if suffix == ".surf.gii" else nib.streamlines.load(name).streamlines.get_data()
    )
    np.testing.assert_allclose(back, POINTS, atol=1e-4)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def hollow(path):
    kind = TrkFile if path.suffix == ".trk" else TckFile
    kind(Tractogram([], affine_to_rasmm=np.eye(4)), {}).save(str(path))
    return path


def nowhere(path):
    """A header of TrackVis' first version, which has no matrix."""
    write_lines(path)
    content = bytearray(path.read_bytes())
    content[440:504] = bytes(64)
    path.write_bytes(content)
    return path


def unfinished(path, write=write_surface):
    points = POINTS.copy()
    points[3, 1] = np.nan
    return write(path, points)


SPOILT = {
    "empty.gii": (lambda p: cut(write_surface(p), 0), "is empty"),
    "cut.surf.gii": (lambda p: cut(write_surface(p), 900), "cannot be read as GIFTI"),
    "nan.surf.gii": (unfinished, "not finite"),
    "flat.surf.gii": (lambda p: write_surface(p, POINTS[:, :2]), "30 x 2"),
    "values.func.gii": (
        lambda p: nib.save(GiftiImage(darrays=[GiftiDataArray(POINTS[:, 0], "NIFTI_INTENT_SHAPE")]), p),
        r"holds no points.*\.surf\.gii",
    ),
    "empty.trk": (lambda p: cut(write_lines(p), 0), "is empty"),
    "header.trk": (lambda p: cut(write_lines(p), 500), "cannot be read as streamlines"),
    "cut.trk": (lambda p: cut(write_lines(p), -30), "cannot be read as streamlines"),
    "short.trk": (lambda p: cut(write_lines(p), -(4 + 10 * 16 + 4)), "holds 3 of 4 streamlines"),
    "none.trk": (hollow, "holds no streamlines"),
    "nowhere.trk": (nowhere, "does not say where"),
    "cut.tck": (lambda p: cut(write_lines(p), -40), "cannot be read as streamlines"),
    "none.tck": (hollow, "holds no streamlines|cannot be read"),
    "text.tck": (lambda p: p.write_text("no streamlines"), "cannot be read as streamlines"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_refused_by_name_and_nothing_is_written(chain, tmp_path, name):
    spoil, message = SPOILT[name]
    spoil(tmp_path / name)
    out = tmp_path / f"out{''.join((tmp_path / name).suffixes[-1:])}"
    with pytest.raises(InputError, match=rf"{name}: .*({message})"):
        apply(chain, [tmp_path / name], [out])
    assert not out.exists()
    assert not list(tmp_path.glob(".partial*"))


def test_a_shape_becomes_a_file_of_its_kind_and_is_ras(chain, tmp_path):
    source = write_surface(tmp_path / "lh.surf.gii")
    with pytest.raises(InputError, match=r"written as \.gii"):
        apply(chain, [source], [tmp_path / "out.trk"])
    with pytest.raises(InputError, match="RAS mm by its format"):
        apply(chain, [source], [tmp_path / "out.gii"], space="lps")
