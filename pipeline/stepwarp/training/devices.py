"""Where a training computes: one process on a CPU or GPU, or several that torchrun started."""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

#: How long the other processes wait while the first one aligns scans or validates.
_PATIENCE = timedelta(hours=12)


def launched_fabric(device: torch.device) -> Fabric:
    """Fabric with its processes known to each other. Under torchrun each process takes the GPU of its local rank.

    Its precision is left at float32, because in mixed precision it would round the images; see `Objective`."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator="cuda" if device.type == "cuda" else "cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if under_torchrun() else 1,
        num_nodes=_nodes(),
        strategy=_strategy(device),
        # Named, because Fabric would take any job of SLURM for one that it must divide among its tasks.
        plugins=[TorchElasticEnvironment() if under_torchrun() else LightningEnvironment()],
    )
    fabric.launch()
    if device.type == "cuda":
        # All images of a training are of one size, for which it pays to try what is fastest.
        torch.backends.cudnn.benchmark = True
    # In a stage where all weights are trained, none is unused: that is no mistake.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    return fabric


def under_torchrun() -> bool:
    """Whether torchrun started this process, also if it is the only one."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _strategy(device: torch.device) -> Strategy:
    if under_torchrun():
        # Weights of steps that a stage leaves out have no gradient.
        return DDPStrategy(
            find_unused_parameters=True,
            timeout=_PATIENCE,
            process_group_backend="nccl" if device.type == "cuda" else "gloo",
        )
    return SingleDeviceStrategy(device)


def _nodes() -> int:
    if not under_torchrun():
        return 1
    return max(1, int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"]))
