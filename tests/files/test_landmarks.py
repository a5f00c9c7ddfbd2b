import csv
import json

import nibabel as nib
import numpy as np
import pytest
from ants.internal import get_lib_fn

from stepwarp.errors import InputError, OutputError
from stepwarp.files import Landmarks, read_image, read_landmarks, write_affine, write_landmarks
from stepwarp.geometry import Affine, Grid

LANDMARKS = Landmarks(("AC", "PC", "sulcus, left"), [[0.1, -2.5, 1 / 3], [-25.124, 1e-7, 7], [1, 2, 3]])
FORMATS = ["a.csv", "a.fcsv", "a.mrk.json"]


def written(tmp_path, text, name="points.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path, *words, **keywords):
    with pytest.raises(InputError) as caught:
        read_landmarks(path, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message


# --- CSV


def test_columns_that_say_ras_or_lps(tmp_path):
    ras = read_landmarks(written(tmp_path, "afid,name,x_ras,y_ras,z_ras\n1,AC,-0.12,2.5,-4.8\n2,PC,1,2,3\n"))
    assert ras.names == ("AC", "PC")
    np.testing.assert_array_equal(ras.points, [[-0.12, 2.5, -4.8], [1, 2, 3]])
    lps = read_landmarks(written(tmp_path, "afid,X_LPS,Y_LPS,Z_LPS\r\n7,0.12,-2.5,-4.8\r\n"))
    assert lps.names == ("7",)
    np.testing.assert_array_equal(lps.points, [[-0.12, 2.5, -4.8]])


def test_bare_columns_need_a_statement(tmp_path):
    text = "x,y,z,t,label\n1,2,3,0,5\n"
    refused(written(tmp_path, text), "# space: LPS", "RAS", "x_ras")
    np.testing.assert_array_equal(read_landmarks(written(tmp_path, text), space="lps").points, [[-1, -2, 3]])
    np.testing.assert_array_equal(read_landmarks(written(tmp_path, text), space="ras").points, [[1, 2, 3]])
    stated = written(tmp_path, f"# made by hand\n# space: LPS\n{text}")
    np.testing.assert_array_equal(read_landmarks(stated).points, [[-1, -2, 3]])
    assert read_landmarks(stated).names == ("5",)


OF_TWO_IMAGES = {
    "ras": ("x_ras", "y_ras", "z_ras"),
    "lps": ("x_lps", "y_lps", "z_lps"),
    "bare": ("x", "y", "z"),
    "voxels": ("i", "j", "k"),
}


@pytest.mark.parametrize("kind", OF_TWO_IMAGES)
def test_a_table_may_hold_the_positions_of_several_images(tmp_path, kind):
    names = [f"{side}_{column}" for side in ("fixed", "Moving") for column in OF_TWO_IMAGES[kind]]
    path = written(tmp_path, f"name,{','.join(names)},tissue\na,1,2,3,4,5,6,lung\n")
    how = {"space": "lps" if kind == "bare" else None, "grid": Grid((9, 9, 9), np.diag([2.0, 2, 2, 1]))}
    scale = {"ras": 1, "lps": (-1, -1, 1), "bare": (-1, -1, 1), "voxels": 2}[kind]
    for side, row in (("fixed", [1, 2, 3]), ("moving", [4, 5, 6])):
        found = read_landmarks(path, of=side, **how)
        np.testing.assert_array_equal(found.points, np.multiply([row], scale))
        assert found.names == ("a",)
    refused(path, "needs columns x_ras", "it has name, fixed_", **how)
    refused(path, "or these with other_ before them", "it has name, fixed_", of="other", **how)
    if kind == "ras":  # what is written again are the columns that were read
        write_landmarks(tmp_path / "out.csv", found.moved(found.points + 10))
        assert (tmp_path / "out.csv").read_text().splitlines()[1] == "a,1,2,3,14.0,15.0,16.0,lung"


def test_a_table_of_one_image_is_that_of_whoever_asks(tmp_path):
    path = written(tmp_path, "name,x_ras,y_ras,z_ras,moving_x_lps,moving_y_lps,moving_z_lps\na,1,2,3,4,5,6\n")
    np.testing.assert_array_equal(read_landmarks(path, of="fixed").points, [[1, 2, 3]])
    np.testing.assert_array_equal(read_landmarks(path, of="moving").points, [[-4, -5, 6]])


@pytest.mark.parametrize(
    "text", ["1.5,2,3\n4,5,6\n", "1.5\t2\t3\n4\t5\t6\n", "1,5;2;3\n4;5;6\n", "\ufeff1.5,2,3\r\n4,5,6"]
)
def test_rows_without_names_of_columns_are_what_is_said_of_them(tmp_path, text):
    """As Learn2Reg's lists of keypoints are, in voxels."""
    path, rows = written(tmp_path, text), np.array([[1.5, 2, 3], [4, 5, 6]])
    grid = Grid((9, 9, 9), nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) * (1, 2, 3), (4, 5, 6)))
    refused(path, "no line of column names", "--landmark-space voxel", "--space voxel", "ras or lps")
    refused(path, "nothing says of which image", space="voxel")
    found = read_landmarks(path, "voxel", grid)
    np.testing.assert_allclose(found.points, nib.affines.apply_affine(grid.affine, rows))
    assert found.names == ("1", "2")
    np.testing.assert_array_equal(read_landmarks(path, "lps").points, rows * (-1, -1, 1))
    write_landmarks(tmp_path / "out.csv", found)
    np.testing.assert_allclose(read_landmarks(tmp_path / "out.csv").points, found.points)


def test_rows_without_names_that_are_no_positions(tmp_path):
    refused(written(tmp_path, "1,2,3,4\n"), "not three numbers", space="ras")
    refused(written(tmp_path, "1,2\n"), "2 cells where 3", space="ras")
    refused(written(tmp_path, "1,2,3\na,b,c\n"), "line 2", "'a'", space="ras")


@pytest.mark.parametrize("name", FORMATS[1:])
def test_lists_of_slicer_are_never_in_voxels(tmp_path, name):
    write_landmarks(tmp_path / name, LANDMARKS)
    refused(tmp_path / name, "LPS", "VOXEL", space="voxel")
    text = (
        (tmp_path / name).read_text().replace("# CoordinateSystem = LPS", "").replace('"coordinateSystem": "LPS",', "")
    )
    refused(written(tmp_path, text, name), "in mm, not in voxels", space="voxel")


def test_statements_that_contradict_the_argument(tmp_path):
    refused(written(tmp_path, "# space: LPS\nx,y,z\n1,2,3\n"), "LPS", "RAS", space="ras")
    refused(written(tmp_path, "x_ras,y_ras,z_ras\n1,2,3\n"), "RAS", "LPS", space="lps")
    refused(written(tmp_path, "# space: MNI\nx,y,z\n1,2,3\n"), "neither RAS nor LPS")


def test_voxels_need_their_grid(tmp_path):
    path = written(tmp_path, "i,j,k\n1,2,3\n")
    refused(path, "voxel", "image")
    grid = Grid((9, 9, 9), nib.affines.from_matvec(np.diag([-2.0, 1, 1]), (10, 20, 30)))
    found = read_landmarks(path, grid=grid)
    np.testing.assert_array_equal(found.points, [[8, 22, 33]])
    assert found.names == ("1",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("empty",)),
        ("\n\n", ("no line of column names",)),
        ("x_ras,y_ras,z_ras\n", ("no landmark",)),
        ("x_ras,y_ras\n1,2\n", ("x_ras, y_ras, z_ras",)),
        ("x_ras;y_ras;z_ras\n1,5;2.5;3\n", ("line 2", "'1,5'")),
        ("x_ras,y_ras,z_ras\n1_0,2,3\n", ("line 2", "'1_0'")),
        ("x_ras,y_ras,z_ras\n1,infinity,3\n", ("line 2", "'infinity'")),
        ("x_ras,y_ras,z_ras\n1,\uff12,3\n", ("line 2", "y_ras")),
        ("x_ras,y_ras,z_ras\nn/a,n/a,n/a\n", ("no landmark that is placed",)),
        ("# a\nx_ras,y_ras,z_ras\n1,2,3\n\n1,two,3\n", ("line 5", "y_ras", "'two'")),
        ("x_ras,y_ras,z_ras\n1,nan,3\n", ("line 2", "'nan'")),
        ("x_ras,y_ras,z_ras\n1,,3\n", ("line 2", "''")),
        ("x_ras,y_ras,z_ras\n1,2\n", ("line 2", "2 cells where 3")),
        ("x_ras,y_ras,z_ras\n1,2,3,4\n", ("line 2", "4 cells where 3")),
        ("x_ras,y_ras,z_ras,x_ras\n1,2,3,4\n", ("line 1", "x_ras twice")),
        ('name,x_ras,y_ras,z_ras\n"AC,1,2,3\n', ("line 2",)),
    ],
)
def test_malformed_tables(tmp_path, text, words):
    refused(written(tmp_path, text), *words)


def test_other_files(tmp_path):
    refused(tmp_path / "absent.csv", "does not exist")
    refused(written(tmp_path, "1 2 3", "points.txt"), ".csv")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe" + bytes(range(256)))
    refused(path, "UTF-8")
    with path.open("wb") as file:
        file.truncate(65 << 20)
    refused(path, "MiB")


def test_a_byte_order_mark_and_names_that_start_with_a_hash(tmp_path):
    path = written(tmp_path, "\ufeffname,x_ras,y_ras,z_ras\n#1,1,2,3\nb,1,2,3\n")
    assert read_landmarks(path).names == ("#1", "b")


# --- where they lie


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("beyond", [0.49, 0.51])
def test_a_voxel_ends_half_a_voxel_beyond_its_centre(axis, beyond):
    """So do the outermost ones, at either end of each axis, whatever their size and direction."""
    turn = nib.eulerangles.euler2mat(0.4, -0.2, 0.3) * (1.0, 2.0, 3.0)
    grid = Grid((6, 7, 8), nib.affines.from_matvec(turn, (9, -20, 5)))
    index = np.full((2, 3), 3.0)
    index[:, axis] = -beyond, grid.shape[axis] - 1 + beyond
    points = Landmarks(("low", "high"), nib.affines.apply_affine(grid.affine, index))
    assert points.count_outside(grid) == (2 if beyond > 0.5 else 0)


# --- 3D Slicer

FCSV = """# Markups fiducial file version = 4.13
# CoordinateSystem = {}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_1,1,2,3,0,0,0,1,1,1,0,1,AC,,2,0
"""


@pytest.mark.parametrize(
    ("stated", "point"), [("LPS", (-1, -2, 3)), ("1", (-1, -2, 3)), ("RAS", (1, 2, 3)), ("0", (1, 2, 3))]
)
def test_fcsv(tmp_path, stated, point):
    found = read_landmarks(written(tmp_path, FCSV.format(stated), "a.fcsv"))
    assert found.names == ("1",)
    np.testing.assert_array_equal(found.points, [point])


def test_malformed_fcsv(tmp_path):
    refused(written(tmp_path, FCSV.format("2"), "a.fcsv"), "neither RAS nor LPS")
    unstated = "\n".join(line for line in FCSV.splitlines() if "System" not in line)
    refused(written(tmp_path, unstated, "a.fcsv"), "which world")
    np.testing.assert_array_equal(read_landmarks(tmp_path / "a.fcsv", space="ras").points, [[1, 2, 3]])
    refused(written(tmp_path, FCSV.format("RAS")[:-40] + "\n", "a.fcsv"), "line 4", "1 cell where 14")
    refused(written(tmp_path, FCSV.format("RAS").replace(",1,2,3", ",1,?,3"), "a.fcsv"), "line 4", "y", "'?'")


def markups(**changes):
    control = {"id": "1", "label": "AC", "position": [1, 2, 3], "positionStatus": "defined"}
    control |= changes.pop("control", {})
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": [control]}
    return json.dumps({"markups": [markup | changes]}, indent=1)


def test_markups(tmp_path):
    found = read_landmarks(written(tmp_path, markups(), "a.mrk.json"))
    assert found.names == ("AC",)
    np.testing.assert_array_equal(found.points, [[-1, -2, 3]])
    found = read_landmarks(written(tmp_path, markups(coordinateSystem="RAS", coordinateUnits=["mm"] * 3), "a.mrk.json"))
    np.testing.assert_array_equal(found.points, [[1, 2, 3]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (markups()[:-5], ("line", "JSON")),
        ("[" * 100_000, ("nested",)),
        ("[]", ("'markups'",)),
        ('{"markups": [1]}', ("'markups'",)),
        (markups(controlPoints=None), ("markup 1", "'controlPoints'")),
        (markups(controlPoints=[]), ("no landmark",)),
        (markups(coordinateSystem="IJK"), ("markup 1", "neither RAS nor LPS")),
        (markups(coordinateSystem=None), ("markup 1", "which world")),
        (markups(coordinateUnits="um"), ("markup 1", "um", "mm")),
        (markups(coordinateUnits={"a": 1}), ("markup 1", "mm")),
        (markups(type="Plane"), ("markup 1", "Plane")),
        (markups(control={"position": [1, 2]}), ("point 1", "no position")),
        (markups(control={"position": [1, 2, None]}), ("point 1", "None")),
        (markups(control={"position": [1, 2, float("nan")]}), ("point 1", "nan")),
        (markups(control={"positionStatus": "undefined"}), ("no landmark that is placed",)),
        (markups(control={"position": [True, 2, 3]}), ("point 1", "True")),
    ],
)
def test_malformed_markups(tmp_path, text, words):
    refused(written(tmp_path, text, "a.mrk.json"), *words)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "name;x_ras;y_ras;z_ras\nA;1,5;-2,25;3\n"),
        ("a.csv", "name\tx_ras\ty_ras\tz_ras\nA\t1.5\t-2.25\t3\n"),
        ("a.tsv", "name\tx_ras\ty_ras\tz_ras\tsize\nA\t1.5\t-2.25\t3\t5\n"),
        ("a.csv", "label,l,p,s,defined,description\nA,-1.5,2.25,3,1,\n"),
    ],
)
def test_tables_as_spreadsheets_bids_and_slicer_write_them(tmp_path, name, text):
    found = read_landmarks(written(tmp_path, text, name))
    assert found.names == ("A",)
    np.testing.assert_array_equal(found.points, [[1.5, -2.25, 3]])


MISSING = {
    "a.csv": "name,x_ras,y_ras,z_ras\nA,1,2,3\nB,n/a,n/a,n/a\nC,4,5,6\n",
    "b.csv": "label,r,a,s,defined\nA,1,2,3,1\nB,0,0,0,0\nC,4,5,6,1\n",
    "a.tsv": "name\tx_ras\ty_ras\tz_ras\nA\t1\t2\t3\nB\t\t\t\nC\t4\t5\t6\n",
    "a.fcsv": "# CoordinateSystem = RAS\n"
    + "".join(
        f"{n},{xyz},0,0,0,1,1,1,0,{n},,,{status},0\n"
        for n, xyz, status in (("A", "1,2,3", 2), ("B", "0,0,0", 3), ("C", "4,5,6", 2))
    ),
    "a.mrk.json": json.dumps(
        {
            "markups": [
                {
                    "coordinateSystem": "RAS",
                    "controlPoints": [
                        {"label": "A", "position": [1, 2, 3]},
                        {"label": "B", "position": [0, 0, 0], "positionStatus": "missing"},
                        {"label": "C", "position": [4, 5, 6]},
                    ],
                }
            ]
        }
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_landmark_that_is_marked_missing_stays_missing(tmp_path, name):
    found = read_landmarks(written(tmp_path, MISSING[name], name))
    assert found.names == ("A", "C")
    assert found.missing == ((1, "B"),)
    np.testing.assert_array_equal(found.points, [[1, 2, 3], [4, 5, 6]])
    for target in ("of_the_same_kind" + name[1:], "plain.csv", "plain.tsv", "plain.fcsv", "plain.mrk.json"):
        write_landmarks(tmp_path / target, found.moved(found.points + 1))
        back = read_landmarks(tmp_path / target)
        assert (back.names, back.missing) == (found.names, found.missing)
        np.testing.assert_array_equal(back.points, [[2, 3, 4], [5, 6, 7]])


# --- what is written


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.csv",
            "# by hand\n# space: LPS\nX,y,z,t,label,comment\n1.0,2.0,3.0,3,207,left hip\n",
            "# by hand\n# space: LPS\nX,y,z,t,label,comment\n0.0,1.0,4.0,3,207,left hip\n",
        ),
        ("a.csv", "p,z_ras,name,y_ras,x_ras\n-0.9,3,=A,2,1\n", "p,z_ras,name,y_ras,x_ras\n-0.9,4.0,'=A,3.0,2.0\n"),
        ("a.csv", "name;x_ras;y_ras;z_ras\nA;1,5;2,5;3\n", "name;x_ras;y_ras;z_ras\nA;2,5;3,5;4,0\n"),
        (
            "a.tsv",
            "name\tx_ras\ty_ras\tz_ras\tsize\nA\t1\t2\t3\t5\n",
            "name\tx_ras\ty_ras\tz_ras\tsize\nA\t2.0\t3.0\t4.0\t5\n",
        ),
        (
            "a.csv",
            "name,x_ras,y_ras,z_ras,x_lps,y_lps,z_lps\nA,1,2,3,-1,-2,3\n",
            "name,x_ras,y_ras,z_ras,x_lps,y_lps,z_lps\nA,2.0,3.0,4.0,-2.0,-3.0,4.0\n",
        ),
        ("a.csv", "name,x_ras,y_ras,z_ras,i,j,k,q\nA,1,2,3,7,8,9,.5\n", "name,x_ras,y_ras,z_ras,q\nA,2.0,3.0,4.0,.5\n"),
        ("a.csv", "i,j,k,q\n1,2,3,x\n", "x_ras,y_ras,z_ras,q\n2.0,3.0,4.0,x\n"),
        (
            "a.fcsv",
            FCSV.format("RAS"),
            FCSV.format("RAS").replace(",1,2,3,0,", ",2.0,3.0,4.0,0,"),
        ),
    ],
)
def test_what_else_the_file_held_is_written_again(tmp_path, name, text, expected):
    found = read_landmarks(written(tmp_path, text, name), grid=Grid((9, 9, 9), np.eye(4)))
    write_landmarks(tmp_path / f"moved_{name}", found.moved(found.points + 1))
    assert (tmp_path / f"moved_{name}").read_text() == expected


def test_what_else_slicers_markups_hold_is_written_again(tmp_path):
    text = markups(coordinateSystem="RAS", display={"color": [1, 0, 0]}, control={"description": "seen twice"})
    found = read_landmarks(written(tmp_path, text, "a.mrk.json"))
    write_landmarks(tmp_path / "b.mrk.json", found.moved(found.points + 1))
    expected = json.loads(text)
    expected["markups"][0]["controlPoints"][0]["position"] = [2, 3, 4]
    assert json.loads((tmp_path / "b.mrk.json").read_text()) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_back_exactly(tmp_path, name):
    write_landmarks(tmp_path / name, LANDMARKS)
    back = read_landmarks(tmp_path / name)
    assert back.names == LANDMARKS.names
    np.testing.assert_array_equal(back.points, LANDMARKS.points)


def test_slicers_files_say_lps(tmp_path):
    for name in ("a.fcsv", "a.mrk.json"):
        write_landmarks(tmp_path / name, LANDMARKS)
        with pytest.raises(InputError, match="LPS"):
            read_landmarks(tmp_path / name, space="ras")
    content = json.loads((tmp_path / "a.mrk.json").read_text())
    assert content["markups"][0]["controlPoints"][2]["position"] == [-1, -2, 3]


def test_ants_reads_and_maps_the_lps_table(tmp_path):
    affine = Affine(nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3), (5, 6, 7)))
    write_affine(tmp_path / "a.mat", affine)
    write_landmarks(tmp_path / "in.csv", LANDMARKS, space="lps")
    arguments = ["-d", "3", "-i", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-t", tmp_path / "a.mat"]
    get_lib_fn("antsApplyTransformsToPoints")([str(a) for a in arguments])
    with (tmp_path / "out.csv").open() as file:
        mapped = [[float(row[c]) for c in "xyz"] for row in csv.DictReader(file)]
    np.testing.assert_allclose(mapped * np.array([-1, -1, 1]), affine(LANDMARKS.points), atol=1e-3)
    back = read_landmarks(tmp_path / "in.csv", space="lps")
    assert back.names == LANDMARKS.names
    np.testing.assert_array_equal(back.points, LANDMARKS.points)


@pytest.mark.parametrize("name", ["=1+1", "+A1", "-A1", "@SUM(A1)"])
def test_a_name_is_no_formula(tmp_path, name):
    dangerous = Landmarks((name,), [[1, 2, 3]])
    for file in ("a.csv", "a.fcsv"):
        write_landmarks(tmp_path / file, dangerous)
        cells = (tmp_path / file).read_text().replace("\n", ",").split(",")
        assert name not in cells
        assert f"'{name}" in cells
        assert read_landmarks(tmp_path / file).names == (name,)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"\.csv"):
        write_landmarks(tmp_path / "a.json", LANDMARKS)
    for name in FORMATS:
        write_landmarks(tmp_path / name, LANDMARKS)
        with pytest.raises(OutputError, match="--force"):
            write_landmarks(tmp_path / name, LANDMARKS)
        write_landmarks(tmp_path / name, LANDMARKS, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == FORMATS
    with pytest.raises(ValueError, match="names"):
        Landmarks(("a",), [[1, 2]])


@pytest.mark.data
def test_development_landmarks_lie_in_their_images(data_folder):
    for path in sorted((data_folder / "oasis").glob("*_landmarks.csv")):
        image = read_image(path.with_name(path.name.replace("landmarks.csv", "SS.nii.gz")))
        found = read_landmarks(path)
        index = (found.points - image.grid.affine[:3, 3]) @ np.linalg.inv(image.grid.linear).T
        assert len(found) == 32
        assert found.names[0] == "AC"
        assert ((index > 0) & (index < image.grid.shape)).all()
    for path in sorted((data_folder / "landmarks").glob("*.csv")):
        assert len(read_landmarks(path)) == 32


@pytest.mark.parametrize(
    ("name", "text", "remedy", "remedied"),
    [
        ("a.fcsv", "# columns = label,x,y,z\nA,1,2,3\n", "# CoordinateSystem = LPS", "# CoordinateSystem = LPS\n{}"),
        ("a.csv", "name,x,y,z\nA,1,2,3\n", "# space: LPS", "# space: LPS\n{}"),
        (
            "a.mrk.json",
            '{"markups": [{"controlPoints": [{"label": "A", "position": [1, 2, 3]}]}]}',
            '"coordinateSystem": "LPS"',
            '{"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"label": "A", "position": [1, 2, 3]}]}]}',
        ),
    ],
)
def test_the_remedy_for_a_file_without_a_world_helps(tmp_path, name, text, remedy, remedied):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_landmarks(path)
    assert remedy in str(caught.value)
    path.write_text(remedied.replace("{}", text) if name != "a.mrk.json" else remedied)
    np.testing.assert_array_equal(read_landmarks(path).points, [[-1, -2, 3]])
