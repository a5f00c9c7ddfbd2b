import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from stepwarp.data import manifest as module
from stepwarp.data.manifest import (
    Manifest,
    data_root,
    label_names,
    manifest_path,
    manifest_text,
    pairs,
    read_manifest,
    schema_text,
    shipped,
)
from stepwarp.errors import InputError
from stepwarp.files import sha256

FOLDER = Path(__file__).parents[2] / "data_manifests"

SMALL = {
    "name": "small",
    "obtain": "ask the author.",
    "ignore_labels": [0],
    "images": {
        "a": {"image": "scans/a.nii.gz", "labels": "scans/a_seg.nii.gz", "split": "training", "subject": "p1"},
        "b": {"image": "scans/b.nii.gz", "split": "training"},
        "c": {"image": "scans/c.nii.gz", "split": "test"},
        "atlas": {"image": "atlas.nii.gz"},
    },
    "pairs": [
        {"id": "ab", "fixed": "a", "moving": "b", "split": "training"},
        {"id": "atlas_c", "fixed": "atlas", "moving": "c"},
    ],
}


def changed(**more):
    return json.loads(json.dumps(SMALL)) | more


def with_scan(name, **entry):
    content = changed()
    content["images"][name] = content["images"].get(name, {}) | entry
    return content


def refused(content):
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate(content)
    return module.first_problem(caught.value)


@pytest.fixture
def root(tmp_path):
    """A data root with the files of SMALL."""
    for entry in SMALL["images"].values():
        for role in ("image", "labels"):
            if role in entry:
                path = tmp_path / entry[role]
                path.parent.mkdir(exist_ok=True)
                path.write_text(entry[role])
    return tmp_path


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_manifest_is_one_and_says_what_it_must(name):
    manifest = read_manifest(name)
    assert manifest.description
    assert manifest.licence
    assert manifest.obtain
    assert (FOLDER / f"{name}.json").read_text() == manifest_text(manifest), "write it with manifest_text"
    assert f"| `{name}` |" in (FOLDER / "README.md").read_text()


def test_the_schema_is_that_of_the_model():
    hint = "write schema_text() of stepwarp.data.manifest into it"
    assert (FOLDER / "schema.json").read_text() == schema_text(), hint


def test_oasis_keeps_people_apart_and_groups_every_scored_label():
    manifest = read_manifest("oasis")
    people = {}
    for name, scan in manifest.images.items():
        people.setdefault(scan.subject or name, []).append(name)
    assert [names for names in people.values() if len(names) > 1] == [
        ["1004", "1024"],
        ["1018", "1038"],
        ["1019", "1039"],
    ]
    assert len(people) == 25
    grouped = sorted(label for labels in manifest.label_groups.values() for label in labels)
    assert grouped == sorted(set(manifest.label_names) - set(manifest.ignore_labels))
    assert len(grouped) == 132


def test_rules_of_the_public_sets():
    assert [
        len(list(read_manifest(name).all_pairs())) for name in ("learn2reg_oasis", "lumir", "lpba40", "dirlab")
    ] == [
        19,
        38,
        1560,
        20,
    ]
    first = read_manifest("learn2reg_oasis").pairs[0]
    assert (first.fixed, first.moving) == ("OASIS_0395_0000", "OASIS_0396_0000")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../outside.nii.gz",
        "scans/../../outside.nii.gz",
        "scans\\..\\..\\outside.nii.gz",
        "C:\\data\\a.nii.gz",
        "C:a.nii.gz",
        "\\\\host\\share\\a.nii.gz",
        "~/a.nii.gz",
        "a\nb.nii.gz",
        "a\0b.nii.gz",
        "",
    ],
)
@pytest.mark.parametrize("role", ["image", "labels", "mask", "landmarks"])
def test_paths_that_could_leave_the_data_root_are_refused(path, role):
    assert refused(with_scan("b", **{role: path})).startswith(f"images.b.{role}: ")


def test_so_are_those_of_transforms_and_label_names():
    content = changed(label_names="../labels.json")
    assert "label_names" in refused(content)
    content = changed()
    content["pairs"][0]["transforms"] = {"teacher": "/tmp/1Warp.nii.gz"}
    assert "pairs.0.transforms.teacher: '/tmp/1Warp.nii.gz' is absolute" in refused(content)
    content = changed()
    content["pairs"][0]["initial"] = ["a.mat", "[/tmp/0GenericAffine.mat,1]"]
    assert "'/tmp/0GenericAffine.mat' is absolute" in refused(content)


def test_links_that_leave_the_data_root_are_refused(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "b.nii.gz"
    outside.write_text("secret")
    (root / "scans" / "b.nii.gz").unlink()
    (root / "scans" / "b.nii.gz").symlink_to(outside)
    with pytest.raises(InputError, match="leaves the data root"):
        pairs(Manifest.model_validate(SMALL), root)
    with pytest.raises(InputError, match="leaves the data root"):
        Manifest.model_validate(SMALL).scans(root, "training")


def test_links_within_the_data_root_and_to_it_are_followed(root, tmp_path_factory):
    (root / "store").mkdir()
    (root / "scans" / "b.nii.gz").rename(root / "store" / "b")
    (root / "scans" / "b.nii.gz").symlink_to("../store/b")
    link = tmp_path_factory.mktemp("links") / "data"
    link.symlink_to(root)
    [pair, _] = pairs(Manifest.model_validate(SMALL), link)
    assert pair.moving.image.read_text() == "scans/b.nii.gz"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (changed(nmae="x"), "unknown key 'nmae'; did you mean 'name'?"),
        (with_scan("b", label="x.nii.gz"), "images.b: unknown key 'label'; did you mean 'labels'?"),
        (changed(pairs=[{"id": "x", "fixed": "a", "moving": "bb"}]), "there is no image 'bb'; did you mean 'b'?"),
        (changed(pairs=SMALL["pairs"] * 2), "the pair 'ab' is there twice"),
        (changed(pairs=[{"id": ".hidden", "fixed": "a", "moving": "b"}]), "pairs.0.id: "),
        (changed(pairs=[{"id": "a/b", "fixed": "a", "moving": "b"}]), "pairs.0.id: "),
        (changed(pairs=[{"id": "a\n", "fixed": "a", "moving": "b"}]), "pairs.0.id: "),
        (changed(images={"../a": {"image": "a.nii.gz"}}, pairs=[]), "images"),
        (changed(all_pairs_of=["testing"]), "no image is in the split 'testing'"),
        (changed(label_groups={"one": [1, 2], "two": [2]}), "label '2' is there twice"),
        (with_scan("b", sha256={"image": "abc"}), "images.b.sha256.image: "),
        (with_scan("b", sha256={"labels": "0" * 64}), "sha256 of 'labels' is given, but no file for it"),
    ],
)
def test_mistakes_name_their_place(content, problem):
    assert problem in refused(content)


def test_a_pair_is_in_the_split_of_its_scans():
    pair = {"id": "ac", "fixed": "a", "moving": "c"}
    assert "pair 'ac' is in the split 'training', but its image 'c' is in 'test'" in refused(changed(pairs=[pair]))
    pair = {"id": "ab", "fixed": "a", "moving": "b", "split": "test"}
    assert "pair 'ab' is in the split 'test', but its image 'a' is in 'training'" in refused(changed(pairs=[pair]))


def test_a_person_in_two_splits_is_refused_by_name():
    problem = refused(with_scan("c", subject="p1"))
    assert "the person 'p1' is in training (a) and in test (c)" in problem
    # A scan that names the other's id as its person is of the same person, too.
    assert "the person 'b' is in training (b) and in test (c)" in refused(with_scan("c", subject="b"))


def test_manifests_cannot_be_changed_behind_one_s_back():
    with pytest.raises(ValidationError, match="frozen"):
        Manifest.model_validate(SMALL).name = "other"


def test_pairs_have_absolute_paths_and_what_is_known(root):
    content = with_scan("a", unreliable_landmarks=["3"], landmark_space="lps", landmark_columns="left")
    content |= {"label_names": {"1": "grey"}, "label_groups": {"all": [1]}}
    content["pairs"][0]["transforms"] = {"teacher": "scans/warp.nii.gz"}
    manifest = Manifest.model_validate(content)
    first, second = pairs(manifest, root)
    assert (first.id, first.split, second.split) == ("ab", "training", "test")
    assert first.fixed.image == root / "scans" / "a.nii.gz"
    assert first.fixed.labels == root / "scans" / "a_seg.nii.gz"
    assert first.moving.labels is None
    assert first.transforms == {"teacher": root / "scans" / "warp.nii.gz"}
    assert (first.fixed.subject, first.fixed.landmark_space, first.fixed.landmark_columns) == ("p1", "lps", "left")
    assert first.fixed.unreliable_landmarks == {"3"}
    assert first.ignore_labels == (0,)
    assert first.label_names == {1: "grey"}
    assert [pair.id for pair in pairs(manifest, root, "test")] == ["atlas_c"]
    with pytest.raises(InputError, match=r"no pair in the split 'tset'. There are test, training"):
        pairs(manifest, root, "tset")


def test_all_ordered_pairs_of_a_split(root):
    manifest = Manifest.model_validate(changed(pairs=[], all_pairs_of=["training"]))
    assert [(pair.id, pair.split) for pair in pairs(manifest, root)] == [("a_b", "training"), ("b_a", "training")]
    clash = changed(pairs=[{"id": "a_b", "fixed": "a", "moving": "b"}], all_pairs_of=["training"])
    assert "'a_b' is there twice" in refused(clash)


def test_scans_of_a_split(root):
    manifest = Manifest.model_validate(SMALL)
    assert [scan.id for scan in manifest.scans(root, "training")] == ["a", "b"]
    assert len(manifest.scans(root)) == 4
    with pytest.raises(InputError, match="no scan is in the split 'none'"):
        manifest.scans(root, "none")


def test_missing_files_are_counted_and_how_to_obtain_them_is_said(root):
    (root / "scans" / "b.nii.gz").unlink()
    with pytest.raises(InputError, match=r"b\.nii\.gz: does not exist.* 1 of 3 files .* ask the author\."):
        pairs(Manifest.model_validate(SMALL), root, "training")


def test_a_changed_file_is_refused_unless_nobody_asks(root):
    path = root / "scans" / "b.nii.gz"
    manifest = Manifest.model_validate(with_scan("b", sha256={"image": sha256(path)}))
    assert pairs(manifest, root, "training")
    path.write_text("other")
    with pytest.raises(InputError, match=r"b\.nii\.gz: is not the file that the manifest describes"):
        pairs(manifest, root, "training")
    assert pairs(manifest, root, "training", verify=False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", ""),
        ("\xff", "is not text in UTF-8"),
        ('{"name": "x", "images": {"a": {"image": "a"}, "a": {"image": "b"}}}', "the key 'a' is there twice"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_broken_files_are_named(tmp_path, text, problem):
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"broken\.json: ") as caught:
        read_manifest(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_is_no_manifest_and_it_is_said_how_it_becomes_one(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("fixed,moving\na.nii.gz,b.nii.gz\n")
    with pytest.raises(
        InputError, match=r"pairs\.csv: is a table.*stepwarp manifest make pairs\.csv --out pairs\.json"
    ):
        read_manifest(table)


def test_a_manifest_is_found_by_path_or_name(tmp_path, monkeypatch):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    assert read_manifest(tmp_path / "small.json") == Manifest.model_validate(SMALL)
    # A folder called as a manifest, which data of that name often is in, does not hide it.
    (tmp_path / "oasis").mkdir()
    monkeypatch.chdir(tmp_path)
    assert manifest_path("oasis").name == "oasis.json"
    with pytest.raises(InputError, match=r"manifest 'osis' does not exist; did you mean 'oasis'\?"):
        read_manifest("osis")
    with pytest.raises(InputError, match="does not exist"):
        read_manifest("absent.json")


def test_a_manifest_survives_being_written(tmp_path):
    manifest = Manifest.model_validate(SMALL)
    (tmp_path / "again.json").write_text(manifest_text(manifest))
    assert read_manifest(tmp_path / "again.json") == manifest


def test_where_the_data_root_is(tmp_path, monkeypatch):
    given, stated, beside = (tmp_path / name for name in ("given", "stated", "beside"))
    for folder in (given, stated, beside):
        folder.mkdir()
    (beside / "small.json").write_text(json.dumps(SMALL))
    monkeypatch.setenv("STEPWARP_DATA", str(stated))
    assert data_root(given, beside / "small.json") == given
    assert data_root(None, beside / "small.json") == stated
    monkeypatch.delenv("STEPWARP_DATA")
    assert data_root(None, beside / "small.json") == beside
    assert data_root(None, "oasis") == data_root(None) == Path()
    monkeypatch.setenv("STEPWARP_DATA", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"absent: is no folder \(STEPWARP_DATA\)"):
        data_root(None)


def test_label_names_from_a_file(tmp_path):
    manifest = Manifest.model_validate(changed(label_names="labels.json"))
    (tmp_path / "labels.json").write_text('{"4": "third ventricle"}')
    assert label_names(manifest, tmp_path) == {4: "third ventricle"}
    (tmp_path / "labels.json").write_text('["third ventricle"]')
    with pytest.raises(InputError, match=r"labels\.json: is not an object of names by id"):
        label_names(manifest, tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        *(("oasis", "validation", 6), ("oasis_rescans", "validation", 1), ("templates", "validation", 1)),
        ("oasis_people", "validation", 30),
        ("chest", "test", 2),
    ],
)
def test_the_development_data_is_what_its_manifests_describe(data_folder, name, split, count):
    found = pairs(read_manifest(name), data_folder, split)
    assert len(found) == count
    assert all(os.access(pair.fixed.image, os.R_OK) for pair in found)
