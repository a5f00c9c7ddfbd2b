"""What reaches the terminal: all of it passes here, and nothing of a stranger's file commands it.

`say` and `tell` print a line and `console` gives rich's tables, with what is not printable shown in place of sent.
Whatever else prints, such as warnings, tracebacks and other packages, meets the streams of `guard_streams`."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stepwarp.errors import OutputError
from stepwarp.printable import shown

if TYPE_CHECKING:
    from rich.console import Console


def say(line: object = "") -> None:
    """Print one line on stdout."""
    print(shown(str(line)))


def tell(line: object) -> None:
    """Print one line on stderr, at once."""
    print(shown(str(line)), file=sys.stderr, flush=True)


def say_json(content: object) -> None:
    """Print JSON on stdout, in ASCII: whatever else it holds is escaped as JSON does it."""
    text = json.dumps(content, indent=1).replace("\x7f", "\\u007f")
    print(text)


def cell(value: object) -> str:
    """A value for rich: in one line, and without the meaning that [brackets] have for it."""
    from rich.markup import escape

    return escape(shown(str(value)))


def console(stderr: bool = False, **settings: Any) -> Console:
    """A console of rich whose own commands, such as colours, reach the terminal, and those of its texts do not."""
    from rich.console import Console
    from rich.segment import Segment

    class ShownText(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for part in super().render(renderable, options):
                yield part if part.control else Segment(shown(part.text, keep="\n"), part.style)

    stream = sys.stderr if stderr else sys.stdout
    return ShownText(file=stream.stream if isinstance(stream, _Guarded) else stream, highlight=False, **settings)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """stdout and stderr show what is not printable while the block runs."""
    earlier = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Guarded(_Forgiving(stream)) for stream in earlier)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = earlier


def open_streams() -> None:
    """Make the standard streams such that printing raises nothing, however the process was started.

    Those that were closed lead nowhere: else the next file to be opened would get their descriptor, and with it what
    is printed. Letters that a stream's encoding lacks are shown as Python writes them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def exit_code(code: Any) -> Any:
    """The exit code of a command that ended with `code`, now that all is printed: another if stdout could not be
    written. A reader who has gone, as `head` does, is no error: the work is done all the same."""
    assert isinstance(sys.stdout, _Guarded)
    sys.stdout.flush()
    lost = sys.stdout.stream.lost
    if lost is None:
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python still holds and writes at its own end
    if lost.errno == errno.EPIPE:
        return code
    tell(f"stepwarp: stdout: cannot be written ({lost.strerror}).")
    return code or OutputError.exit_code


class _Forgiving(io.TextIOBase):
    """A stream that notes its first failure, and lets what is printed after it go: work is not lost over a message."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.lost: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    def write(self, text: str) -> int:
        return self._attempted(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._attempted(self.stream.flush)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def _attempted(self, action: Any, *arguments: Any) -> Any:
        try:
            return None if self.lost else action(*arguments)
        except OSError as error:
            self.lost = error
            return None


class _Guarded(_Forgiving):
    """Around a forgiving stream, which takes the commands of rich: what is written here is shown."""

    def write(self, text: str) -> int:
        super().write(shown(text, keep="\n\t"))
        return len(text)
