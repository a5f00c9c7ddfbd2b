"""A batch from its manifest to its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepwarp.batch import bids as derivatives
from stepwarp.batch.conclude import conclude
from stepwarp.batch.farm import Farm, FarmSize
from stepwarp.batch.places import OWN_NAMES, BatchPlaces
from stepwarp.batch.plan import BatchCase, CaseSource, plan, refuse_replacing
from stepwarp.batch.run import Tell, run
from stepwarp.batch.settings import check
from stepwarp.data.manifest import data_root, read_manifest
from stepwarp.errors import InputError
from stepwarp.files.json import write_record
from stepwarp.files.lock import locked
from stepwarp.machine import environment, gpu_name, today
from stepwarp.options import RegisterOptions
from stepwarp.printable import counted, worded
from stepwarp.progress import Progress, silent
from stepwarp.version import __version__
from stepwarp.workflow.device import chosen_device, free_gpu_memory
from stepwarp.workflow.network import read_network
from stepwarp.workflow.subjects import recorded_outside


@dataclass(frozen=True)
class Batch:
    """What is asked for: which pairs, registered how, and where everything goes. bids: also under names of BIDS."""

    source: CaseSource
    options: RegisterOptions
    out: Path
    farm: Farm
    bids: bool = False

    @classmethod
    def of(
        cls,
        manifest: str | Path,
        out: Path,
        options: RegisterOptions | None = None,
        *,
        to: str | None = None,
        split: str | None = None,
        only: Sequence[str] | None = None,
        data: Path | None = None,
        masks: bool = False,
        farm: Farm | None = None,
        bids: bool = False,
    ) -> Batch:
        """Read the manifest (a path, or the name of a shipped one). to: a template, a file or the id of an image, to
        which every image is registered instead. only: ids of cases. masks: use those of the manifest.

        Raises InputError for what cannot be asked for."""
        options = options or RegisterOptions()
        check(options)
        root = data_root(data, manifest)
        source = CaseSource(read_manifest(manifest), root, split, None if only is None else tuple(only), to, masks)
        return cls(source, options, Path(out), farm or Farm(), bids)

    @property
    def places(self) -> BatchPlaces:
        return BatchPlaces(self.out)

    def plan(self, progress: Progress = silent) -> list[BatchCase]:
        """What there is to do; errors as `plan.plan`."""
        weights, steps = self.options.weights, self.options.steps
        network = None if weights is None else read_network(weights, steps, torch.device("cpu"))
        cases = plan(self.source, self.options, self.places, progress, network)
        if self.bids:
            derivatives.check_names(cases)
        return cases

    def size(self, cases: Sequence[BatchCase]) -> FarmSize:
        """How many workers, for the cases that are to be run. InputError for a GPU that is asked for and is not there,
        where the workers are this computer's."""
        to_run = [case for case in cases if case.todo == "run"]
        place = chosen_device(self.options.device) if self.farm.here else torch.device("cpu")
        return self.farm.size(to_run, free_gpu_memory(place) // 2**20 if place.type == "cuda" else None)

    def run(
        self, *, replace: bool = False, retries: int = 2, progress: Progress = silent, tell: Tell = lambda line: None
    ) -> dict[str, Any]:
        """Do what there is to do, then write the summary, the table and the page; the summary.

        replace: whether results of other inputs or settings may be replaced. Raises OutputError for a folder that
        another run holds or that cannot be written to, RegistrationError if the scheduler is lost."""
        with locked(self.out, "batch", OWN_NAMES, known=self.places.known):
            cases = self.plan(progress)
            if not replace:
                refuse_replacing(cases)
            if self.bids:
                derivatives.check_target(self.places)
            size = self.size(cases)
            write_record(self.places.environment, environment(size.threads or 0, self._device()))
            unused = self.source.unused_masks()
            if unused:
                tell(
                    f"{counted(unused, 'mask')} of the manifest {worded(unused, 'is', 'are')} not used; --masks "
                    "keeps what they exclude out."
                )
            run(cases, self.places, self.farm, size, retries=retries, progress=progress, tell=tell)
            return self._conclude(cases)

    def conclude(self) -> dict[str, Any]:
        """Write the summary, the table and the page anew from what the folder holds."""
        if not self.places.cases.is_dir():
            raise InputError(f"{self.out}: holds no batch. Run it without --summary-only.")
        with locked(self.out, "batch", OWN_NAMES, known=self.places.known):
            return self._conclude(self.plan())

    def _conclude(self, cases: Sequence[BatchCase]) -> dict[str, Any]:
        if self.bids:
            finished, failed = self.places.read_cases(), self.places.read_failures()
            derivatives.publish(self.places, cases, {name: one for name, one in finished.items() if name not in failed})
        return conclude(self.places, self._about(), [case.id for case in cases])

    def _about(self) -> dict[str, Any]:
        """JSON-ready."""
        source = self.source
        about = {
            "manifest": source.manifest.name,
            "split": source.split,
            "to": None if source.to is None else Path(source.to).name,
            "masks": source.masks,
            "settings": self.options.model_dump(mode="json", exclude={"threads", "trace"})
            | {"outside": recorded_outside(self.options.outside)},
            "stepwarp": __version__,
            "date": today(),
        }
        return json.loads(json.dumps(about))

    def _device(self) -> str:
        return (self.options.device != "cpu" and gpu_name()) or "cpu"
