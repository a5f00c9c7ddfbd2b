"""The summary, the table, the page and the names of BIDS, from records alone."""

import csv
import io
import json
from html.parser import HTMLParser

import pytest

from stepwarp.batch.bids import Names, check_names, publish
from stepwarp.batch.conclude import conclude, csv_of, row_of, summarise
from stepwarp.batch.places import BatchPlaces
from stepwarp.batch.plan import BatchCase, Job
from stepwarp.errors import InputError, OutputError
from stepwarp.evaluation.metrics import METRICS

FILES = ("0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz", "Warped.nii.gz", "Jacobian.nii.gz")


def record(status, lncc, *, seed=0, preset="fast", affine_only=False):
    similarity = {"lncc": lncc, "ncc": 0.9, "mutual_information": 0.3}
    measures = {"similarity_affine": similarity, "overlap": 1.0, "volume_ratio": 0.9}
    if not affine_only:
        measures |= {
            "similarity": similarity,
            "regularity": {"folds": {"count": 0}, "corner_folds": {"count": 3}, "std_log_jacobian": 0.2},
            "inverse_residual": {"mean_mm": 0.1, "p95_mm": 0.3},
            "displacement_mm": {"mean": 3.0, "max": 9.0},
        }
    return {
        "version": "0.1.0",
        "measures": measures,
        "stages": [{"name": "affine", "seconds": 2.0, "peak_mib": 700}, {"name": "write", "seconds": 1, "peak_mib": 9}],
        "verdict": {"status": status, "reasons": ["it is <i>so</i>"]},
        "inputs": {role: {"path": f"/data/{role}.nii.gz"} for role in ("fixed", "moving")},
        "outputs": dict.fromkeys(FILES, ""),
        "batch": {"key": status, "parts": {"settings": {"seed": seed, "preset": preset}}},
    }


@pytest.fixture
def places(tmp_path) -> BatchPlaces:
    found = BatchPlaces(tmp_path / "out")
    records = {
        "good": record("pass", 0.9),
        "better": record("pass", 0.95),
        "odd": record("check", 0.99),
        "bad": record("fail", 0.1, affine_only=True),
        "broken": record("pass", 0.9),
    }
    for case, content in records.items():
        folder = found.case(case)
        folder.mkdir(parents=True)
        for name in FILES:
            (folder / name).write_text(f"{case} {name}")
        (folder / "registration.json").write_text(json.dumps(content))
    (found.case("good") / "picture.jpg").write_bytes(b"")
    (found.cases / ".unfinished").mkdir()
    (found.cases / ".unfinished" / "registration.json").write_text("{")
    found.failures.mkdir()
    failure = {"case": "broken", "status": "failed", "kind": "machine", "attempts": ["=cmd()", "=cmd()"]}
    (found.failures / "broken.json").write_text(json.dumps(failure | {"reason": "=cmd() </script><script>alert(1)"}))
    return found


def test_the_worst_is_first_and_nothing_is_left_out(places):
    summary = summarise(places, {}, ["good", "later"])
    assert [row["case"] for row in summary["cases"]] == ["broken", "later", "bad", "odd", "good", "better"]
    assert summary["counts"] == {"failed": 1, "waiting": 1, "fail": 1, "check": 1, "pass": 2}
    assert summary["notes"] == []
    (places.case("odd") / "registration.json").write_text(json.dumps(record("check", 0.99, seed=7)))
    assert summarise(places, {}, [])["notes"] == [], "a seed, which earlier versions noted, changed nothing"
    good = next(row for row in summary["cases"] if row["case"] == "good")
    assert (good["seconds"], good["peak_mib"], good["corner_folds"], good["inverse_p95_mm"]) == (3.0, 700, 3, 0.3)
    (places.case("odd") / "registration.json").write_text(json.dumps(record("check", 0.99, preset="best")))
    assert summarise(places, {}, [])["notes"] == ["the cases were not all made with the same settings"]


def test_every_number_of_a_row_is_that_of_its_name():
    content = record("pass", 0.9)
    measures = content["measures"]
    measures |= {"overlap": 0.96, "volume_ratio": 0.8, "similarity_affine": {"lncc": 0.4, "ncc": 0.5}}
    measures["similarity"] = {"lncc": 0.7, "ncc": 0.6, "mutual_information": 0.3}
    measures["regularity"]["folds"]["count"] = 2
    found = row_of("a", content)
    assert {metric.key: found[metric.key] for metric in METRICS.values() if metric.key in found} == {
        "lncc_before": 0.4,
        "lncc_after": 0.7,
        "ncc_after": 0.6,
        "mutual_information_after": 0.3,
        "overlap": 0.96,
        "volume_ratio": 0.8,
        "folds": 2,
        "corner_folds": 3,
        "std_log_jacobian": 0.2,
        "inverse_mean_mm": 0.1,
        "inverse_p95_mm": 0.3,
        "displacement_mean_mm": 3.0,
        "displacement_max_mm": 9.0,
        "seconds": 3.0,
        "peak_mib": 700,
    }
    assert (found["fixed"], found["moving"]) == ("/data/fixed.nii.gz", "/data/moving.nii.gz")


def test_the_table_is_safe_in_a_spreadsheet(places):
    rows = list(csv.DictReader(io.StringIO(csv_of(summarise(places, {}, [])))))
    assert [row["case"] for row in rows] == ["broken", "bad", "odd", "good", "better"]
    assert rows[0]["reason"].startswith("'=cmd()")
    assert rows[1]["corner_folds"] == ""
    assert float(rows[3]["lncc_after"]) == 0.9


class _Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href")]


def test_the_page_holds_everything_and_runs_nothing_of_it(places):
    about = {"manifest": "<b>study</b>", "to": "a&b", "settings": {"preset": "fast"}}
    conclude(places, about, ["good", "later"])
    page = (places.out / "index.html").read_text()
    links = _Links(page)
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert not {"b", "i"} & set(_Links(page.split("</style></head>")[1].split("<header>")[1].split("</h1>")[0]).tags)
    assert "&lt;b&gt;study&lt;/b&gt;" in page
    assert "it is &lt;i&gt;so&lt;/i&gt;" in page
    assert {"cases/bad/report.html", "cases/good/picture.jpg", "failed/broken.json", "cases.csv"} <= set(links.found)
    assert "cases/odd/picture.jpg" not in links.found
    assert not any(link.startswith(("http", "//")) for link in links.found)
    order = [page.index(f"cases/{case}/report.html") for case in ("bad", "odd", "good", "better")]
    assert order == sorted(order)
    assert json.loads((places.out / "summary.json").read_text())["about"] == about


def case_of(places, name, fixed, moving):
    images = {"fixed": places.out / fixed, "moving": places.out / moving}
    return BatchCase(name, "run", job=Job(name, places.case(name), images, {}, {}, {}))


@pytest.mark.parametrize(
    ("fixed", "moving", "expected"),
    [
        (
            "tpl-MNI152NLin2009cAsym_T1w.nii.gz",
            "sub-01_ses-2_run-1_T2w.nii.gz",
            "sub-01/ses-2/anat/sub-01_ses-2_run-1_from-T2w_to-MNI152NLin2009cAsym_mode-image_xfm.json",
        ),
        ("sub-02_T1w.nii.gz", "sub-01_T1w.nii", "sub-01/anat/sub-01_from-T1w_to-02_mode-image_xfm.json"),
        ("atlas_1.nii.gz", "1000_SS.nii.gz", "sub-1000SS/anat/sub-1000SS_from-T1w_to-atlas1_mode-image_xfm.json"),
    ],
)
def test_names_of_bids(places, fixed, moving, expected):
    names = Names.of(case_of(places, "good", fixed, moving))
    assert f"{names.folder}/{names.sidecar()}" == expected


def test_results_under_names_of_bids(places):
    cases = [
        case_of(places, "good", "tpl-MNI_T1w.nii.gz", "sub-01_T1w.nii.gz"),
        case_of(places, "broken", "tpl-MNI_T1w.nii.gz", "sub-02_T1w.nii.gz"),
    ]
    check_names(cases)
    for records in ({"good": record("pass", 0.9), "broken": record("pass", 0.9)}, {"good": record("pass", 0.9)}):
        publish(places, cases, records)
        folder = places.bids / "sub-01" / "anat"
        assert {path.name for path in folder.iterdir()} == {
            "sub-01_from-T1w_to-MNI_mode-image_desc-affine_xfm.mat",
            "sub-01_from-T1w_to-MNI_mode-image_desc-warp_xfm.nii.gz",
            "sub-01_from-MNI_to-T1w_mode-image_desc-warp_xfm.nii.gz",
            "sub-01_from-T1w_to-MNI_mode-image_xfm.json",
            "sub-01_space-MNI_T1w.nii.gz",
            "sub-01_space-MNI_desc-jacobian_T1w.nii.gz",
        }
        linked = folder / "sub-01_space-MNI_T1w.nii.gz"
        assert linked.samefile(places.case("good") / "Warped.nii.gz")
        sidecar = json.loads((folder / "sub-01_from-T1w_to-MNI_mode-image_xfm.json").read_text())
        assert sidecar["antsApplyTransforms"] == (
            "-t sub-01_from-T1w_to-MNI_mode-image_desc-warp_xfm.nii.gz "
            "-t sub-01_from-T1w_to-MNI_mode-image_desc-affine_xfm.mat"
        )
        found = len(list((places.bids / "sub-02" / "anat").iterdir()))
        assert found == (6 if "broken" in records else 0)
    assert json.loads((places.bids / "dataset_description.json").read_text())["DatasetType"] == "derivative"


def test_anothers_dataset_and_links_in_ours_are_left_alone(places, tmp_path):
    places.bids.mkdir(parents=True)
    (places.bids / "dataset_description.json").write_text('{"Name": "my study"}')
    with pytest.raises(OutputError, match="no dataset of stepwarp's"):
        publish(places, [], {})
    assert (places.bids / "dataset_description.json").read_text() == '{"Name": "my study"}'
    (places.bids / "dataset_description.json").unlink()
    publish(places, [], {})
    publish(places, [], {})
    (places.bids / "sub-01").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="is a link"):
        publish(places, [], {})


def test_names_of_bids_that_two_cases_would_share(places):
    cases = [case_of(places, name, "tpl-MNI_T1w.nii.gz", "sub-01_T1w.nii.gz") for name in ("good", "odd")]
    with pytest.raises(InputError, match="cases 'good' and 'odd' would both be sub-01/anat/"):
        check_names(cases)
