"""The parts of the page that show images: the comparison viewer, the deformation, the differences."""

from __future__ import annotations

from html import escape

import numpy as np
from torch import Tensor

from stepwarp.geometry import DisplacementField
from stepwarp.report import figures
from stepwarp.report.pair import Scene
from stepwarp.report.pictures import (
    ABOVE,
    BELOW,
    DIFFERENCE_LIMIT,
    FOLD,
    MIDDLE,
    OUTSIDE,
    colour_picture,
    css,
    diverging,
    grey_strip,
    jacobian_colours,
)
from stepwarp.report.views import VIEWS, View, slice_positions


def comparison(scene: Scene) -> str:
    """Fixed against the states of the moving image: swipe, flicker or checkerboard, through several slices."""
    chosen = "moved"
    states = "".join(
        f'<button value="{key}" aria-pressed="{str(key == chosen).lower()}">{escape(name)}</button>'
        for key, (name, _) in scene.moving.items()
    )
    modes = "".join(
        f'<button value="{mode.lower()}" aria-pressed="{str(mode == "Swipe").lower()}">{mode}</button>'
        for mode in ("Swipe", "Flicker", "Checkerboard")
    )
    return f"""<section class="card viewer" id="compare" data-with="{chosen}" data-mode="swipe">
<div class="tools"><h2>Fixed against moving</h2>
<div class="choice" data-key="with" role="group" aria-label="Moving image">{states}</div>
<div class="choice" data-key="mode" role="group" aria-label="Comparison">{modes}</div>
<label>Slice <input type="range" id="slice" min="-4" max="4" step="1" value="0"></label>
<label class="for-swipe">Swipe <input type="range" id="split" min="0" max="100" value="50"></label>
<output id="shown">fixed</output></div>
<div class="views">{"".join(_comparison_view(scene, view) for view in VIEWS)}</div>
<p class="note">{_convention(scene)} Left of the line is the fixed image. Drag on a picture to move the line; press
<kbd>F</kbd> to flicker. Intensities of the moving image are matched to the fixed one for display.</p></section>"""


def _convention(scene: Scene) -> str:
    tilt = scene.turned.tilt
    oblique = f" The grid is oblique by {tilt:.0f}°: letters name the nearest axis." if tilt > 2 else ""
    return f"Radiological convention: the patient's left (L) is on the right of axial and coronal views.{oblique}"


def _comparison_view(scene: Scene, view: View) -> str:
    positions = slice_positions(scene.fixed.shape[view.axis], scene.centre[view.axis])
    fixed = grey_strip([scene.fixed_slice(view, p) for p in positions])
    layers = f'<div class="layer fixed" style="background-image:url({fixed})"></div>'
    for key in scene.moving:
        strip = grey_strip([scene.moving_slice(key, view, p) for p in positions])
        layers += f'<div class="layer over {key}" style="background-image:url({strip})"></div>'
    slots = f"--n:{len(positions)};--at:{positions.index(scene.centre[view.axis])}"
    return _frame(scene, view, layers + '<div class="line"></div>', slots)


def _frame(scene: Scene, view: View, content: str, style: str = "") -> str:
    aspect = scene.turned.aspect(view, scene.fixed.shape)
    sides = zip(("left", "right", "top", "bottom"), (view.left, view.right, view.top, view.bottom), strict=True)
    letters = "".join(f'<b class="{side}">{letter}</b>' for side, letter in sides)
    return f'<figure class="view {view.name.lower()}" style="--aspect:{aspect:.4f};{style}">{content}{letters}</figure>'


def _picture_frame(scene: Scene, view: View, source: str, overlay: str = "") -> str:
    return _frame(scene, view, f'<img src="{source}" alt="{view.name} view">{overlay}')


def steps(scene: Scene) -> str:
    """The moving image after each step of the way, one slice of it, with the step's numbers."""
    view = VIEWS[0]
    fixed = _step(scene, view, "fixed image", grey_strip([scene.fixed_slice(view)]), ())
    rest = "".join(
        _step(scene, view, step.title, grey_strip([scene.step_slice(step, view)]), step.facts, step.used)
        for step in scene.page.steps
    )
    return f"""<section class="card"><h2>Step by step</h2><div class="strip">{fixed}{rest}</div>
<p class="note">The moving image after each step, one {view.name.lower()} slice of it, always interpolated once from the
original. Local correlation (LNCC) and corner folds are measured on the fixed grid inside the subject; how far a step
moved is the mean and the largest change of where points of the subject go. Dimmed steps were not used.</p></section>"""


def _step(scene: Scene, view: View, title: str, source: str, facts: tuple[str, ...], used: bool = True) -> str:
    lines = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    frame = _picture_frame(scene, view, source)
    return f'<div class="step{"" if used else " unused"}">{frame}<strong>{escape(title)}</strong>{lines}</div>'


def deformed_grid(scene: Scene, warp: DisplacementField) -> str:
    """The grid of the moving space pulled back onto the registered image."""
    distance = figures.line_distance(scene.fixed.shape, scene.turned.spacing)
    frames = ""
    for view in VIEWS:
        tile = scene.moving_slice("moved", view)
        lines = figures.grid_lines(warp.displacement, scene.turned, view, scene.centre[view.axis], distance)
        rows, columns = tile.shape
        box = f'viewBox="-0.5 -0.5 {columns} {rows}" preserveAspectRatio="none"'
        # Path data counts tenths of a pixel.
        overlay = f'<svg class="lines" {box}><g transform="scale(.1)">{lines}</g></svg>'
        frames += _picture_frame(scene, view, grey_strip([tile * 0.75]), overlay)
    caption = f"Lines of the moving space, {distance:g} mm apart, bent as the registered image is."
    return _card("Deformed grid", frames, f'<p class="legend">{caption}</p>')


def jacobian(scene: Scene, determinant: Tensor) -> str:
    """The Jacobian determinant (fixed grid) on a logarithmic scale, folds marked."""
    pictures = {view: colour_picture(_jacobian_colours(scene, determinant, view)) for view in VIEWS}
    frames = "".join(_picture_frame(scene, view, picture) for view, picture in pictures.items())
    folds = f'<i class="swatch" style="background:{css(FOLD)}"></i> folded (≤ 0)'
    return _card("Jacobian determinant", frames, _legend("shrinks 4-fold", "1", "grows 4-fold", folds))


def _jacobian_colours(scene: Scene, determinant: Tensor, view: View) -> np.ndarray:
    colours = jacobian_colours(scene.central_slice(determinant, view))
    if scene.page.mask is not None:
        colours[~scene.central_slice(scene.page.mask, view)] = OUTSIDE
    return colours


def difference(scene: Scene, key: str) -> str:
    """Fixed minus one state of the moving image, matched intensities."""
    pictures = {view: colour_picture(_difference_colours(scene, key, view)) for view in VIEWS}
    frames = "".join(_picture_frame(scene, view, picture) for view, picture in pictures.items())
    title = f"Difference: {scene.moving[key][0].lower()}"
    return _card(title, frames, _legend("moving brighter", "equal", "fixed brighter"))


def _difference_colours(scene: Scene, key: str, view: View) -> np.ndarray:
    return diverging(scene.fixed_slice(view) - scene.moving_slice(key, view), DIFFERENCE_LIMIT)


def _legend(low: str, middle: str, high: str, extra: str = "") -> str:
    ramp = ",".join(map(css, (BELOW, MIDDLE, ABOVE)))
    bar = f'<i class="ramp" style="background:linear-gradient(90deg,{ramp})"><em>{middle}</em></i>'
    return f'<p class="legend">{low} {bar} {high}<span>{extra}</span></p>'


def _card(title: str, frames: str, legend: str) -> str:
    views = f'<div class="views" title="Click to enlarge">{frames}</div>'
    return f'<section class="card"><h2>{escape(title)}</h2>{views}{legend}</section>'
