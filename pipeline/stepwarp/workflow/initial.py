"""A user's start: where a registration begins in place of a search among hundreds of starts.

A linear one is where the linear stage begins, or, without that stage, the linear part as it is. One with a field is cut
in two: the affine that is nearest to it in the subject, which nothing moves any more, and what is left, from which the
deformable stage goes on. Together they are the start, so that the result's files hold the whole transform."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepwarp.errors import InputError
from stepwarp.evaluation.regularity import regularity
from stepwarp.files import TrustRules, sha256
from stepwarp.geometry import Affine, Composition, DisplacementField, Transform
from stepwarp.kernels import sampling
from stepwarp.losses.similarities.mi import MutualInformation
from stepwarp.options import START_WORDS, RegisterOptions
from stepwarp.printable import counted
from stepwarp.registrar.subject import ImagedSubject
from stepwarp.workflow.folders import Link, RegistrationFolder, result_at
from stepwarp.workflow.journey import link_of, load
from stepwarp.workflow.subjects import PreparedImage
from stepwarp.workflow.verdict import FOLD_SHARE_FAIL, foreground

#: Of what the smaller of the two subjects could match, the share that a start must send to the other one.
_LEAST_OVERLAP = 0.3
#: Of what the images share without a start's field, the least that they must share under it.
_LEAST_KEPT = 0.8
#: A field that is nowhere in the subject further from an affine than this part of a voxel is that affine.
_STRAIGHT = 0.05
#: So many times more of their information the images share under what was likely meant.
_OTHERS_GAIN = 1.25
#: Voxels of the subject that are looked at.
_POINTS = 20_000


@dataclass(frozen=True, eq=False)
class Stated:
    """What a user gave, read. transform: None for the centres of mass. name: what messages call it. inverse: how
    its inverse is given; None if it is in no file. files: each with its digest. pair: SHA-256 of the fixed and the
    moving image of the one result that it is, where those are known."""

    transform: Transform | None
    name: str
    inverse: str | None = None
    files: tuple[dict[str, Any], ...] = ()
    pair: tuple[str | None, str | None] = (None, None)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Initial:
    """Where to begin.

    affine: fixed world -> moving world. refined: whether the linear stage goes on from it. warp: fixed world -> fixed
    world before the affine, on the fixed grid; None for a linear start. finest_mm: voxels of the finest grid that the
    start was given on. record: for registration.json. notes, checks: sentences for the verdict, to be known and to be
    looked at."""

    affine: Affine
    refined: bool
    warp: DisplacementField | None
    finest_mm: float
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()

    def dropped(self, reason: str) -> Initial:
        """The same without its deformation, which is not to be used after all."""
        check = f"the deformation of {self.record['name']} was not used, the search ran from its affine: {reason}"
        return replace(self, warp=None, record=self.record | {"dropped": reason}, checks=(*self.checks, check))


def read_start(options: RegisterOptions, trust: TrustRules) -> Stated | None:
    """The start that the options ask for; None where the linear stage is to search.

    Raises InputError as `journey.load`, and for what is no transform of 3D space."""
    given = options.initial
    if not given:
        return (
            Stated(Affine.identity(3), "--transform none (as the headers lie)") if options.transform == "none" else None
        )
    if isinstance(given[0], str) and given[0] in START_WORDS:
        return Stated(None if given[0] == "centres" else Affine.identity(3), f"--initial {given[0]}")
    parts: list[Transform] = []
    files: list[dict[str, Any]] = []
    notes: list[str] = []
    names: list[str] = []
    for each in given:
        if isinstance(each, str):
            read = load((link_of(each),), trust)
            parts.append(read.transform)
            files += [_described(link) for link in read.files]
            notes += read.notes
        else:
            parts.append(_checked(each))
            files.append({"path": None, "sha256": None, "inverted": False})
        names.append(each if isinstance(each, str) else "a transform in hand")
    pair, failed = _pair_of(given)
    notes += ["the verdict on the registration that this one begins with was: fail"] if failed else []
    return Stated(
        Composition.of(*reversed(parts)),
        f"--initial {', then '.join(names)}",
        _inverse_of(given),
        tuple(files),
        pair,
        tuple(notes),
    )


def begin(stated: Stated, fixed: PreparedImage, moving: PreparedImage, options: RegisterOptions) -> Initial:
    """The start, brought to the two images.

    Raises InputError for one that mirrors or folds, that sends the fixed subject beside the moving one, that is for the
    two images the other way round, or whose deformation does not belong to them; and where the options leave nothing
    to do with it."""
    subject = _Subject(fixed, moving)
    transform = subject.centred() if stated.transform is None else stated.transform
    affine = transform if isinstance(transform, Affine) else subject.fitted(transform, stated.name)
    linear = subject.is_straight(transform, affine)
    if not linear and options.weights is not None:
        raise InputError(f"{stated.name}: deforms, and so does the network of --weights. Leave one of them out.")
    if not linear and options.affine_only:
        raise InputError(f"{stated.name}: deforms, and --affine-only ends before that. Leave one of them out.")
    notes = [*stated.notes, *_other_pair(stated, fixed, moving)]
    if np.linalg.det(affine.matrix[:-1, :-1]) <= 0:
        volume = float(np.linalg.det(affine.matrix[:-1, :-1]))
        raise InputError(f"{stated.name}: mirrors the subject (determinant {volume:.3g}). Compute it again.")
    overlap = subject.overlap(transform)
    if overlap < subject.least:
        raise InputError(subject.beside(transform, affine, overlap, stated))
    refined = linear and options.transform != "none"
    record = {
        "name": stated.name,
        "files": list(stated.files),
        "kind": "linear" if linear else "deformable",
        "refined": refined,
        "overlap": overlap,
        "information": subject.information(transform),
        "affine": affine.matrix.tolist(),
    }
    about = f"the search began at {stated.name}, which sends {overlap:.0%} of the fixed subject to the moving one; "
    about += "its linear part was " + (f"refined ({options.transform})" if refined else "kept as it is")
    initial = Initial(affine, refined, None, 0.0, record, (about, *notes))
    if not linear:
        return _with_field(initial, transform, subject)
    return initial if refined else _with_others_tried(initial, subject)


def digest(texts: tuple[str, ...]) -> str:
    """What a start given as texts is made of: the word, or a digest for each file and direction.

    Raises InputError for files that are not there."""
    if texts[0] in START_WORDS:
        return texts[0]
    links = [link for text in texts for link in link_of(text).files()]
    return ", ".join(f"{sha256(link.path)}{' inverted' if link.inverted else ''}" for link in links)


class _Subject:
    """The two subjects, as a start is measured on them: points of the fixed one, and the box of the moving one."""

    def __init__(self, fixed: PreparedImage, moving: PreparedImage) -> None:
        self.fixed, self.moving = fixed.scaled, moving.scaled
        self.inside = foreground(fixed.scaled, fixed.mask)
        index = self.inside.nonzero()
        self.index = index[:: max(1, len(index) // _POINTS)]
        self.points = fixed.scaled.grid.world(self.index.numpy().astype(float))
        whole = ImagedSubject(moving.scaled)
        self.box = whole.low - 0.5, whole.high - 0.5
        self._sides = ImagedSubject(fixed.scaled, fixed.mask), ImagedSubject(moving.scaled, moving.mask)
        self.least = _LEAST_OVERLAP * min(1.0, whole.volume / self._sides[0].volume)

    def centred(self) -> Affine:
        """The translation that puts the centres of mass on each other."""
        ours, theirs = (side.centre_of_mass() for side in self._sides)
        return Affine(np.column_stack([np.eye(len(ours)), theirs - ours]))

    def fitted(self, transform: Transform, name: str) -> Affine:
        """The affine nearest to a transform in the fixed subject, by least squares."""
        centre = self.points.mean(0)
        system = np.column_stack([self.points - centre, np.ones(len(self.points))])
        rows, *_ = np.linalg.lstsq(system, transform(self.points), rcond=None)
        linear = rows[:-1].T
        try:
            return Affine(np.column_stack([linear, rows[-1] - linear @ centre]))
        except ValueError as error:
            raise InputError(
                f"{name}: sends the fixed subject into a plane, a line or a point. Compute it again."
            ) from error

    def is_straight(self, transform: Transform, affine: Affine) -> bool:
        """Whether a transform is an affine in the subject, though it may be stored as a field."""
        away = np.linalg.norm(transform(self.points) - affine(self.points), axis=1)
        return bool(away.max() <= _STRAIGHT * self.fixed.grid.spacing.min())

    def overlap(self, transform: Transform) -> float:
        """The share of the fixed subject that lands in the box of the moving one."""
        index = self.moving.grid.index(transform(self.points))
        low, high = self.box
        return round(float(((index >= low) & (index <= high)).all(1).mean()), 5)

    def information(self, transform: Transform) -> float:
        """The share of their information that the images have in common in the fixed subject."""
        index = torch.from_numpy(self.moving.grid.index(transform(self.points)).T[None]).float()
        moved = sampling.sample(self.moving.data[None, None].float(), index)
        there = self.fixed.data[tuple(self.index.T)].float()[None, None]
        return round(1 - float(MutualInformation()(there, moved)), 5)

    def beside(self, transform: Transform, affine: Affine, overlap: float, stated: Stated) -> str:
        """Why a start is refused that sends the fixed subject beside the moving one, and what to do."""
        low, high = self.box
        middle = self.moving.grid.world((low + high) / 2)
        away = float(np.linalg.norm(transform(self.points).mean(0) - middle))
        said = f"{stated.name}: sends {overlap:.0%} of the fixed subject to the moving one"
        said += f", their middles {away:.3g} mm apart"
        back = self.overlap(affine.inverse())
        if stated.inverse is not None and back >= max(self.least, 2 * overlap):
            return f"{said}; its inverse sends {back:.0%}. Give that: --initial {stated.inverse}."
        remedy = "Give another start" if stated.files else "Give --initial centres"
        return f"{said}. {remedy}, or leave it out: the search finds its own."


def _with_others_tried(initial: Initial, subject: _Subject) -> Initial:
    """The start with a remark where something simpler fits better: nothing that follows would find that."""
    name, here = initial.record["name"], initial.record["information"]
    others = {"their centres on each other": subject.centred(), f"the inverse of {name}": initial.affine.inverse()}
    shared = {words: subject.information(transform) for words, transform in others.items()}
    words = max(shared, key=shared.__getitem__)
    if shared[words] < _OTHERS_GAIN * here:
        return initial
    check = (
        f"{words} would make the images more alike than {name} does: they share {shared[words]:.3f} of their "
        f"information, and {here:.3f} as it is"
    )
    return replace(initial, checks=(*initial.checks, check))


def _with_field(initial: Initial, transform: Transform, subject: _Subject) -> Initial:
    """The start with what is left of it before its affine. InputError where it folds, and where the images are less
    alike than with its affine alone, or with their centres on each other."""
    name, whole = initial.record["name"], initial.record["information"]
    warp = Composition.of(initial.affine.inverse(), transform).on(subject.fixed.grid)
    folds = regularity(warp, subject.inside).corner_folds
    if folds.share > FOLD_SHARE_FAIL:
        raise InputError(
            f"{name}: folds in {folds.share:.2%} of the fixed subject ({counted(folds.count, 'voxel')}), and cannot be "
            "inverted there. Compute it again, smoother, or give an affine alone."
        )
    linear, centred = (subject.information(each) for each in (initial.affine, subject.centred()))
    shared = (
        f"they share {whole:.3f} of their information under it, {linear:.3f} under its affine alone and {centred:.3f} "
        "with their centres on each other"
    )
    if whole < _LEAST_KEPT * max(linear, centred):
        raise InputError(
            f"{name}: deforms, but not these two images into each other: {shared}. Check the pair and the direction, "
            "or give an affine alone, which is refined."
        )
    notes, checks = initial.notes, initial.checks
    if whole < max(linear, centred):
        checks = (*checks, f"the field of {name} makes the images less alike: {shared}")
    if folds.count:
        notes = (*notes, f"{name} folds in {counted(folds.count, 'voxel')}, and was smoothed there")
    fields = [part.grid for part in _parts(transform) if isinstance(part, DisplacementField)]
    return replace(
        initial,
        warp=warp,
        finest_mm=min(float(grid.spacing.max()) for grid in fields),
        record=initial.record | {"information_affine": linear, "corner_folds": vars(folds)},
        notes=notes,
        checks=checks,
    )


def _parts(transform: Transform) -> tuple[Transform, ...]:
    return transform.parts if isinstance(transform, Composition) else (transform,)


def _checked(given: Any) -> Transform:
    if not isinstance(given, Transform):
        raise InputError(
            f"initial: {type(given).__name__} is no start. Give a path, header, centres, or a Transform of stepwarp."
        )
    if given.ndim != 3 or len(given) != 1:
        raise InputError(f"initial: {given} is no single transform of 3D space. Give one.")
    return given


def _described(link: Link) -> dict[str, Any]:
    return {"path": str(link.path.resolve()), "sha256": sha256(link.path), "inverted": link.inverted}


def _inverse_of(given: tuple[Any, ...]) -> str | None:
    if not all(isinstance(each, str) for each in given):
        return None
    return " --initial ".join(f"'{link_of(each).flipped()}'" for each in reversed(given))


def _pair_of(given: tuple[Any, ...]) -> tuple[tuple[str | None, str | None], bool]:
    """The digests of the images that a start was found between, in its own direction, if it is the folder of one
    registration; and whether the verdict on that was fail."""
    link = link_of(given[0]) if len(given) == 1 and isinstance(given[0], str) else None
    result = None if link is None else result_at(link.path)
    if link is None or not isinstance(result, RegistrationFolder):
        return (None, None), False
    fixed, moving = (result.inputs[side].get("sha256") for side in ("fixed", "moving"))
    return ((moving, fixed) if link.inverted else (fixed, moving)), result.failed


def _other_pair(stated: Stated, fixed: PreparedImage, moving: PreparedImage) -> list[str]:
    """A note where a start is the result of other files. InputError where it is that of these the other way round."""
    if None in stated.pair:
        return []
    ours = tuple(sha256(image.source) if isinstance(image.source, str | Path) else None for image in (fixed, moving))
    if None in ours or ours == stated.pair:
        return []
    if ours == stated.pair[::-1]:
        raise InputError(
            f"{stated.name}: goes from the moving image to the fixed one. Give its inverse: --initial {stated.inverse}."
        )
    return [f"{stated.name} is the result of other files than these two"]
