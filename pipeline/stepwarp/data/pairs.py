"""Pairs of scans for a network, in an endless sequence that a seed fixes: sample n is the same however many processes
make them, whatever was interrupted before, and, but for rounding, on whatever device the scans lie."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stepwarp.data.augment import Augmentation, Motion, teacher_after
from stepwarp.data.manifest import Pair
from stepwarp.data.scans import About, BoxScan, Labelled, Scans
from stepwarp.data.settings import DataSettings
from stepwarp.data.synthesis import Synthesis
from stepwarp.data.teachers import Teachers
from stepwarp.errors import InputError
from stepwarp.geometry import DisplacementField
from stepwarp.kernels.sampling import average_pool

#: What random numbers are drawn for: streams of one seed that know nothing of each other.
_ORDER, _SAMPLE = 0, 1


@dataclass(frozen=True, eq=False)
class PairTable:
    """Ordered pairs. names: scan ids. fixed, moving: (N,) places in `names`. ids: the pairs' names."""

    names: tuple[str, ...]
    fixed: np.ndarray
    moving: np.ndarray
    ids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.fixed)

    def __getitem__(self, place: int) -> tuple[str, str, str]:
        """The pair's name, fixed_moving unless it has one of its own, its fixed scan and its moving scan."""
        fixed, moving = self.names[self.fixed[place]], self.names[self.moving[place]]
        return self.ids[place] if self.ids is not None else f"{fixed}_{moving}", fixed, moving

    def scans(self) -> list[str]:
        """The scans that are in a pair."""
        return [self.names[place] for place in np.union1d(self.fixed, self.moving)]

    def fingerprint(self) -> str:
        """Of the pairs and their order."""
        digest = hashlib.sha256(repr((self.names, self.ids)).encode())
        for places in (self.fixed, self.moving):
            digest.update(places.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def training_pairs(settings: DataSettings, about: Mapping[str, About], listed: Sequence[Pair] = ()) -> PairTable:
    """The ordered pairs to train on: all of the split, but those with a person who is held out.

    listed: the manifest's pairs, of which those with the teacher's transform are taken where there is a teacher.
    Raises InputError where no pair is left, and for a held-out scan that is not of the split."""
    people = _people_held_out(settings, about)
    names = [scan.id for scan in about.values() if scan.split == settings.split and scan.person not in people]
    if settings.teacher is None:
        table = _all_ordered(names, [about[name].person for name in names], settings.same_person)
    else:
        table = _of_listed([pair for pair in listed if settings.teacher in pair.transforms], names)
    if not len(table):
        taught = f" with transforms '{settings.teacher}'" if settings.teacher else ""
        raise InputError(
            f"split '{settings.split}': there is no pair to train on{taught}, of {len(names)} scans that are not held "
            "out. Check the manifest and data.held_out."
        )
    return table


def validation_pairs(settings: DataSettings, about: Mapping[str, About], listed: Sequence[Pair] = ()) -> PairTable:
    """The pairs to validate on: of the held-out scans each with the next; or of the validation split those that the
    manifest lists, and where it lists none each with the next. Empty where nothing is held out."""
    if settings.validation_split is None:
        _people_held_out(settings, about)
        return _ring(settings.held_out)
    names = [scan.id for scan in about.values() if scan.split == settings.validation_split]
    table = _of_listed(listed, names)
    table = table if len(table) else _ring(names)
    if not len(table):
        raise InputError(f"split '{settings.validation_split}': of its {len(names)} scans no pair can be made.")
    return table


class FixedPairs(Dataset):
    """Pairs as they are, number n the n-th of the table.

    One is a dict: fixed, moving (1, *shape) float32; where there are labels fixed_labels, moving_labels (1, *shape)
    int32; pair, its name; where there are teachers teacher (3, *shape) float32, as of `Teachers`."""

    def __init__(self, scans: Scans, pairs: PairTable, labels: bool = False, teachers: Teachers | None = None) -> None:
        """Raises InputError if the pairs are of more than one split."""
        _require_one_split(scans, pairs)
        self.scans = scans
        self.pairs = pairs
        self.labels = labels
        self.teachers = teachers

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        name, *ends = self.pairs[number]
        scans = [self.scans[end] for end in ends]
        labelled = [scan.labelled() for scan in scans] if self.labels else []
        teacher = self.teachers[name] if self.teachers is not None else None
        return _sample(name, [scan.intensities() for scan in scans], labelled, teacher)


class VariedPairs(Dataset):
    """An endless sequence of pairs, augmented and synthesised on the device where the scans lie, in samples like those
    of `FixedPairs`.

    Every pair of the table comes once before one comes again. Sample n depends on the seed and n alone."""

    def __init__(
        self,
        scans: Scans,
        pairs: PairTable,
        *,
        seed: int,
        labels: bool = False,
        augmentation: Augmentation | None = None,
        synthesis: Synthesis | None = None,
        teachers: Teachers | None = None,
        detail: int = 1,
    ) -> None:
        """detail: how many voxels of the scans along each axis are one of a sample; teachers are on the sample's.

        Raises InputError if the pairs are of more than one split."""
        _require_one_split(scans, pairs)
        self.scans = scans
        self.pairs = pairs
        self.seed = seed
        self.detail = detail
        self.labels = labels
        self.augmentation = augmentation
        self.synthesis = synthesis
        self.teachers = teachers
        self._round = -1, np.empty(0, int)

    def __getitem__(self, number: int) -> dict[str, Any]:
        name, *ends = self.pairs[self._place(number)]
        rng = np.random.default_rng([self.seed, _SAMPLE, number])
        scans = [self.scans[end] for end in ends]
        motions = self._motions(rng)
        seen = [motion.coarser(self.detail) for motion in motions]
        if self.synthesis is not None and self.synthesis.chosen(rng):
            images = self.synthesis.paint_pair(list(map(self._moved_labels, scans, motions)), rng)
        else:
            images = list(map(self._moved_image, scans, motions))
        if self.augmentation is not None:
            images = [self.augmentation.vary(image, rng) for image in images]
        labelled = list(map(self._moved_labels, scans, seen)) if self.labels else []
        teacher = None
        if self.teachers is not None:
            teacher = self._moved_teacher(self.teachers[name].to(scans[0].image.device), *seen)
        return _sample(name, images, labelled, teacher)

    def _place(self, number: int) -> int:
        """Where sample n stands in the table: each round through it has an order of its own."""
        current, place = divmod(number, len(self.pairs))
        if self._round[0] != current:
            order = np.random.default_rng([self.seed, _ORDER, current]).permutation(len(self.pairs))
            self._round = current, order
        return int(self._round[1][place])

    def _motions(self, rng: np.random.Generator) -> tuple[Motion, Motion]:
        if self.augmentation is None:
            still = Motion(self.scans.grid, np.eye(4))
            return still, still
        return self.augmentation.motions(rng, self.labels)

    def _moved_image(self, scan: BoxScan, motion: Motion) -> Tensor:
        return average_pool(motion.apply(scan.intensities(), self.scans.grid), (self.detail,) * 3)

    def _moved_labels(self, scan: BoxScan, motion: Motion) -> Labelled:
        labelled = scan.labelled()
        if self.augmentation is None:
            return Labelled(motion.apply(labelled.index, self.scans.grid, "nearest"), labelled.ids)
        return self.augmentation.move_labels(labelled, motion)

    def _moved_teacher(self, teacher: Tensor, fixed: Motion, moving: Motion) -> Tensor:
        if fixed.is_still and moving.is_still:
            return teacher
        return teacher_after(DisplacementField(teacher, fixed.grid), fixed, moving, teacher.device)


class PairLoader:
    """Batches of `VariedPairs` without end, each a dict of tensors (B, ...) with the pairs' names as a list.

    `state_dict` says how many pairs were handed out; after `load_state_dict` the next batch is the one that would have
    come. Neither depends on the number of workers, nor what was prefetched on how fast the training was."""

    def __init__(
        self,
        pairs: VariedPairs,
        batch: int = 1,
        workers: int = 0,
        *,
        given: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """workers: processes that make them in advance, if the scans lie on the CPU. given: how many pairs were handed
        out before. rank, ranks: where several processes train together, which one this is; each takes its own part of
        every ranks * batch pairs."""
        self.pairs = pairs
        self.batch = batch
        self.workers = workers
        self.rank = rank
        self.ranks = ranks
        self.given = given

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches from where the last iteration ended."""
        numbers = _Consecutive(self.given + self.rank * self.batch, self.batch, self.batch * self.ranks)
        loader = DataLoader(
            self.pairs,
            batch_sampler=numbers,
            num_workers=self.workers,
            worker_init_fn=_one_thread,
            # OpenMP, of which the kernels' threads are, does not survive a fork.
            multiprocessing_context="spawn" if self.workers else None,
            # Its own, because DataLoader would draw from torch's, and with it change what is drawn elsewhere.
            generator=torch.Generator(),
        )
        for batch in loader:
            self.given += self.batch * self.ranks
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given, "seed": self.pairs.seed, "pairs": self.pairs.pairs.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises InputError if that was with other pairs or another seed."""
        now = self.state_dict()
        for what in ("pairs", "seed"):
            if state[what] != now[what]:
                raise InputError(
                    f"the checkpoint was trained with other {what} ({state[what]}) than these ({now[what]}), so that "
                    "its sequence cannot be continued. Resume with the settings and data that it began with."
                )
        self.given = int(state["given"])


class _Consecutive(Sampler[list[int]]):
    """Without end: `length` numbers from `start` on, then as many from `stride` further on."""

    def __init__(self, start: int, length: int, stride: int) -> None:
        self.start, self.length, self.stride = start, length, stride

    def __iter__(self) -> Iterator[list[int]]:
        for first in itertools.count(self.start, self.stride):
            yield list(range(first, first + self.length))


def _one_thread(_: int) -> None:
    """The parallelism is in the number of workers."""
    torch.set_num_threads(1)
    numba.set_num_threads(1)


def _sample(
    name: str, images: Sequence[Tensor], labelled: Sequence[Labelled], teacher: Tensor | None
) -> dict[str, Any]:
    sample: dict[str, Any] = {"pair": name, "fixed": images[0][0], "moving": images[1][0]}
    if labelled:
        sample |= {"fixed_labels": labelled[0].values()[0], "moving_labels": labelled[1].values()[0]}
    if teacher is not None:
        sample["teacher"] = teacher[0]
    return sample


def _people_held_out(settings: DataSettings, about: Mapping[str, About]) -> set[str]:
    for name in settings.held_out:
        if name not in about or about[name].split != settings.split:
            raise InputError(f"data.held_out: '{name}' is no scan of the split '{settings.split}'.")
    return {about[name].person for name in settings.held_out}


def _require_one_split(scans: Scans, pairs: PairTable) -> None:
    splits = sorted({scans.about[name].split or "none" for name in pairs.scans()})
    if len(splits) > 1:
        raise InputError(f"the pairs are of several splits ({', '.join(splits)}), which would mix their people.")


def _all_ordered(names: Sequence[str], people: Sequence[str], same_person: bool) -> PairTable:
    person = np.unique(people, return_inverse=True)[1] if people else np.empty(0, int)
    different = np.arange(len(names)) if same_person else person
    fixed, moving = np.nonzero(different[:, None] != different[None])
    return PairTable(tuple(names), fixed, moving)


def _ring(names: Sequence[str]) -> PairTable:
    """Each scan as the fixed one, with the next as the moving one."""
    places = np.arange(len(names) if len(names) > 1 else 0)
    return PairTable(tuple(names), places, np.roll(places, -1))


def _of_listed(listed: Sequence[Pair], names: Sequence[str]) -> PairTable:
    """Those of the listed pairs of which both scans are among `names`."""
    number = {name: place for place, name in enumerate(names)}
    chosen = [pair for pair in listed if pair.fixed.id in number and pair.moving.id in number]
    ends = np.array([(number[pair.fixed.id], number[pair.moving.id]) for pair in chosen], int).reshape(-1, 2)
    return PairTable(tuple(names), ends[:, 0], ends[:, 1], tuple(pair.id for pair in chosen))
