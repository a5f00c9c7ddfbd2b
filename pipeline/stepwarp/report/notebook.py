"""What a notebook shows of a registered pair: one table of pictures that needs nothing around it."""

from __future__ import annotations

from html import escape

from stepwarp.geometry import Image
from stepwarp.report.pair import PairPage, Scene
from stepwarp.report.pictures import DIFFERENCE_LIMIT, colour_picture, diverging, grey_strip
from stepwarp.report.views import VIEWS

_HEIGHT = 150


def shown(fixed: Image, moved: Image, caption: str) -> str:
    """The fixed image, the moved one and their difference in three views, as HTML, below a caption in plain text.

    Both lie on the fixed grid; the moved image's intensities are matched to the fixed one's, as on the report's page.
    The patient's left is on the right."""
    scene = Scene(PairPage(fixed=fixed, moving_before=moved, moved=moved, record={}))
    rows: dict[str, list[str]] = {"fixed": [], "moved": [], "difference": []}
    for view in VIEWS:
        a, b = scene.fixed_slice(view), scene.moving_slice("moved", view)
        pictures = (grey_strip([a]), grey_strip([b]), colour_picture(diverging(a - b, DIFFERENCE_LIMIT)))
        width = round(_HEIGHT * scene.turned.aspect(view, scene.fixed.shape))
        for row, picture in zip(rows.values(), pictures, strict=True):
            row.append(f'<td><img src="{picture}" width="{width}" height="{_HEIGHT}"></td>')
    table = "".join(f"<tr><th>{name}</th>{''.join(cells)}</tr>" for name, cells in rows.items())
    return f"<div><code>{escape(caption)}</code><table>{table}</table></div>"
