import base64
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from scipy.spatial.transform import Rotation

from stepwarp.errors import OutputError
from stepwarp.geometry import Affine, DisplacementField, Grid, Image
from stepwarp.report.page import render, write_page
from stepwarp.report.pair import PairPage
from stepwarp.report.pictures import Tone

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VIEWS = ("axial", "coronal", "sagittal")
SHAPE = (40, 48, 36)
RECORD = {
    "version": "0.1.0",
    "device": "cpu",
    "threads": 2,
    "seed": 1,
    "inputs": {"fixed": {"path": "fixed.nii.gz", "shape": [40, 48, 36]}, "moving": {"path": "moving.nii.gz"}},
    "settings": {"levels_mm": [4.0, 2.0], "trust": None, "refine": {"verify": True}},
    "stages": [
        {"name": "affine", "seconds": 1.5, "peak_mib": 200.0, "gpu_peak_mib": 1234.0},
        {"name": "refine", "seconds": 4.0, "peak_mib": 400.0},
    ],
    "loss": [
        {"stage": "affine", "level_mm": None, "iteration": 0, "loss": -0.1},
        {"stage": "affine", "level_mm": None, "iteration": 1, "loss": -0.2},
        {"stage": "refine", "level_mm": 4.0, "iteration": 0, "loss": -0.3},
        {"stage": "refine", "level_mm": 2.0, "iteration": 0, "loss": -0.4},
    ],
    "measures": {"folds": {"count": 18, "share": 1.17e-5}, "dice": {f"label {n}": 0.5 for n in range(40)}},
    "verdict": {"status": "check", "reasons": ["18 voxels fold."]},
    "self_check": {"points": {"max_mm": 1e-5}},
}


def grid_of(codes, rotation=None):
    """A grid of 2 x 2 x 3 mm whose axes point to `codes`, about the world's origin."""
    ornt = nib.orientations.axcodes2ornt(codes)
    affine = nib.orientations.inv_ornt_aff(ornt, SHAPE)
    linear = affine[:3, :3] * [2.0, 2.0, 3.0]
    affine[:3, :3] = linear if rotation is None else rotation @ linear
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return Grid(SHAPE, affine)


def ball(grid, centre=(0, 0, 0), radius=30.0):
    points = Affine(grid.affine)(grid.indices(dtype=torch.float64)[0].movedim(0, -1))
    return ((points - torch.tensor(centre, dtype=torch.float64)).norm(dim=-1) < radius).float()


def pair(**changes):
    grid = grid_of("LAS")
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[0, 0, 19:21] = torch.tensor([4.0, -4.0])[:, None, None]  # folds through the middle
    warp = DisplacementField(displacement, grid)
    moving = Image(ball(grid, (6, 0, 0)) * 300, grid, "moving.nii.gz")
    fixed = Image(ball(grid) * 100, grid, "fixed.nii.gz")
    page = PairPage(
        fixed,
        moving,
        moving.warp(warp),
        RECORD,
        affine_moved=moving,
        warp=warp,
        jacobian=warp.jacobian_determinant(grid),
        mask=fixed.data > 0,
        truth={"Displacement error (mm)": (4.2, 0.6)},
    )
    return replace(page, **changes)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def figure_of(text, view):
    """The comparison's figure of one view."""
    return re.search(rf'<figure class="view {view}".*?</figure>', text, re.S).group()


def picture(uri):
    return np.asarray(Picture.open(BytesIO(base64.b64decode(uri.split(",")[1]))))


def first_slice(figure, layer="fixed"):
    """The slice that a layer of the comparison shows at first."""
    count, at = map(int, re.search(r"--n:(\d+);--at:(\d+)", figure).groups())
    strip = picture(re.search(rf'layer {layer}" style="background-image:url\((.*?)\)', figure).group(1))
    return np.split(strip, count)[at]


ORIENTATIONS = {
    "RAS": grid_of("RAS"),
    "LAS": grid_of("LAS"),
    "LPS": grid_of("LPS"),
    "SAL": grid_of("SAL"),
    "oblique": grid_of("LPS", Rotation.from_euler("xyz", [12, -9, 15], degrees=True).as_matrix()),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize(
    ("view", "marker", "sides"),
    [
        ("axial", (-18, 14, 0), {"L", "A"}),
        ("coronal", (-18, 0, 14), {"L", "S"}),
        ("sagittal", (0, 18, 14), {"A", "S"}),
    ],
)
def test_a_marker_appears_beside_the_letters_of_its_side(name, view, marker, sides):
    grid = ORIENTATIONS[name]
    marked = Image(ball(grid) + 3 * ball(grid, marker, 7), grid, "marked")
    text = render(PairPage(marked, marked, marked, {}))
    figure = figure_of(text, view)
    letters = dict(re.findall(r'<b class="(\w+)">(\w)</b>', figure))
    shown = first_slice(figure)
    row, column = np.argwhere(shown > 150).mean(0)
    beside = {letters["top" if row < shown.shape[0] / 2 else "bottom"]}
    beside |= {letters["left" if column < shown.shape[1] / 2 else "right"]}
    assert beside == sides
    assert letters["right"] == ("P" if view == "sagittal" else "L")
    assert "Radiological convention" in text
    assert ("oblique by" in text) == (name == "oblique")


def test_views_keep_the_proportions_of_the_voxels():
    text = render(pair())
    aspects = {view: float(re.search(r"--aspect:([\d.]+)", figure_of(text, view)).group(1)) for view in VIEWS}
    assert aspects == pytest.approx({"axial": 80 / 96, "coronal": 80 / 108, "sagittal": 96 / 108}, abs=1e-3)


def test_a_brain_beside_a_whole_head_is_as_bright_as_the_brain_in_it():
    random = np.random.default_rng(0)
    brain = np.zeros((40, 40, 40))
    brain[10:30, 10:30, 10:30] = random.uniform(0.5, 1, (20, 20, 20))
    head = np.where(brain > 0, brain, random.uniform(1, 3, brain.shape))
    tone = Tone(head)
    inside = brain > 0
    np.testing.assert_allclose(tone.matched(head, 7 * brain)(7 * brain)[inside], tone(head)[inside], atol=0.03)
    assert tone.matched(head, 7 * brain)(np.zeros(1)) == 0


def test_moving_intensities_are_matched_to_the_fixed_ones():
    grid = grid_of("RAS")
    fixed = Image(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * ball(grid), grid, "fixed")
    moved = Image(torch.where(fixed.data > 0, fixed.data * 700 + 50, 0.0), grid, "moved")
    figure = figure_of(render(PairPage(fixed, moved, moved, {})), "axial")
    difference = first_slice(figure).astype(int) - first_slice(figure, "over moved")
    assert np.abs(difference).mean() < 1


def test_folds_are_marked_inside_the_mask_only():
    text = render(pair())
    card = text[text.index("Jacobian determinant") :]
    shown = picture(re.search(r'<img src="(.*?)"', card).group(1)).astype(int)
    folded = (shown == [255, 0, 200]).all(-1)
    assert folded.any()
    assert folded.sum(0).max() < SHAPE[1]


def test_the_page_loads_nothing():
    text = render(pair())
    links = [value for _, attrs in Tags(text).tags for key, value in attrs.items() if re.search("src|href|data$", key)]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert all(target.startswith(("data:", "#")) for target in re.findall(r"url\(['\"]?([^)]*)", text))
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in Tags(text).tags}
    assert "@import" not in text
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket", text)


def test_hostile_strings_are_shown_not_run():
    hostile = "<script>alert('$x_1$')</script>\"&.nii.gz"
    page = pair()
    record = {
        **RECORD,
        hostile: 1,
        "version": hostile,
        "device": hostile,
        "inputs": {hostile: hostile},
        "settings": {hostile: {hostile: [hostile]}},
        "measures": {hostile: hostile},
        "stages": [{"name": hostile, "seconds": 1.0, "peak_mib": 1.0}],
        "loss": [{"stage": hostile, "level_mm": 2.0, "iteration": 0, "loss": 0.0}],
        "verdict": {"status": "fail", "reasons": [hostile]},
    }
    fixed = Image(page.fixed.data, page.fixed.grid, hostile)
    moved = Image(page.moved.data, page.moved.grid, hostile)
    text = render(replace(page, fixed=fixed, moved=moved, record=record, start=hostile, truth={hostile: (hostile, 1)}))
    assert [tag for tag, _ in Tags(text).tags].count("script") == 1
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") > 10


def test_methods_paragraph_says_what_was_run():
    paragraph = re.search(r'<p id="methods">(.*?)</p>', render(pair()), re.S).group(1)
    assert "moving.nii.gz was registered to fixed.nii.gz (40 x 48 x 36 voxels of 2 x 2 x 3 mm)" in paragraph
    assert "in 2 stages (affine, refine), at resolutions of 4, 2 mm and 4 iterations in all" in paragraph
    assert "6 s on cpu with 2 threads." in paragraph


@pytest.mark.parametrize("status", ["pass", "check", "fail"])
def test_verdict(status):
    text = render(pair(record={"verdict": {"status": status, "reasons": []}}))
    assert f'<div class="verdict {status}"><strong>{status}</strong><ul><li>' in text


def test_a_page_needs_no_more_than_images():
    grid = grid_of("RAS")
    empty = Image(torch.zeros(SHAPE), grid, "empty")
    text = render(PairPage(empty, empty, empty, {}))
    assert "Deformed grid" not in text
    assert "Jacobian" not in text
    broken = Image(torch.full(SHAPE, torch.nan), grid, "broken")
    assert render(PairPage(broken, broken, broken, {}))


def test_a_volume_one_slice_thick_has_a_page():
    grid = Grid((30, 20, 1), np.diag([1.0, 1, 5, 1]))
    flat = Image(torch.rand(grid.shape), grid, "flat")
    warp = DisplacementField.identity(grid)
    assert "Deformed grid" in render(PairPage(flat, flat, flat, {}, warp=warp))


def test_what_does_not_lie_on_the_fixed_grid_is_refused():
    with pytest.raises(ValueError, match="fixed grid"):
        pair(affine_moved=Image(torch.zeros(SHAPE), grid_of("RAS"), "elsewhere"))
    with pytest.raises(ValueError, match="does not fit"):
        pair(mask=torch.ones(3, 3, 3, dtype=torch.bool))


def test_written_once_unless_told_otherwise(tmp_path):
    path = tmp_path / "report.html"
    write_page(path, pair())
    with pytest.raises(OutputError, match="exists"):
        write_page(path, pair())
    write_page(path, pair(), overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def browse(path, profile, *options):
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    command = [BROWSER, *quiet, "--window-size=1280,1600", *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH to open the page with")
def test_a_browser_draws_the_page_and_runs_its_script(tmp_path):
    path, screenshot = tmp_path / "report.html", tmp_path / "page.png"
    press = "for (const v of ['affine', 'checkerboard']) document.querySelector(`[value=${v}]`).click()"
    path.write_text(render(pair()).replace("</body>", f"<script>{press}</script></body>"), encoding="utf-8")
    dom = browse(path, tmp_path / "profile", "--dump-dom")
    viewer = re.search(r'<section class="card viewer".*?>', dom).group()
    assert 'data-ready="yes"' in viewer
    assert 'data-with="affine"' in viewer
    assert 'data-mode="checkerboard"' in viewer
    browse(path, tmp_path / "profile", f"--screenshot={screenshot}")
    pixels = np.asarray(Picture.open(screenshot).convert("L"))
    assert pixels.std() > 20
    assert (pixels > 200).mean() > 0.02


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-310, 1e-40, 1e307])
def test_pictures_of_intensities_far_from_1_are_those_of_others(size):
    values = 10 * np.random.default_rng(0).random((12, 12, 12))
    tone = Tone(values * size)
    np.testing.assert_allclose(tone(values * size), Tone(values)(values), atol=1e-3)
    np.testing.assert_allclose(Tone(values)(values), tone.matched(values * size, values)(values), atol=1e-3)
    grid = Grid.isotropic((12, 12, 12))
    pictures = [Image(torch.from_numpy(each), grid)._repr_png_() for each in (values, values * size)]
    shown = [np.asarray(Picture.open(BytesIO(each)), float) for each in pictures]
    np.testing.assert_allclose(*shown, atol=1)
