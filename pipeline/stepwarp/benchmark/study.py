"""A benchmark from its manifest to its page: which pairs, which methods, and what is written at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwarp import limits
from stepwarp.baselines import Method
from stepwarp.benchmark.methods import METHODS, OWN, find_method
from stepwarp.benchmark.places import BenchmarkPlaces
from stepwarp.benchmark.plan import Asked, BenchmarkCase, plan
from stepwarp.benchmark.summary import csv_of, summarise, table_of
from stepwarp.data.manifest import Manifest, pairs, read_manifest
from stepwarp.errors import InputError
from stepwarp.files import write_text
from stepwarp.files.json import read_record, write_record
from stepwarp.machine import gpu_name
from stepwarp.recipes import nearest

#: What is compared unless something else is asked for: the quick presets of ANTs, and all of stepwarp.
DEFAULT_METHODS = ("identity", "ants-affine", "ants-syn", "ants-syn-quick", *OWN)
DEFAULT_BASELINE = "ants-syn-quick"


@dataclass(frozen=True)
class BenchmarkStudy:
    """Pairs of a split of a manifest and methods to run on them. ids: of all pairs of the split."""

    manifest: Manifest
    split: str | None
    ids: tuple[str, ...]
    methods: tuple[Method, ...]
    baseline: str

    @classmethod
    def of(
        cls,
        manifest: str | Path,
        methods: Sequence[str] = DEFAULT_METHODS,
        split: str | None = None,
        baseline: str = DEFAULT_BASELINE,
    ) -> BenchmarkStudy:
        """Read the manifest (a path, or the name of a shipped one). InputError for names that there are not."""
        content = read_manifest(manifest)
        ids = tuple(pair.id for pair in content.all_pairs() if split is None or pair.split == split)
        if not ids:
            splits = dict.fromkeys(pair.split for pair in content.all_pairs() if pair.split)
            known = f"its splits are {', '.join(splits)}" if splits else "its pairs are in no split"
            raise InputError(f"manifest '{content.name}' has no pair in the split '{split}'; {known}.")
        chosen = tuple(find_method(name) for name in dict.fromkeys(methods))
        return cls(content, split, ids, chosen, find_method(baseline).name)

    def plan(self, root: Path, asked: Asked, only: Iterable[str] | None = None) -> list[BenchmarkCase]:
        """What is left to do on the pairs `only`, all by default, whose files lie below `root`.

        Raises InputError for pairs that there are not, and for files that are missing or are not those of the
        manifest's checksums."""
        wanted = set(self.ids if only is None else only)
        for pair in sorted(wanted - set(self.ids)):
            raise InputError(f"pair '{pair}' does not exist in '{self.manifest.name}'; {nearest(pair, self.ids)}")
        chosen = [pair for pair in pairs(self.manifest, root, self.split) if pair.id in wanted]
        return plan(chosen, self.methods, asked)

    def _people(self) -> dict[str, tuple[str, str]]:
        """Of each pair of the split."""
        images = self.manifest.images
        return {
            pair.id: (images[pair.fixed].subject or pair.fixed, images[pair.moving].subject or pair.moving)
            for pair in self.manifest.all_pairs()
            if pair.id in self.ids
        }

    def conclude(self, out: Path) -> dict[str, Any]:
        """Write summary.json, table.md, cases.csv and index.html from all cases that the folder holds of this split,
        those of other methods included; the summary."""
        from stepwarp.report.benchmark import write_index

        places = BenchmarkPlaces(out)
        cases = [case for case in places.read_cases() if case["pair"] in self.ids]
        if not cases:
            raise InputError(
                f"{out}: holds no case of '{self.manifest.name}'. Run the benchmark without --summary-only."
            )
        summary = summarise(
            cases,
            manifest={
                "name": self.manifest.name,
                "split": self.split,
                "pairs": list(self.ids),
                "label_groups": {name: list(labels) for name, labels in self.manifest.label_groups.items()},
            },
            titles={name: method.title for name, method in METHODS.items()},
            baseline=self.baseline,
            environment=read_record(places.environment) if places.environment.exists() else {},
            people=self._people(),
        )
        write_record(places.summary, summary)
        write_text(places.table, table_of(summary), overwrite=True)
        write_text(places.csv, csv_of(summary), overwrite=True)
        write_index(out, summary, cases)
        return summary


def ask(
    out: Path,
    *,
    threads: int | None = None,
    seed: int = 0,
    gpu: bool = True,
    pictures: bool = True,
    again: bool = False,
) -> Asked:
    """How cases are to be run on this computer."""
    return Asked(out, threads or limits.processors(), seed, (gpu and gpu_name()) or "cpu", pictures, again)
