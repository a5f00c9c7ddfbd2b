import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def stated_data() -> Iterator[str | None]:
    """What STEPWARP_DATA says, taken out of the environment of every test and of the processes it starts: there it
    would be the root of their own manifests."""
    with pytest.MonkeyPatch.context() as patch:
        stated = os.environ.get("STEPWARP_DATA")
        patch.delenv("STEPWARP_DATA", raising=False)
        yield stated


@pytest.fixture(scope="session")
def data_folder(stated_data: str | None) -> Path:
    """The development data: STEPWARP_DATA, or ../shared/data beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data" if stated_data is None else Path(stated_data)
    if not folder.is_dir():
        pytest.skip(f"needs the development data, and {folder} is absent (set STEPWARP_DATA)")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Images as small as those of the tests are quicker on one thread, and on a busy machine much quicker. Afterwards
    the numbers are as before, which `register` and `train` set."""
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])
