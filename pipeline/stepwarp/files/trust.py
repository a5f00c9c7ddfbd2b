"""Which statement of a header to believe, where a header makes none that can be used, or two that contradict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from stepwarp.errors import InputError

#: sform, qform: that statement of the header, whatever its code and whatever the other says. base: the voxel sizes
#: alone, axes running to the left, front and top, the centre of the image at 0 (what nibabel assumes).
Trust = Literal["sform", "qform", "base"]


@dataclass(frozen=True)
class TrustedFile:
    """A file that was placed by a rule. statement: the one taken. because: why its header alone was no answer. header:
    what that states (sform, qform), affines (4, 4) to RAS+ mm or None where they are unusable."""

    file: str
    statement: Trust
    because: str
    header: dict[str, list[list[float]] | None]

    def __str__(self) -> str:
        return f"{self.file}: placed by its {self.statement}, as asked for, because {self.because}"


class TrustRules:
    """What to believe in which file, and what came of that.

    words: a statement, for every file, or FILE=statement for one, FILE being its path or its name alone. A rule touches
    only files that would be refused without it: a header that is in order is taken at its word. Raises InputError for a
    statement that does not exist."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self.words = tuple(words)
        self._rules = [_rule(word) for word in self.words]
        self._in_order: set[str] = set()
        self._files: list[TrustedFile] = []

    @classmethod
    def of(cls, given: str | Iterable[str] | TrustRules | None) -> TrustRules:
        """Rules as they are, or made of a word, several words, or none."""
        if isinstance(given, TrustRules):
            return given
        return cls(() if given is None else (given,) if isinstance(given, str) else given)

    def choice(self, name: str) -> Trust | None:
        """The statement to believe in a file; the rule for it alone comes before the one for all."""
        found = [(file, trust) for file, trust in self._rules if file is None or _is_called(name, file)]
        named = [trust for file, trust in found if file is not None]
        return next(iter(named or [trust for _, trust in found]), None)

    def followed(self, name: str, statement: Trust, because: str, header: Mapping[str, np.ndarray | None]) -> None:
        """A file was placed by a rule."""
        if all(each.file != name for each in self._files):
            affines = {form: None if affine is None else affine.tolist() for form, affine in header.items()}
            self._files.append(TrustedFile(name, statement, because, affines))

    def needless(self, name: str) -> None:
        """A file's header was in order."""
        self._in_order.add(name)

    def about(self, files: Iterable[str | Path]) -> tuple[str, ...]:
        """The words that are about all files or about one of these."""
        names = [str(file) for file in files]
        rules = zip(self.words, self._rules, strict=True)
        return tuple(word for word, (file, _) in rules if file is None or any(_is_called(name, file) for name in names))

    def notes(self) -> tuple[str, ...]:
        """A sentence for each file that a rule placed, and for each rule that placed none."""
        return tuple(map(str, self._files)) + tuple(
            f"--trust {word} changed nothing: {self._why_not(file)}"
            for word, (file, _) in zip(self.words, self._rules, strict=True)
            if not any(file is None or _is_called(each.file, file) for each in self._files)
        )

    def record(self) -> list[dict[str, Any]]:
        """The files that rules placed, JSON-ready: file, statement, because, header."""
        return [asdict(each) for each in self._files]

    def _why_not(self, file: str | None) -> str:
        if file is None or any(_is_called(name, file) for name in self._in_order):
            return "the header is in order and was taken at its word"
        return "no such file was read"


def _rule(word: str) -> tuple[str | None, Trust]:
    file, _, statement = word.rpartition("=")
    for trust in get_args(Trust):
        if statement == trust:
            return file or None, trust
    raise InputError(f"--trust {word}: {statement} is none of {', '.join(get_args(Trust))}.")


def _is_called(name: str, file: str) -> bool:
    """Whether a file read as `name` is the one that a rule calls `file`: the same path, or its last part."""
    return name == file or Path(name).name == file or Path(name).absolute() == Path(file).absolute()
