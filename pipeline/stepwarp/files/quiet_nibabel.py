"""nibabel without its remarks: it tells the terminal what it mends in a header while it reads."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import cast

import nibabel
from nibabel.imageglobals import logger
from nibabel.spatialimages import SpatialImage


def load(path: Path) -> SpatialImage:
    """nibabel's image of a file; raises whatever nibabel runs into. What other threads log is not held back."""
    reader = threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != reader

    logger.addFilter(from_elsewhere)
    try:
        return cast(SpatialImage, nibabel.load(path))
    finally:
        logger.removeFilter(from_elsewhere)
