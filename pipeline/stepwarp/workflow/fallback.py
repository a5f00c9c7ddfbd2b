"""A GPU that fails under a pair: the pair is registered on the processor, and its record and verdict say so."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch

from stepwarp.errors import MemoryShortageError, first_line, is_gpu_failure
from stepwarp.machine import device_name
from stepwarp.options import RegisterOptions
from stepwarp.workflow.device import chosen_device
from stepwarp.workflow.registration import Registration


def with_the_processor_left(run: Callable[[RegisterOptions], Registration], options: RegisterOptions) -> Registration:
    """What `run` makes of the options; where it fails on a GPU for the GPU's sake (lost, broken, its memory full or too
    small), what it makes of them on the processor, in the time that is left. The record's `gpu_failure` and the
    verdict's last sentence then say why."""
    started = time.monotonic()
    place = chosen_device(options.device)
    if place.type == "cpu":
        return run(options)
    name = place.type
    try:
        name = device_name(place)
        return run(options)
    except Exception as error:
        # Where it is the process's own memory that is short, the processor says so again.
        if not (is_gpu_failure(error) or isinstance(error, MemoryShortageError)):
            raise
        reason = first_line(error)
    # Only here, where nothing holds the error any more, nor what its frames held of the GPU's memory.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()
    note = f"the GPU ({name}) failed, and the processor computed this: {reason}"
    warnings.warn(note, stacklevel=2)
    budget = options.time_budget
    left = None if budget is None else max(0.0, budget - (time.monotonic() - started))
    found = run(options.model_copy(update={"device": "cpu", "time_budget": left}))
    record, verdict = found.record, found.record["verdict"]
    return replace(
        found,
        record=record
        | {
            "settings": record["settings"] | {"time_budget": budget},
            "gpu_failure": {"device": name, "reason": reason},
            "verdict": verdict | {"reasons": [*verdict["reasons"], note]},
        },
    )
