import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The development data: STEPWARP_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("STEPWARP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the development data, and {folder} is absent (set STEPWARP_DATA)")
    return folder
