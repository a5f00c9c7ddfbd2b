from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from stepwarp.geometry import Image, Transform


def pytest_configure(config: pytest.Config) -> None:
    """Each worker of pytest-xdist, and the processes it starts, keep to a share of the cores: what every worker spreads
    over all of them waits for the others', which costs more than it gains. Numba's threads are as many as without
    workers, for the tests that ask for more than one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_setaffinity"):  # which macOS and Windows have not
        return
    cores = sorted(os.sched_getaffinity(0))
    share = cores[int(worker.removeprefix("gw")) % len(cores) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.environ.setdefault("NUMBA_NUM_THREADS", str(len(cores)))
    os.sched_setaffinity(0, share)

    import numba

    numba.set_num_threads(len(share))


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


@dataclass(frozen=True, eq=False)
class Brains:
    """Two brains of 4 mm, the true map from one to the other, and the world points (N, 3) of the fixed one."""

    fixed: Image
    moving: Image
    truth: Transform
    points: np.ndarray

    def error(self, transform: Transform) -> float:
        """The mean distance in mm to where the points of the brain belong."""
        return float(np.linalg.norm(transform(self.points) - self.truth(self.points), axis=1).mean())


@pytest.fixture(scope="session")
def brains() -> Brains:
    """MNI152 and a second brain made from it, as from another scanner: LAS, another contrast, noise."""
    from stepwarp.data.mni152 import Template, mni152
    from stepwarp.geometry import Image
    from stepwarp.workflow.demo import make_pair

    full = mni152()
    brain, *tissues = (image.coarser(4) for image in (full.brain, *full.tissues))
    mask = Image(full.mask.float(), full.brain.grid).coarser(4).data > 0.5
    pair = make_pair(Template(brain, tuple(tissues), mask), 0)
    points = mask.nonzero()[::10].numpy() @ brain.grid.linear.T + brain.grid.affine[:3, 3]
    return Brains(pair.fixed, pair.moving, pair.transform, points)


@pytest.fixture(scope="session")
def learn2reg_script():
    """The evaluation of the challenge: (u, fixed labels, moving labels, fixed points, moving points, spacing) -> mean
    Dice, TRE of each point, determinants without two voxels at every face, their spread, their folds."""
    return _learn2reg


def _learn2reg(u, fixed_labels, moving_labels, fixed_points, moving_points, spacing):
    """Learn2Reg's evaluation, restated. u: (H, W, D, 3) voxels. Points: voxels.

    Known defects: the determinant gets 3 added and is clipped to 1e-9 before it is compared with 0, so that nothing
    ever folds and the spread of the logarithm means nothing; HD95 is computed with a spacing of 1. And one that is
    a choice: beyond the outermost voxel centres it reads 0, where ITK and stepwarp go on for half a voxel."""
    from scipy.ndimage import correlate, map_coordinates

    warped = map_coordinates(moving_labels, np.indices(u.shape[:3]) + np.moveaxis(u, -1, 0), order=0)
    labels = [n for n in np.unique(fixed_labels) if n and (moving_labels == n).any()]
    dice = [
        2 * ((fixed_labels == n) & (warped == n)).sum() / ((fixed_labels == n).sum() + (warped == n).sum())
        for n in labels
    ]
    at = np.stack([map_coordinates(u[..., a], fixed_points.T) for a in range(3)], -1)
    tre = np.linalg.norm((fixed_points + at - moving_points) * spacing, axis=1)
    kernel = np.array([-0.5, 0, 0.5])
    slopes = [
        [
            correlate(u[..., c], kernel.reshape([-1 if b == a else 1 for b in range(3)]), mode="constant")
            for a in range(3)
        ]
        for c in range(3)
    ]
    jacobian = np.moveaxis(np.array(slopes), (0, 1), (-2, -1)) + np.eye(3)
    determinant = np.linalg.det(jacobian[2:-2, 2:-2, 2:-2])
    shown = (determinant + 3).clip(1e-9, 1e9)
    return np.mean(dice), tre, determinant, np.log(shown).std(), (shown <= 0).sum()
