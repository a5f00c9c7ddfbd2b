"""One JPEG per case of a benchmark: three views of the fixed image, of the moved one, and of how they differ."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from torch import Tensor

from stepwarp.files.atomic import atomic_path
from stepwarp.geometry import Image, LabelMap
from stepwarp.report.pair import PairPage, Scene
from stepwarp.report.pictures import ABOVE, BELOW, DIFFERENCE_LIMIT, FOLD, OUTSIDE, css, jacobian_colours
from stepwarp.report.views import VIEWS, View

#: The picture's width in pixels, the longest it gets for very tall images, the gap between tiles, and its file size.
WIDTH, TALLEST, GAP, LARGEST_BYTES = 900, 1400, 4, 120_000

#: Heights of the title and of the column headings.
TITLE, HEADINGS = 26, 20

#: JPEG qualities from the best to the last that is tried.
QUALITIES = (88, 80, 70, 60, 45, 30, 15)

#: Borders of the fixed labels, of the moved ones, and where both run: apart in hue and in lightness.
FIXED_BORDER, MOVED_BORDER, BOTH_BORDERS = (70, 150, 255), (255, 140, 40), (250, 250, 250)

INK, SOFT = (228, 232, 238), (151, 161, 175)

#: A column draws one view as a picture of (width, height) pixels.
Size = tuple[int, int]
Column = Callable[[View, Size], Picture.Image]


def case_picture(
    path: Path,
    fixed: Image,
    moved: Image,
    *,
    fixed_labels: LabelMap | None,
    moved_labels: LabelMap | None,
    jacobian: Tensor | None,
    title: str,
) -> None:
    """Write a contact sheet of one case as JPEG, 900 pixels wide and below 120 kB, complete or not at all.

    Rows: axial, coronal and sagittal through the middle of the fixed image, in radiological convention whatever the
    voxel order. Columns: fixed, moved, |difference| of matched intensities, log Jacobian determinant with folds
    marked, label borders over the moved image; the last two where there is something to show.

    All lie on the fixed grid. jacobian: grid.shape, NaN where it is not measured. A file at `path` is replaced.
    Raises OutputError if it cannot be written, ValueError if something lies on another grid."""
    scene = Scene(PairPage(fixed, moved, moved, {}, jacobian=jacobian))
    for labels in (fixed_labels, moved_labels):
        if labels is not None and labels.grid != fixed.grid:
            raise ValueError(f"the picture shows labels on the fixed grid {fixed.grid}, not on {labels.grid}")
    sheet = _sheet(scene, _columns(scene, fixed_labels, moved_labels), title)
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(_jpeg(sheet))


def _columns(scene: Scene, fixed_labels: LabelMap | None, moved_labels: LabelMap | None) -> dict[str, Column]:
    columns: dict[str, Column] = {
        "fixed": lambda view, size: _grey(scene.fixed_slice(view), size),
        "moved": lambda view, size: _grey(scene.moving_slice("moved", view), size),
        "|difference|": lambda view, size: _grey(_difference(scene, view), size),
    }
    jacobian = scene.page.jacobian
    if jacobian is not None:
        columns["log J"] = lambda view, size: _jacobian(scene.central_slice(jacobian, view), size)
    if fixed_labels is not None and moved_labels is not None:
        columns["labels"] = lambda view, size: _bordered(
            _grey(0.75 * scene.moving_slice("moved", view), size),
            scene.central_slice(fixed_labels.data, view),
            scene.central_slice(moved_labels.data, view),
        )
    return columns


def _difference(scene: Scene, view: View) -> np.ndarray:
    """White where the matched intensities differ by half of the window or more, as on the page of a pair."""
    return abs(scene.fixed_slice(view) - scene.moving_slice("moved", view)) / DIFFERENCE_LIMIT


def _grey(values: np.ndarray, size: Size) -> Picture.Image:
    """Values, clipped to 0..1, as grey colours."""
    picture = Picture.fromarray((values.clip(0, 1) * 255).astype(np.uint8))
    return picture.resize(size, Picture.Resampling.BILINEAR).convert("RGB")


def _jacobian(values: np.ndarray, size: Size) -> Picture.Image:
    """The determinant in colours; a single voxel that folds stays visible however small the picture is."""
    measured = ~np.isnan(values)
    colours = jacobian_colours(np.where(measured, values, 1))
    colours[~measured] = OUTSIDE
    picture = np.array(Picture.fromarray(colours).resize(size, Picture.Resampling.BILINEAR))
    folded = Picture.fromarray((measured & ~(values > 0)).astype(np.float32)).resize(size, Picture.Resampling.BOX)
    picture[np.asarray(folded) > 0] = FOLD
    return Picture.fromarray(picture)


def _bordered(picture: Picture.Image, fixed: np.ndarray, moved: np.ndarray) -> Picture.Image:
    in_fixed, in_moved = (_borders(labels, picture.size) for labels in (fixed, moved))
    colours = np.array(picture)
    colours[in_fixed], colours[in_moved] = FIXED_BORDER, MOVED_BORDER
    colours[in_fixed & in_moved] = BOTH_BORDERS
    return Picture.fromarray(colours)


def _borders(labels: np.ndarray, size: Size) -> np.ndarray:
    """Where a label ends, one pixel wide: bool (height, width)."""
    columns, rows = (np.arange(n) * have // n for n, have in zip(size, labels.shape[::-1], strict=True))
    labels = labels[np.ix_(rows, columns)]
    border = np.zeros(labels.shape, bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return border


def _sheet(scene: Scene, columns: dict[str, Column], title: str) -> Picture.Image:
    width = (WIDTH - GAP * (len(columns) - 1)) // len(columns)
    heights = [round(width / scene.turned.aspect(view, scene.fixed.shape)) for view in VIEWS]
    top = TITLE + HEADINGS
    shrink = min(1, (TALLEST - top) / (sum(heights) + GAP * 2))
    heights = [max(1, round(height * shrink)) for height in heights]
    sheet = Picture.new("RGB", (WIDTH, top + sum(heights) + GAP * (len(VIEWS) - 1)), OUTSIDE)
    for number, (name, draw) in enumerate(columns.items()):
        left, y = number * (width + GAP), top
        _heading(sheet, name, left)
        for view, height in zip(VIEWS, heights, strict=True):
            tile = draw(view, (max(1, round(width * shrink)), height))
            sheet.paste(tile, (left + (width - tile.width) // 2, y))
            if number == 0:
                _letters(sheet, view, left, y, width, height)
            y += height + GAP
    drawing = ImageDraw.Draw(sheet)
    drawing.text((4, 5), _shortened(drawing, title, WIDTH - 8, _font(14)), INK, _font(14))
    return sheet


def _heading(sheet: Picture.Image, name: str, left: int) -> None:
    """A column's name, and what its colours mean where that is not seen."""
    parts: list[tuple[str, tuple[int, int, int]]] = [(name, SOFT)]
    if name == "log J":
        parts += [("shrinks", BELOW), ("grows", ABOVE), ("folds", FOLD)]
    if name == "labels":
        parts += [("fixed", FIXED_BORDER), ("moved", MOVED_BORDER), ("both", BOTH_BORDERS)]
    drawing, x = ImageDraw.Draw(sheet), left + 4.0
    for word, colour in parts:
        drawing.text((x, TITLE + 3), word, css(colour), _font(11))
        x += drawing.textlength(word, _font(11)) + 8


def _letters(sheet: Picture.Image, view: View, left: int, top: int, width: int, height: int) -> None:
    """The anatomical sides of a view, inside its edges."""
    drawing = ImageDraw.Draw(sheet)
    middle = (left + width / 2, top + height / 2)
    places = {
        view.left: ((left + 4, middle[1]), "lm"),
        view.right: ((left + width - 4, middle[1]), "rm"),
        view.top: ((middle[0], top + 3), "mt"),
        view.bottom: ((middle[0], top + height - 3), "mb"),
    }
    for letter, (place, anchor) in places.items():
        drawing.text(place, letter, INK, _font(11), anchor, stroke_width=1, stroke_fill=OUTSIDE)


def _shortened(drawing: ImageDraw.ImageDraw, title: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """A title in one line that fits."""
    title = " ".join(title.split())
    if drawing.textlength(title, font) <= width:
        return title
    while title and drawing.textlength(f"{title}…", font) > width:
        title = title[:-1]
    return f"{title}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that the picture is the same on every machine."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _jpeg(sheet: Picture.Image) -> bytes:
    """The sheet as JPEG, of the best quality that keeps it below LARGEST_BYTES."""
    for quality in QUALITIES:
        buffer = BytesIO()
        sheet.save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 60 else 2, optimize=True)
        if buffer.tell() <= LARGEST_BYTES:
            break
    return buffer.getvalue()
