"""A volume as a small picture: what a notebook shows of it."""

from __future__ import annotations

from io import BytesIO

import numpy as np

from stepwarp.geometry.magnitude import magnitude
from stepwarp.geometry.orientation import canonical
from stepwarp.geometry.volume import Volume

_HEIGHT = 160


def png(volume: Volume) -> bytes:
    """The middle axial, coronal and sagittal slice side by side, as a PNG: upright, the patient's left on the right."""
    from PIL import Image

    upright = canonical(volume)
    values, spacing = upright.data.detach().cpu().double().numpy(), upright.grid.spacing
    values = values / magnitude(values)
    low, high = np.percentile(values, (1, 99.5)) if volume.interpolation != "nearest" else (values.min(), values.max())
    grey = (np.clip((values - low) / max(high - low, np.finfo(float).tiny), 0, 1) * 255).astype(np.uint8)
    tiles = []
    for axis in (2, 1, 0):
        tile = np.moveaxis(grey, axis, 0)[grey.shape[axis] // 2, ::-1, ::-1].T
        across, along = (values.shape[a] * spacing[a] for a in range(3) if a != axis)
        width = max(1, round(_HEIGHT * across / along))
        tiles.append(np.asarray(Image.fromarray(np.ascontiguousarray(tile)).resize((min(width, 1000), _HEIGHT))))
    buffer = BytesIO()
    Image.fromarray(np.hstack(tiles)).save(buffer, "PNG")
    return buffer.getvalue()
