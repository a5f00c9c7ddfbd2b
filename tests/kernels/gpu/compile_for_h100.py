"""Calls every primitive with the back end for GPUs, whose kernels are compiled for an H100 to the last instruction and
not started: for that no GPU is needed. Run by `test_compiled`."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

sys.path.insert(0, str(Path(__file__).parents[1]))

import test_contract

from stepwarp.kernels import backend

#: An axis of one voxel and sizes that 16 divides are what Triton compiles for by themselves.
SHAPES = [(9, 12, 7), (1, 8, 7), (6, 1, 5), (5, 6, 1), (8, 16, 32)]


class NoCard:
    """A driver of Triton for a card that is not there: what it loads and starts is nothing."""

    utils = SimpleNamespace(
        load_binary=lambda name, binary, shared, device: (None, None, 0, 0, 1024),
        get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
        unload_module=lambda module: None,
    )

    def __init__(self) -> None:
        self.kernels: list[str] = []

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source, metadata):
        self.kernels.append(source.name)
        return lambda *arguments, **named: None


card = NoCard()
driver.set_active(card)
backend._kind = lambda device, by_hand: "cuda"
for primitive in test_contract.PRIMITIVES.values():
    for shape in SHAPES:
        if min(shape) >= primitive.least:
            given = test_contract.drawn(primitive.kinds, shape, 2)
            with backend.use("gpu"):
                test_contract.with_gradients(primitive, given)
                primitive.call(*given)
grey = torch.rand(3, 1, 1, 9, 8, 7)
with backend.use("gpu"):
    test_contract.correlation.forces(*grey[:2], None, 2, 1e-3)
    test_contract.correlation.forces(*grey, 2, 1e-3)
    assert backend.name_for(torch.device("cpu")) == "gpu"
print(*sorted(set(card.kernels)))
