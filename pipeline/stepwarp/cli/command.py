"""What all commands share: an error is one line on stderr and an exit code."""

from __future__ import annotations

import errno
import signal as signals
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from stepwarp.cli.terminal import tell
from stepwarp.errors import (
    OutputError,
    RegistrationError,
    StepwarpError,
    first_line,
    is_gpu_failure,
    is_out_of_memory,
)

VERDICT_FAIL, OUT_OF_MEMORY, INTERRUPTED = 7, 8, 130

#: For the end of each --help; the first character keeps the lines as they are.
EXIT_CODES = """\b
Exit codes:
  0    done
  1    a bug in stepwarp (--verbose shows where)
  2    wrong usage: an unknown option, or a value out of range
  3    a file or an argument cannot be used as it is
  4    a result cannot be written: no space, no permission, or it is there already
  5    the written files do not say what was computed, and are not kept
  6    the registration itself broke down
  7    everything is written, but the verdict on the registration is: fail
  8    out of memory
  130  interrupted (Ctrl-C); 143 terminated, 129 hung up. No file is left half-written."""

#: Former names of options, which are still understood.
FORMER = {"--no-escalation": "--no-escalate"}

#: What the system says when it does not let a file be written.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class Terminated(KeyboardInterrupt):
    """SIGTERM and its like, as they come from a scheduler: treated like Ctrl-C. The argument is the signal's number."""

    @property
    def exit_code(self) -> int:
        """As a shell gives it to a process that a signal ended."""
        return 128 + int(self.args[0] if self.args else signals.SIGTERM)


class Command(TyperCommand):
    """A command that ends in one line and an exit code, whatever goes wrong.

    An unexpected error shows its traceback only if the command has --verbose and it is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for former, name in FORMER.items():
            if former in args:
                tell(f"stepwarp: {former} is now called {name}")
                args = [name if arg == former else arg for arg in args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except KeyboardInterrupt as signal:
            if isinstance(signal, Terminated):
                _end("terminated", signal.exit_code)
            _end("interrupted", INTERRUPTED)
        except StepwarpError as error:
            _end(str(error), error.exit_code)
        except Exception as error:
            self._end_unforeseen(error, bool(ctx.params.get("verbose")))

    def _end_unforeseen(self, error: Exception, verbose: bool) -> NoReturn:
        if verbose:
            traceback.print_exception(error)
        if is_out_of_memory(error):
            _end(
                "out of memory. Free some, raise the limit of the job or of `ulimit -v`, or work on smaller images; in "
                "register, --preset fast needs less.",
                OUT_OF_MEMORY,
            )
        if is_gpu_failure(error):
            _end(f"the GPU failed ({first_line(error)}). Use --device cpu.", RegistrationError.exit_code)
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            _end(f"{error.filename or 'a result'}: cannot be written ({error.strerror}).", OutputError.exit_code)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "" if verbose else " Run it again with --verbose to see where."
        _end(f"this is a bug in stepwarp, please report it ({what}).{hint}", 1)


def _end(message: str, code: int) -> NoReturn:
    tell(f"stepwarp: {message}")
    raise typer.Exit(code)
