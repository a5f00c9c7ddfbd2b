"""What a worker does for one case. Nothing it raises gets lost on the way: what happened is what it returns."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwarp.batch.places import PICTURE
from stepwarp.batch.plan import Job
from stepwarp.batch.settings import damage, key_of, parts_in
from stepwarp.errors import (
    ForeignError,
    InputError,
    MemoryShortageError,
    OutputError,
    RegistrationError,
    StepwarpError,
    first_line,
    is_gpu_failure,
    is_out_of_memory,
)
from stepwarp.files import TrustRules, sha256, unbracketed
from stepwarp.files.json import read_record
from stepwarp.files.lock import refuse_links
from stepwarp.layout import NAMES, RECORD
from stepwarp.version import __version__

if TYPE_CHECKING:
    from stepwarp.workflow.registration import Registration

#: The number of threads and the random state belong to the process, so that two at once would disturb each other.
_ONE_AT_A_TIME = threading.Lock()


def work(job: Job) -> dict[str, Any]:
    """Register a case and save it; {status: "done", verdict, seconds, lncc, gpu_failure} or what `failure` returns."""
    with _ONE_AT_A_TIME:
        started = time.monotonic()
        try:
            record = _done(job) or _register(job)
        except Exception as error:
            return failure(error)
    measures = record["measures"]
    return {
        "status": "done",
        "verdict": record["verdict"]["status"],
        "lncc": measures.get("similarity", measures["similarity_affine"])["lncc"],
        "seconds": round(time.monotonic() - started, 2),
        "gpu_failure": record.get("gpu_failure"),
    }


def failure(error: Exception) -> dict[str, Any]:
    """{status: "failed", reason, kind, where}. kind: "machine" need not fail again; "input", "output" (something is in
    the result's place) and "registration" will.

    where: the traceback, for errors that should not be; otherwise None."""
    reason = " ".join(str(error).split())
    kind, where = "machine", None
    if is_out_of_memory(error) and not isinstance(error, MemoryShortageError):
        reason = "out of memory. Run fewer --workers at a time, or work on smaller images."
    elif is_gpu_failure(error):
        reason = f"the GPU failed: {first_line(error)}"
    elif isinstance(error, InputError):
        kind = "input"
    elif isinstance(error, ForeignError):
        kind = "output"
    elif isinstance(error, RegistrationError):
        kind = "registration"
    elif not isinstance(error, (StepwarpError, OSError)):
        kind, reason = "registration", f"this is a bug in stepwarp, please report it ({type(error).__name__}: {reason})"
        where = "".join(traceback.format_exception(error))
    return {"status": "failed", "reason": reason, "kind": kind, "where": where, "computer": socket.gethostname()}


def _done(job: Job) -> dict[str, Any] | None:
    """The record, if the very result is there already: another worker may have finished after it was given up."""
    if not (job.folder / RECORD).exists():
        return None
    record = read_record(job.folder / RECORD)
    made = parts_in(record)
    same = made is not None and key_of(made) == job.key
    return record if same and damage(job.folder, record) is None else None


def _register(job: Job) -> dict[str, Any]:
    from stepwarp.workflow.device import chosen_device, share_gpu
    from stepwarp.workflow.register import register_pair

    _check_place(job)
    _check_inputs(job)
    if job.gpu_mib is not None and (place := chosen_device(job.options.device)).type == "cuda":
        with suppress(RuntimeError):  # where the GPU is lost, the registration finds it so, and knows what to do
            share_gpu(place, job.gpu_mib * 2**20)
    found = register_pair(
        job.images["fixed"],
        job.images["moving"],
        job.options.model_copy(update={"threads": job.threads, "trust": _trust(job)}),
        fixed_mask=job.masks.get("fixed"),
        moving_mask=job.masks.get("moving"),
    )
    _check_inputs(job)
    found.record["batch"] = {"case": job.case, "key": job.key, "parts": job.parts}
    _save(found, job)
    return found.record


def _trust(job: Job) -> tuple[str, ...]:
    """What of the batch's rules is about this case's files."""
    starts = [unbracketed(each)[0] for each in job.options.initial]
    return TrustRules(job.options.trust).about([*job.images.values(), *job.masks.values(), *starts])


def _check_place(job: Job) -> None:
    """OutputError where this computer cannot put the result, or is not the one that the batch was planned for;
    ForeignError where something else is in its place."""
    if __version__ != job.parts["stepwarp"]:
        raise OutputError(
            f"the worker on {socket.gethostname()} has stepwarp {__version__}, the batch was planned with "
            f"{job.parts['stepwarp']}. Install the same version."
        )
    parent = job.folder.parent
    if not parent.is_dir():
        raise OutputError(
            f"{parent}: is not to be seen from {socket.gethostname()}. The output folder must be on a file system that "
            "all workers share."
        )
    free = shutil.disk_usage(parent).free / 2**20
    if free < job.disk_mib:
        raise OutputError(f"{parent}: {free:.0f} MiB are free, a case may need {job.disk_mib}. Free some space.")
    _refuse_foreign(job.folder)


def _check_inputs(job: Job) -> None:
    """InputError unless the files are those that were planned with; asked before and after they are read."""
    from stepwarp.workflow.initial import digest

    for kind, paths in (("", job.images), ("_mask", job.masks)):
        for role, path in paths.items():
            if sha256(path) != job.parts["inputs"][role + kind]:
                raise InputError(f"{path}: changed while the batch was running. Run it again.")
    start = job.options.initial
    if start and digest(start) != job.parts["inputs"]["initial"]:
        raise InputError(f"{', '.join(start)}: changed while the batch was running. Run it again.")


def _save(found: Registration, job: Job) -> None:
    """Write everything beside the case's folder, then give it its name at once."""
    mark = secrets.token_hex(4)
    fresh, stale = (job.folder.with_name(f".{job.case}.{word}-{mark}") for word in ("new", "old"))
    try:
        found.save(fresh)
        # Without a picture a result is as good.
        with suppress(Exception):
            _draw(found, job, fresh / PICTURE)
        _refuse_foreign(job.folder)
        if job.folder.exists():
            job.folder.replace(stale)
        fresh.replace(job.folder)
    finally:
        for leftover in (fresh, stale):
            shutil.rmtree(leftover, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """ForeignError for a case's folder that holds what no registration wrote: it would go with the old result."""
    refuse_links(folder)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ForeignError(f"{folder}: is a file, where the result needs a folder. Move it away.")
    ours = {RECORD, PICTURE}
    with suppress(OSError, ValueError, KeyError, TypeError):
        ours |= set(NAMES).intersection(json.loads((folder / RECORD).read_text(encoding="utf-8"))["outputs"])
    foreign = sorted(path for path in folder.iterdir() if path.name not in ours or path.is_dir())
    if foreign:
        raise ForeignError(f"{foreign[0]}: is no part of the old result, which is to be replaced. Move it away.")


def _draw(found: Registration, job: Job, path: Path) -> None:
    import torch

    from stepwarp.geometry.intensities import scale_intensities
    from stepwarp.report.contact_sheet import case_picture
    from stepwarp.workflow.outputs import jacobian_image
    from stepwarp.workflow.verdict import foreground

    jacobian = None
    if found.warp is not None:
        inside = foreground(scale_intensities(found.fixed), None)
        jacobian = jacobian_image(found).data.where(inside, torch.nan)
    case_picture(
        path, found.fixed, found.moved, fixed_labels=None, moved_labels=None, jacobian=jacobian, title=job.case
    )
