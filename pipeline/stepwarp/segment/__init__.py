"""What is in one image of a head: its structures, what is brain, how much of each, and whether it is a head at all."""

from __future__ import annotations

from stepwarp.segment.segmentation import Segmentation, segment
from stepwarp.segment.segmenters import HeadSegmenter, KnownStructure, load_segmenter, save_segmenter

__all__ = ["HeadSegmenter", "KnownStructure", "Segmentation", "load_segmenter", "save_segmenter", "segment"]
