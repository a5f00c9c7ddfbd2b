import json
from pathlib import Path

import pytest

from stepwarp.data.formats import read_foreign
from stepwarp.data.manifest import manifest_text, read_manifest
from stepwarp.errors import InputError

#: As Learn2Reg's files are: validation images and pairs are repeated among those for training, keypoints are called
#: .nii.gz, and the number after the last underscore counts a person's scans.
LUNGS = {
    "name": "Lungs",
    "description": "breath\nholds",
    "licence": "CC BY",
    "reference": "Somebody et al.",
    "pairings": "paired",
    "labels": {"0": "background", "1": "left lung"},
    "tensorImageShape": {"0": [10, 10, 10]},
    "numTraining": 4,
    "numTest": 2,
    "training": [
        {
            "image": f"./imagesTr/Lungs_{person:04d}_{scan:04d}.nii.gz",
            "label": f"./labelsTr/Lungs_{person:04d}_{scan:04d}.nii.gz",
            "mask": f"./masksTr/Lungs_{person:04d}_{scan:04d}.nii.gz",
            "keypoints": f"./keypointsTr/Lungs_{person:04d}_{scan:04d}.nii.gz",
        }
        for person in (1, 2)
        for scan in (0, 1)
    ],
    "test": ["./imagesTs/Lungs_0003_0000.nii.gz", "./imagesTs/Lungs_0003_0001.nii.gz"],
    "training_paired_images": [
        {"fixed": "./imagesTr/Lungs_0001_0000.nii.gz", "moving": "./imagesTr/Lungs_0001_0001.nii.gz"},
        {"fixed": "./imagesTr/Lungs_0002_0000.nii.gz", "moving": "./imagesTr/Lungs_0002_0001.nii.gz"},
    ],
    "registration_val": [{"fixed": "./imagesTr/Lungs_0002_0000.nii.gz", "moving": "./imagesTr/Lungs_0002_0001.nii.gz"}],
    "registration_test": [
        {"fixed": "./imagesTs/Lungs_0003_0000.nii.gz", "moving": "./imagesTs/Lungs_0003_0001.nii.gz"}
    ],
}


def written(folder, content, name="list.json"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(folder, content, name="list.json", **options):
    return read_foreign(written(folder, content, name), folder, **options)


def splits(manifest):
    return {name: scan.split for name, scan in manifest.images.items()}


def touched(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def survives_being_written(manifest, folder):
    (folder / "again.json").write_text(manifest_text(manifest))
    return read_manifest(folder / "again.json") == manifest == read_foreign(folder / "again.json", folder)


def test_learn2reg(tmp_path):
    manifest = read(tmp_path, LUNGS)
    assert (manifest.name, manifest.licence, manifest.description[:4]) == ("Lungs", "CC BY", "brea")
    assert manifest.label_names == {0: "background", 1: "left lung"}
    assert manifest.ignore_labels == (0,)
    scan = manifest.images["Lungs_0001_0000"]
    assert scan.image == "imagesTr/Lungs_0001_0000.nii.gz"
    assert scan.labels == "labelsTr/Lungs_0001_0000.nii.gz"
    assert scan.mask == "masksTr/Lungs_0001_0000.nii.gz"
    assert (scan.landmarks, scan.landmark_space) == ("keypointsTr/Lungs_0001_0000.csv", "voxel")
    assert scan.subject == "Lungs_0001"
    assert splits(manifest) == {
        f"Lungs_{person:04d}_{number:04d}": split
        for person, split in ((1, "training"), (2, "validation"), (3, "test"))
        for number in (0, 1)
    }
    assert [(pair.id, pair.split) for pair in manifest.pairs] == [
        ("Lungs_0001_0000_Lungs_0001_0001", "training"),
        ("Lungs_0002_0000_Lungs_0002_0001", "validation"),
        ("Lungs_0003_0000_Lungs_0003_0001", "test"),
    ]
    assert survives_being_written(manifest, tmp_path)


def test_landmarks_of_people_come_before_keypoints(tmp_path):
    entry = {"image": "a.nii.gz", "keypoints": "k.csv", "landmarks": "l.csv"}
    assert read(tmp_path, {"numTraining": 1, "training": [entry]}).images["a"].landmarks == "l.csv"


def test_learn2reg_of_lone_scans_names_no_people(tmp_path):
    content = LUNGS | {"training": LUNGS["training"][::2], "training_paired_images": [], "registration_val": []}
    content |= {"test": [], "registration_test": []}
    assert {scan.subject for scan in read(tmp_path, content).images.values()} == {None}


def test_learn2reg_person_in_two_splits_is_refused(tmp_path):
    content = LUNGS | {"test": ["./imagesTs/Lungs_0001_0002.nii.gz"], "registration_test": []}
    with pytest.raises(InputError, match=r"list\.json: cannot be a manifest\. the person .*Lungs_0001' is in training"):
        read(tmp_path, content)


def test_lumir_lists_pairs_as_validation(tmp_path):
    content = {
        "training": [{"image": "imagesTr/L_0000_0000.nii.gz"}],
        "validation": [
            {"fixed": "imagesVal/L_0002_0000.nii.gz", "moving": "imagesVal/L_0001_0000.nii.gz"},
            {"fixed": "imagesVal/L_0003_0000.nii.gz", "moving": "imagesVal/L_0002_0000.nii.gz"},
        ],
    }
    manifest = read(tmp_path, content)
    assert set(splits(manifest).values()) == {"training", "validation"}
    assert [pair.fixed for pair in manifest.pairs] == ["L_0002_0000", "L_0003_0000"]


def test_monai_datalist_of_scans(tmp_path):
    content = {
        "labels": {"background": 0, "spleen": 1},
        "training": [{"image": "imagesTr/s_2.nii.gz", "label": "labelsTr/s_2.nii.gz", "fold": 0}],
        "validation": [{"image": "imagesTr/s_3.nii.gz", "label": "labelsTr/s_3.nii.gz"}],
        "test": ["imagesTs/s_1.nii.gz"],
    }
    manifest = read(tmp_path, content, name="spleen.json")
    assert manifest.name == "spleen"
    assert manifest.label_names == {0: "background", 1: "spleen"}
    assert splits(manifest) == {"s_2": "training", "s_3": "validation", "s_1": "test"}
    assert manifest.pairs == ()
    assert survives_being_written(manifest, tmp_path)


def test_monai_list_of_pairs(tmp_path):
    content = [
        {
            "fixed_image": str(tmp_path / "p1" / "fixed.nii.gz"),
            "moving_image": str(tmp_path / "p1" / "moving.nii.gz"),
            "fixed_label": str(tmp_path / "p1" / "fixed_seg.nii.gz"),
            "moving_label": str(tmp_path / "p1" / "moving_seg.nii.gz"),
            "moving_keypoints": str(tmp_path / "p1" / "moving.csv"),
        },
        {"fixed_image": "p2/fixed.nii.gz", "moving_image": "p2/moving.nii.gz"},
    ]
    manifest = read(tmp_path, content, split="test")
    # Names that two files share are told apart by their folders.
    assert list(manifest.images) == ["p1_fixed", "p1_moving", "p2_fixed", "p2_moving"]
    assert manifest.images["p1_fixed"].labels == "p1/fixed_seg.nii.gz"
    assert manifest.images["p1_moving"].landmarks == "p1/moving.csv"
    assert [pair.id for pair in manifest.pairs] == ["p1_fixed_p1_moving", "p2_fixed_p2_moving"]
    assert set(splits(manifest).values()) == {"test"}


def test_an_atlas_serves_all_splits(tmp_path):
    content = {
        "training": [{"fixed_image": "atlas.nii", "moving_image": f"{n}.nii"} for n in (1, 2)],
        "validation": [{"fixed_image": "atlas.nii", "moving_image": "3.nii"}],
    }
    manifest = read(tmp_path, content)
    assert splits(manifest) == {"atlas": None, "1": "training", "2": "training", "3": "validation"}
    assert [pair.split for pair in manifest.all_pairs()] == ["training", "training", "validation"]


def test_one_scan_can_be_made_the_atlas(tmp_path):
    content = {"training": [{"image": "a.nii"}, {"image": "b.nii"}], "test": [{"image": "c.nii"}]}
    manifest = read(tmp_path, content, fixed="b")
    assert [(pair.fixed, pair.moving, pair.split) for pair in manifest.all_pairs()] == [
        ("b", "a", "training"),
        ("b", "c", "test"),
    ]
    with pytest.raises(InputError, match=r"there is no scan 'd' to be the fixed image\. There are a, b, c"):
        read(tmp_path, content, fixed="d")


def test_paths_begin_at_the_list_or_at_the_root(tmp_path):
    touched(tmp_path, "set/images/a.nii.gz", "other/b.nii.gz")
    content = {"training": [{"image": "images/a.nii.gz"}, {"image": "other/b.nii.gz"}, {"image": "../other/b.nii.gz"}]}
    source = written(tmp_path / "set", content)
    manifest = read_foreign(source, tmp_path)
    assert [scan.image for scan in manifest.images.values()] == ["set/images/a.nii.gz", "other/b.nii.gz"]
    # A list that is kept elsewhere has paths that begin at the root.
    elsewhere = written(tmp_path / "lists", {"training": [{"image": "a.nii.gz"}]})
    assert read_foreign(elsewhere, tmp_path / "set").images["a"].image == "a.nii.gz"


def test_a_data_root_through_a_link_and_dots_is_the_same_root(tmp_path, monkeypatch):
    (tmp_path / "disk" / "images").mkdir(parents=True)
    (tmp_path / "disk" / "images" / "a.nii.gz").touch()
    (tmp_path / "work").mkdir()
    (tmp_path / "shared").symlink_to(tmp_path / "disk")
    source = written(tmp_path / "work", {"training": [{"image": "../shared/images/a.nii.gz"}]})
    monkeypatch.chdir(tmp_path / "work")
    assert read_foreign(source, Path("../shared")).images["a"].image == "images/a.nii.gz"


@pytest.mark.parametrize("path", ["../outside.nii.gz", "/outside.nii.gz", "a/../../outside.nii.gz"])
def test_paths_beyond_the_data_root_are_refused(tmp_path, path):
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(InputError, match=r"list\.json, training 0: .* lies outside the data root"):
        read(root, {"training": [{"image": path}]})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"training": [{"img": "a.nii"}]}, "training 0: names neither an image nor fixed and moving images"),
        ({"training": [{"image": ["a.nii", "b.nii"]}]}, "training 0: ['a.nii', 'b.nii'] is not the path of one file"),
        ({"training": [3]}, "training 0: names neither"),
        ({"training": {"image": "a.nii"}}, "'training' is not a list"),
        ({"training": [{"image": "a\n.nii"}]}, "training 0: 'a\\n.nii' is not the path"),
        ({"training": [{"image": "a", "label": "b"}, {"image": "a", "label": "c"}]}, "a has two labels, b and c"),
        ({"something": []}, "has none of the known sections"),
        ('{"training": ', "is not JSON"),
        ("fixed,movin\na,b\n", "has no column 'moving'"),
        ("fixed,moving,fixed_label\na,b,c\n", "unknown column 'fixed_label'. Did you mean 'fixed_labels'?"),
        ("fixed,moving\na\n", "line 2: has 1 cell where 2 are expected"),
        ("fixed,moving,id\na,b,x/y\n", "pairs.0.id"),
        ("fixed,moving,split\na,b,test\nb,c,training\nc,d,test\n", "b has two split, test and training"),
        ("fixed,moving,fixed_landmarks,landmark_space\na,b,c,xyz\n", "images.a.landmark_space"),
        ("fixed,moving\na,\n", "line 2: '' is not the path of one file"),
    ],
)
def test_mistakes_name_the_file_and_the_place(tmp_path, content, problem):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "list.json"))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_csv(tmp_path):
    text = (
        "# two pairs\n"
        "id,fixed,moving,fixed_labels,moving_labels,fixed_mask,moving_mask,fixed_landmarks,moving_landmarks,"
        "fixed_subject,moving_subject,landmark_space,split\n"
        "one,a/f.nii.gz,a/m.nii.gz,a/fs.nii.gz,,,a/mm.nii.gz,a/f.csv,a/m.csv,p1,p1,LPS,test\n"
        "two,b/f.nii.gz,a/m.nii.gz,,,,,,,,,,test\n"
    )
    manifest = read(tmp_path, text, name="pairs.csv")
    assert [(pair.id, pair.fixed, pair.moving, pair.split) for pair in manifest.pairs] == [
        ("one", "a_f", "m", "test"),
        ("two", "b_f", "m", "test"),
    ]
    first, moving = manifest.images["a_f"], manifest.images["m"]
    assert (first.labels, first.landmarks, first.landmark_space) == ("a/fs.nii.gz", "a/f.csv", "lps")
    assert (moving.mask, moving.labels, moving.subject, moving.split) == ("a/mm.nii.gz", None, "p1", "test")
    assert survives_being_written(manifest, tmp_path)


def test_csv_with_starts(tmp_path):
    """A file, its inverse, a word, none."""
    (tmp_path / "m.mat").write_text("")
    rows = [("a,b", "m.mat"), ("a,c", "[m.mat,1]"), ("b,c", "centres"), ("c,a", "")]
    text = "fixed;moving;initial\n" + "".join(f"{pair.replace(',', ';')};{start}\n" for pair, start in rows)
    manifest = read(tmp_path, text, name="starts.csv")
    assert [pair.initial for pair in manifest.pairs] == [("m.mat",), ("[m.mat,1]",), ("centres",), ()]
    assert survives_being_written(manifest, tmp_path)


def test_csv_with_an_atlas(tmp_path):
    manifest = read(tmp_path, "fixed,moving,split\natlas.nii,1.nii,training\natlas.nii,2.nii,test\n", name="x.csv")
    assert splits(manifest) == {"atlas": None, "1": "training", "2": "test"}


def bids(folder):
    anat = "sub-01/ses-a/anat/sub-01_ses-a"
    touched(
        folder,
        f"{anat}_desc-preproc_T1w.nii.gz",
        f"{anat}_desc-denoised_T1w.nii.gz",
        f"{anat}_dseg.nii.gz",
        f"{anat}_desc-aparcaseg_dseg.nii.gz",
        f"{anat}_desc-brain_mask.nii.gz",
        f"{anat}_space-MNI152NLin2009cAsym_desc-preproc_T1w.nii.gz",
        f"{anat}_T2w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/func/sub-02_T1w.nii.gz",
    )


def test_bids_derivatives(tmp_path):
    bids(tmp_path)
    manifest = read_foreign(tmp_path, tmp_path, split="test", name="study")
    assert list(manifest.images) == [
        "sub-01_ses-a_desc-preproc_T1w",
        "sub-01_ses-a_space-MNI152NLin2009cAsym_desc-preproc_T1w",
        "sub-01_ses-b_T1w",
        "sub-02_T1w",
    ]
    first, standard, second, _ = manifest.images.values()
    assert first.labels == "sub-01/ses-a/anat/sub-01_ses-a_desc-aparcaseg_dseg.nii.gz"
    assert first.mask == "sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz"
    assert (standard.labels, second.labels) == (None, None)
    assert [scan.subject for scan in manifest.images.values()] == ["sub-01"] * 3 + ["sub-02"]
    assert manifest.pairs == ()
    assert survives_being_written(manifest, tmp_path)


def test_bids_with_a_template(tmp_path):
    bids(tmp_path / "derivatives")
    touched(tmp_path, "derivatives/tpl-MNI/tpl-MNI_res-01_T1w.nii.gz", "derivatives/tpl-MNI/tpl-MNI_res-01_dseg.nii.gz")
    manifest = read_foreign(tmp_path / "derivatives", tmp_path, split="test")
    assert {pair.fixed for pair in manifest.pairs} == {"tpl-MNI_res-01_T1w"}
    assert len(manifest.pairs) == 4
    template = manifest.images["tpl-MNI_res-01_T1w"]
    assert (template.split, template.subject) == (None, None)
    assert template.labels == "derivatives/tpl-MNI/tpl-MNI_res-01_dseg.nii.gz"


def test_folders_of_something_else_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no folder sub-"):
        read_foreign(tmp_path, tmp_path)
    (tmp_path / "sub-01").mkdir()
    with pytest.raises(InputError, match="Name the folder of derivatives"):
        read_foreign(tmp_path, tmp_path)


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        read_foreign(path, tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_foreign(Path("absent.csv"), tmp_path)
