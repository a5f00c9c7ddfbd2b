"""Lists of scans and pairs that others write, read as manifests: Learn2Reg, MONAI, BIDS derivatives, CSV."""

from stepwarp.data.formats.detect import read_foreign

__all__ = ["read_foreign"]
