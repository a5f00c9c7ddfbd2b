import pytest

from stepwarp.errors import InputError
from stepwarp.files.label_names import find_labels, read_label_names

NAMES = {4: "3rd Ventricle", 17: "Left-Hippocampus"}

FREESURFER = """#$Id: a comment
#No. Label Name:                R   G   B   A

4    3rd Ventricle              120 18  134 0
17   Left-Hippocampus           220 216 20  0
"""
SNAP = """################################################
# ITK-SnAP Label Description File
################################################
    4   120   18  134        1  1  1    "3rd Ventricle"
   17   220  216   20      0.5  1  0    "Left-Hippocampus"
"""
TABLES = {
    "names.json": '{"4": "3rd Ventricle", "17": "Left-Hippocampus"}',
    "names.csv": 'id,name,colour\n4,"3rd Ventricle",red\n17,Left-Hippocampus,blue\n',
    "dseg.tsv": "index\tname\tabbreviation\n4\t3rd Ventricle\tV3\n17\tLeft-Hippocampus\tLH\n",
    "label_is_the_id.csv": "Label, Structure\n4, 3rd Ventricle\n17, Left-Hippocampus\n",
    "label_is_the_name.csv": "value,label\n4,3rd Ventricle\n17,Left-Hippocampus\n",
    "marked.csv": "\ufeffid,name\n4,3rd Ventricle\n17,Left-Hippocampus\n",
    "LUT.txt": FREESURFER,
    "colours.ctbl": FREESURFER,
    "snap.txt": SNAP,
    "snap.label": SNAP,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_form_of_table_says_the_same(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    assert read_label_names(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{4: 1}", "not JSON"),
        ("a.json", "[1, 2]", "object of names"),
        ("a.json", '{"4": 7}', "object of names"),
        ("a.json", '{"four": "x"}', "'four' is not the id"),
        ("a.json", '{"1_0": "x"}', "'1_0' is not the id"),
        ("a.json", "{}", "names no label"),
        ("a.csv", "x,y\n1,2\n", "needs a column of ids.*x, y"),
        ("a.csv", "id,name\n1.5,x\n", r"row 2: '1\.5'"),
        ("a.csv", "id,name\n1\n", "row 2: has 1 cell where 2 are expected"),
        ("a.csv", "id,name\n1,x\n1,y\n", "row 3: names label 1 'y' after 'x'"),
        ("a.txt", "4 name 1 2\n", "line 1: is neither"),
        ("a.nii", "x", "label names are read from"),
        ("a.txt", "", "is empty"),
    ],
)
def test_what_is_no_table_is_refused_with_the_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_label_names(tmp_path / name)


def test_binary_and_absent_files_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="not text"):
        read_label_names(tmp_path / "a.csv")
    with pytest.raises(InputError, match="does not exist"):
        read_label_names(tmp_path / "absent.csv")


def test_labels_are_found_by_id_and_by_name():
    assert find_labels(["17", " left-hippocampus", "-3", ""], NAMES) == (17, -3)
    assert find_labels(["csf"], {1: "CSF", 2: "csf"}) == (1, 2)
    with pytest.raises(InputError, match=r"'Left Hipocampus'.*Did you mean 'Left-Hippocampus'"):
        find_labels(["Left Hipocampus"], NAMES)
    with pytest.raises(InputError, match="--label-names"):
        find_labels(["CSF"], {})
