import copy
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Picture

from stepwarp.benchmark.summary import summarise
from stepwarp.errors import OutputError
from stepwarp.geometry import Affine, Grid, Image, LabelMap
from stepwarp.report.benchmark import case_picture, write_index
from stepwarp.report.benchmark_plots import linear_axis, time_axis
from stepwarp.report.pictures import FOLD

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert('x')</script>\"&"
TITLES = {"identity": "identity", "ants-syn": "ANTs SyN", "stepwarp-fast": "stepwarp fast", "fireants": "FireANTs"}
DICE = {"identity": 0.01, "ants-syn": 0.55, "stepwarp-fast": 0.63}
GROUPS = {"cortex": [1, 2], "stem": [3], "nothing scored": [99]}


def case(pair, method, shift=0.0):
    """A case that ran to its end; `shift` moves its Dice."""
    dice = DICE[method] + shift
    labels = {str(n): {"name": f"region {n}", "dice": dice + 0.02 * (n - 2)} for n in (1, 2, 3)}
    landmarks = {name: {"before": 30.0, "after": 3 - 2 * dice + i} for i, name in enumerate(("AC", "PC"))}
    evaluation = {
        "mask": {"source": "fixed image above 0", "voxels": 10},
        "mean_dice": dice,
        "labels": labels,
        "labels_lost": [77] if method == "ants-syn" else [],
        "tre_mm": {"count": 2, "mean": 3.5 - 2 * dice, "landmarks": landmarks},
        "folds": {"count": 0, "share": 0.0},
        "std_log_jacobian": dice / 2,
        "inverse_mm": {"mean": 0.02, "p95": 0.05},
    }
    seconds = 60.0 if method == "ants-syn" else 0.001 if method == "identity" else 5.0
    run = {"seconds": seconds, "cpu_seconds": 2 * seconds, "peak_mib": 1500, "threads": 2, "date": "2026-01-02"}
    return {"pair": pair, "method": method, "status": "done", "run": run, "evaluation": evaluation}


def content(pairs, **manifest):
    """A summary and the cases it is of: three methods, one failure if there are several pairs, one absent method."""
    cases = [case(pair, method, 0.001 * i) for i, pair in enumerate(pairs) for method in DICE]
    cases += [
        {"pair": p, "method": "fireants", "status": "absent", "reason": "fireants is not installed"} for p in pairs
    ]
    if len(pairs) > 1:
        cases = [c for c in cases if (c["pair"], c["method"]) != (pairs[1], "ants-syn")]
        cases.append({"pair": pairs[1], "method": "ants-syn", "status": "failed", "reason": "out of memory"})
    manifest = {"name": "Brains", "split": "validation", "pairs": list(pairs), "label_groups": GROUPS} | manifest
    environment = {"cpu": "A processor", "cores": 2, "threads": 2, "clock": "around the method alone"}
    return summarise(cases, manifest=manifest, titles=TITLES, baseline="ants-syn", environment=environment), cases


def page(out, summary, cases):
    return write_index(out, summary, cases).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every opening tag, and whether all that were opened are closed in turn."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def words(text):
    """What the page says, without its tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S)).split())


def test_the_page_holds_what_the_summary_says(tmp_path):
    text = page(tmp_path, *content(["a_b", "b_c", "c_d"]))
    tags = Tags(text)
    assert not tags.open
    said = words(text)
    for expected in ("Brains validation", "stepwarp fast", "0.631", "1 failed", "out of memory", "AC", "PC"):
        assert expected in said
    assert "fireants is not installed" in said
    assert "labels lost: 77" in said
    assert "The clock runs around the method alone." in said
    assert "(fixed image above 0)" in said
    assert {"Dice, cortex", "Dice, stem"} <= set(re.findall(r"<h2>(Dice, \w+) <small>", text))
    assert "nothing scored" not in text


def starred(text):
    """The numbers of the methods with a best value."""
    rows = re.findall(r'<tr class="mark m(\d)">(.*?)</tr>', text, re.S)
    return {int(number) for number, row in rows if 'class="best"' in row}


def test_the_best_of_a_column_is_a_method_that_does_more_than_place_and_never_failed(tmp_path):
    summary, cases = content(["a_b"])
    fast = list(summary["methods"]).index("stepwarp-fast")
    assert starred(page(tmp_path, summary, cases)) == {fast}  # identity is faster, and is not counted
    text = page(tmp_path, *content(["a_b", "b_c"]))
    assert not starred(text)  # the only one with every case is the best of nothing
    assert "Highest mean Dice: stepwarp fast 0.6305 in 5.0 s; the baseline ANTs SyN 0.5500 in 60.0 s." in words(
        text.replace("<b>", "").replace("</b>", "")
    )
    only = [c for c in cases if c["method"] in ("identity", "fireants")]
    lonely = summarise(only, manifest=summary["manifest"], titles=TITLES, baseline="ants-syn", environment={})
    text = page(tmp_path, lonely, only)
    assert not starred(text)
    assert "Highest" not in text


def test_differences_are_coloured_by_what_is_better(tmp_path):
    text = page(tmp_path, *content([f"p{n}" for n in range(8)]))
    row = next(row for row in re.findall(r"<tr class=.*?</tr>", text, re.S) if "stepwarp-fast" in row)
    dice, tre = re.findall(r'<small class="beside (\w*)" title="(.*?)">(.*?)</small>', row)[:2]
    assert dice[0] == tre[0] == "gain"
    assert "7 better, 0 worse" in dice[1]
    assert dice[2].startswith("+0.080")
    assert tre[2].startswith("\N{MINUS SIGN}0.16")


def test_only_files_that_are_there_are_pictures_and_nothing_comes_from_elsewhere(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a_b__ants-syn.jpg").touch()
    text = page(tmp_path, *content(["a_b", "b_c"]))
    tags = Tags(text)
    assert [image["src"] for image in tags.of("img")] == ["pictures/a_b__ants-syn.jpg"]
    assert all(image["alt"] and image["loading"] == "lazy" for image in tags.of("img"))
    links = {attrs["href"] for attrs in tags.of("a")}
    assert {"table.md", "cases.csv", "pictures/a_b__ants-syn.jpg", "cases/b_c__stepwarp-fast.json"} <= links
    assert all(re.fullmatch(r"table\.md|cases\.csv|(cases|pictures)/[\w.-]+", link) for link in links)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in tags.tags}
    assert not re.search(r"https?:|//\w|url\(|@import|fetch\(|XMLHttpRequest|import\(", text)


def test_hostile_strings_are_shown_not_run(tmp_path):
    pairs = [HOSTILE, "../../" + HOSTILE]
    summary, cases = content(pairs, name=HOSTILE, split=HOSTILE, label_groups={HOSTILE: [1, 2]})
    for name in ("identity", "fireants"):
        summary["methods"][name]["title"] = HOSTILE
    summary["methods"]["fireants"]["absent"] = HOSTILE
    summary["methods"][HOSTILE] = copy.deepcopy(summary["methods"]["identity"])
    summary["environment"] |= {HOSTILE: {HOSTILE: [HOSTILE]}, "cpu": HOSTILE, "clock": HOSTILE}
    summary |= {"baseline": HOSTILE, "notes": [HOSTILE]}
    for one in cases:
        one["reason"] = HOSTILE
        if one["status"] == "done":
            one["run"] |= {"date": HOSTILE, "threads": HOSTILE}
            evaluation = one["evaluation"]
            evaluation |= {"labels_lost": [HOSTILE], "mask": {"source": HOSTILE}}
            evaluation["labels"]["1"]["name"] = HOSTILE
            evaluation["tre_mm"]["landmarks"][HOSTILE] = {"after": 1.0}
    for row in summary["cases"]:
        row["reason"] = HOSTILE
    text = page(tmp_path, summary, cases)
    tags = Tags(text)
    assert len(tags.of("script")) == 1
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") > 30
    assert not [key for _, attrs in tags.tags for key in attrs if key.startswith("on") or "script" in key]
    assert all("/" not in attrs["href"].partition("/")[2] for attrs in tags.of("a"))


def test_tables_and_figures_say_what_they_are(tmp_path):
    tags = Tags(page(tmp_path, *content(["a_b", "b_c"])))
    charts = [attrs for attrs in tags.of("svg") if "chart" in attrs.get("class", "")]
    assert len(charts) > 6
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert all(head.get("scope") in ("col", "row") or "scope" not in head for head in tags.of("th"))
    assert len([head for head in tags.of("th") if head.get("scope") == "col"]) > 10


def test_one_pair_has_a_page(tmp_path):
    said = words(page(tmp_path, *content(["a_b"])))
    assert "0.630" in said
    assert "nan" not in said.lower().split()


@pytest.mark.parametrize("missing", ["labels", "landmarks", "everything"])
def test_what_was_not_measured_is_left_out(tmp_path, missing):
    summary, cases = content(["a_b", "b_c"])
    gone = {"labels": ["labels", "mean_dice"], "landmarks": ["tre_mm"]}
    for one in (one for one in cases if one["status"] == "done"):
        for key in gone.get(missing, list(one["evaluation"])):
            one["evaluation"].pop(key)
    summary = summarise(
        cases, manifest=summary["manifest"], titles=TITLES, baseline="ants-syn", environment=summary["environment"]
    )
    titles = " ".join(re.findall("<h2>.*?</h2>", page(tmp_path, summary, cases)))
    assert ("Dice" in titles) == (missing == "landmarks")
    assert ("TRE per landmark" in titles) == (missing == "labels")


def test_nothing_but_failures_has_a_page(tmp_path):
    cases = [{"pair": "a_b", "method": "ants-syn", "status": "failed", "reason": "no memory"}]
    manifest = {"name": "Brains", "split": None, "pairs": ["a_b"], "label_groups": {}}
    summary = summarise(cases, manifest=manifest, titles=TITLES, baseline="ants-syn", environment={})
    assert "no memory" in words(page(tmp_path, summary, cases))
    cases[0]["status"] = "absent"
    summary = summarise(cases, manifest=manifest, titles=TITLES, baseline="ants-syn", environment={})
    assert "no memory" in words(page(tmp_path, summary, cases))


def test_many_cases_stay_one_page_of_reasonable_size(tmp_path):
    pairs = [f"sub-{n:03d}" for n in range(100)]
    summary, cases = content(pairs)
    for n in range(9):  # twelve methods in all
        name = f"ants-{n}"
        summary["methods"][name] = summary["methods"]["stepwarp-fast"]
        more = [c | {"method": name} for c in cases if c["method"] == "stepwarp-fast"]
        summary["cases"] += [r | {"method": name} for r in summary["cases"] if r["method"] == "stepwarp-fast"]
        cases = cases + more
    path = write_index(tmp_path, summary, cases)
    assert path.stat().st_size < 3_000_000
    assert path.read_text(encoding="utf-8").count("<tbody><tr>") == 12


def test_an_older_page_is_replaced_and_a_missing_folder_named(tmp_path):
    summary, cases = content(["a_b"])
    (tmp_path / "index.html").write_text("old")
    assert write_index(tmp_path, summary, cases) == tmp_path / "index.html"
    assert list(tmp_path.iterdir()) == [tmp_path / "index.html"]
    with pytest.raises(OutputError, match="absent"):
        write_index(tmp_path / "absent", summary, cases)


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-3.0], [0.61, 0.6100001], [1e-9, 5.0], [0.2, 0.9], [1e6, 3e6]])
def test_an_axis_holds_its_values_between_round_ends(values):
    axis = linear_axis(values)
    assert all(axis.holds(value) and 0 <= axis.at(value) <= 1 for value in values)
    assert axis.at(axis.low) == 0
    assert axis.at(axis.high) == 1
    assert 2 <= len(axis.ticks) <= 12


@pytest.mark.parametrize("values", [[0.002, 5000.0], [3.0], [12.0, 14.0], [59.0, 61.0]])
def test_a_time_axis_has_ticks_wherever_its_values_lie(values):
    axis = time_axis(values)
    assert all(axis.holds(value) for value in values)
    assert len(axis.ticks) >= 1
    assert axis.at((axis.low * axis.high) ** 0.5) == pytest.approx(0.5)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH to open the page with")
def test_a_browser_shows_the_pictures_and_singles_out_a_method(tmp_path):
    (tmp_path / "pictures").mkdir()
    Picture.new("RGB", (900, 600), "white").save(tmp_path / "pictures" / "a_b__stepwarp-fast.jpg")
    path = write_index(tmp_path, *content(["a_b"]))
    press = (
        "document.querySelector('.chip').click();"
        "addEventListener('load', () => document.body.dataset.width = document.querySelector('img').naturalWidth)"
    )
    path.write_text(
        path.read_text().replace("</body>", f"<script>{press}</script></body>").replace('"lazy"', '"eager"')
    )
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [BROWSER, *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert re.search(r'<main data-ready="yes" data-only="0">|<main data-only="0" data-ready="yes">', dom)
    assert 'data-width="900"' in dom


SHAPE = (40, 48, 36)


def grid_of(codes):
    """A grid of 2 x 2 x 3 mm whose axes point to `codes`, about the world's origin."""
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), SHAPE)
    affine[:3, :3] = affine[:3, :3] * [2.0, 2.0, 3.0]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return Grid(SHAPE, affine)


def ball(grid, centre=(0, 0, 0), radius=30.0):
    points = Affine(grid.affine)(grid.indices(dtype=torch.float64)[0].movedim(0, -1))
    return ((points - torch.tensor(centre, dtype=torch.float64)).norm(dim=-1) < radius).float()


def draw(path, fixed, moved=None, **options):
    options = {"fixed_labels": None, "moved_labels": None, "jacobian": None, "title": "a_b: method"} | options
    case_picture(path, fixed, fixed if moved is None else moved, **options)
    assert Path(path).stat().st_size <= 120_000
    return np.asarray(Picture.open(path)).astype(int)


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PIR", "SAL"])
def test_a_picture_is_upright_whatever_the_voxel_order(tmp_path, codes):
    grid = grid_of(codes)
    marked = Image(ball(grid) + 3 * ball(grid, (-18, 14, 12), 7), grid, "marked")  # left, anterior, superior
    sheet = draw(tmp_path / "a.jpg", marked)
    assert sheet.shape[1] == 900
    # Three views in the first of three columns of 297 pixels; the grid's extent differs along each world axis.
    extents = dict(zip(nib.aff2axcodes(grid.affine), grid.spacing * SHAPE, strict=True))
    across, forward, up = (next(extents[c] for c in names if c in extents) for names in ("LR", "AP", "IS"))
    heights = [round(297 * tall / wide) for wide, tall in ((across, forward), (across, up), (forward, up))]
    assert sheet.shape[0] == sum(heights) + 54
    top, places = 46, []
    for height in heights:
        row, column = np.argwhere(sheet[top : top + height, 15:282, 0] > 235).mean(0)
        places.append(("top" if row < height / 2 else "bottom", "left" if column < 267 / 2 else "right"))
        top += height + 4
    assert places == [("top", "right"), ("top", "right"), ("top", "left")]  # A L, S L, S A


def test_a_picture_shows_folds_borders_and_nothing_where_nothing_is_measured(tmp_path):
    grid = grid_of("LAS")
    fixed = Image(ball(grid) * 100, grid, "fixed")
    jacobian = torch.ones(SHAPE)
    jacobian[20, 24, 18] = -1  # one voxel
    labels = LabelMap((ball(grid, radius=20) > 0).to(torch.uint8), grid, "fixed labels")
    moved = LabelMap((ball(grid, (8, 0, 0), 20) > 0).to(torch.uint8), grid, "moved labels")
    sheet = draw(tmp_path / "a.jpg", fixed, fixed_labels=labels, moved_labels=moved, jacobian=jacobian)
    near = lambda colour: (abs(sheet - colour).sum(-1) < 120)[60:].sum()  # noqa: E731 - below the headings
    assert near(FOLD) > 4
    assert near((70, 150, 255)) > 100
    assert near((255, 140, 40)) > 100
    plain = draw(tmp_path / "b.jpg", fixed, jacobian=torch.full(SHAPE, torch.nan))
    assert not (abs(plain - FOLD).sum(-1) < 120)[60:].any()


def test_the_difference_is_of_matched_intensities(tmp_path):
    grid = grid_of("RAS")
    fixed = Image(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * ball(grid), grid, "fixed")
    same = Image(torch.where(fixed.data > 0, fixed.data * 700 + 50, 0.0), grid, "moved")
    other = Image(fixed.data.flip(0), grid, "moved")
    column = slice(2 * 301 + 10, 890)
    assert draw(tmp_path / "a.jpg", fixed, same)[60:, column].mean() < 12
    assert draw(tmp_path / "b.jpg", fixed, other)[60:, column].mean() > 40


def test_noise_in_a_large_volume_still_fits(tmp_path):
    grid = Grid.isotropic((300, 260, 40))
    noise = Image(torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)), grid, "noise")
    labels = LabelMap((noise.data * 9).to(torch.uint8), grid, "labels")
    jacobian = noise.data * 3 - 0.5
    sheet = draw(
        tmp_path / "a.jpg", noise, fixed_labels=labels, moved_labels=labels, jacobian=jacobian, title="x" * 500
    )
    assert sheet.shape[1] == 900
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jpg"]


def test_a_picture_of_labels_on_another_grid_is_refused(tmp_path):
    fixed = Image(torch.rand(SHAPE), grid_of("RAS"), "fixed")
    elsewhere = LabelMap(torch.ones(SHAPE, dtype=torch.uint8), grid_of("LAS"), "labels")
    with pytest.raises(ValueError, match="fixed grid"):
        draw(tmp_path / "a.jpg", fixed, fixed_labels=elsewhere, moved_labels=elsewhere)
    with pytest.raises(OutputError, match="absent"):
        draw(tmp_path / "absent" / "a.jpg", fixed)
    assert not list(tmp_path.iterdir())
