"""What can go wrong for a user's reason, each kind with the exit code that the commands return for it."""

from __future__ import annotations


class StepwarpError(Exception):
    """An error to show to the user as one line: what is wrong, with what, and what to do about it."""

    exit_code = 1


class InputError(StepwarpError):
    """A file or an argument cannot be used as it is."""

    exit_code = 3


class OutputError(StepwarpError):
    """A result cannot be written: no space, no permission, or it is there already."""

    exit_code = 4


class VerificationError(StepwarpError):
    """What was written does not say what was computed: the files must not be used."""

    exit_code = 5


class RegistrationError(StepwarpError):
    """The optimisation itself broke down (a singular affine, a loss that is not a number)."""

    exit_code = 6
