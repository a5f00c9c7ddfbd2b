"""Text for people: numbers with what they count, and what may come from a stranger's file, made so that it can be
looked at and commands nothing."""

from __future__ import annotations

import re
import unicodedata

#: Controls, formats (bidirectional and zero-width ones), surrogates, private and unassigned ones, ends of lines.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
#: Letters and marks by their class that no terminal draws: fillers, joiners, selectors of a variant.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def shown(text: str, keep: str = "") -> str:
    """The text in one line, with every character that is not seen as Python writes it: \\x1b, \\n, \\u202e.

    A byte of a file name that is not UTF-8 is a lone surrogate in Python, 0xF6 is \\udcf6. What is shown already stays
    as it is. keep: characters that are left alone."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or _is_seen(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def is_name(text: str) -> bool:
    """Whether a text can name a file without a trick: all of it is seen, but for bytes that are not UTF-8."""
    return bool(text.strip()) and all(c.isprintable() or "\udc80" <= c <= "\udcff" for c in text)


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with what it counts: "1 file", "2 files", "0 voxels fold"; as `worded`."""
    return f"{number} {worded(number, one, many)}"


def worded(number: int, one: str, many: str | None = None) -> str:
    """The form of a word, or of a phrase, that goes with a number. many: for others than 1, with an s by default."""
    return one if number == 1 else many or f"{one}s"


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN and not _BLANK.match(character)
