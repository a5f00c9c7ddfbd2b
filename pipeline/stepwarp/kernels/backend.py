"""Which back end a call of a primitive is handed to: the one rule, and how it is overruled by hand.

A back end is a package with files and functions of the names that the primitives have: `cpu.sampling.warp` computes
`sampling.warp`. It has the primitive's signature, sees tensors of single precision on one device, contiguous or not,
and knows nothing of gradients: those are for `warp_adjoint(gradient, wanted, *arguments)`, which is told for each
argument whether its gradient is wanted and returns them, None for the others; trailing ones may be left out. What a
back end lacks, the reference does, so that it grows by one function at a time.

A back end that raises `UnusableError` or cannot be imported is given up, which is said once, and the reference
computes from then on: `gpu`, where Triton is missing or cannot compile. It is taken only where it is chosen by hand,
until its tests have passed on a card. Where Triton interprets its kernels, as TRITON_INTERPRET=1 in the environment
tells it to, it then takes the processor's tensors too, so that it can be tried without a GPU.

A file's `ANY_ORDER` names those of its functions that add up in an order that changes from run to run. Where torch is
told to use deterministic algorithms they count as lacking."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stepwarp.errors import InputError
from stepwarp.kernels.precision import without_tf32

#: What may be chosen by hand, with `use` or in this variable of the environment.
CHOICES = ("reference", "cpu", "gpu")
VARIABLE = "STEPWARP_KERNELS"
#: Kind of device and axes of the tensors -> the package that is made for them.
_PACKAGES = {("cpu", 5): "cpu", ("cpu", 4): "cpu.planes", ("cuda", 5): "gpu"}
#: What their compiler is not installed for everywhere.
_OPTIONAL = {"gpu"}
#: What has passed the contract under an interpreter and not yet on a card: taken where it is asked for by hand.
_UNPROVEN = {"gpu"}
#: As many voxels of a sample have an index of 32 bits.
_MOST_VOXELS = 2**31 - 1

#: Packages that were given up.
_unusable: set[str] = set()
_by_hand: ContextVar[str | None] = ContextVar("the back end that was chosen by hand", default=None)
Function = TypeVar("Function", bound=Callable[..., Any])


class UnusableError(Exception):
    """Says why a back end cannot compute here, whatever it is given."""


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within it, only this back end is used, and the reference where it does not apply: for tests and bug hunts."""
    token = _by_hand.set(_checked(name))
    try:
        yield
    finally:
        _by_hand.reset(token)


def name_for(device: torch.device) -> str:
    """The back end that reads volumes on a device: cpu, gpu or reference."""
    package = _package([torch.empty(1, 1, 0, 0, 0, device=device)])
    return "reference" if package is None or _file(package, "sampling") is None else package


def primitive(
    *deciding: str,
    to: tuple[str, ...] = (),
    adjoint: str = "",
    function: type[torch.autograd.Function] | None = None,
    only: Mapping[str, Any] | None = None,
) -> Callable[[Function], Function]:
    """Makes of a reference the primitive: a function that hands its calls to the back end for their tensors.

    deciding: the arguments whose tensors decide; all have to fit, and the first one's axes count. to: those that a
    back end's adjoint gives a gradient to; where another wants one, the reference is taken. adjoint: its name, if it
    is not the primitive's with `_adjoint`; one of another name is called with the value and not later. function: what
    joins the two for autograd, applied to both of them and the arguments. only: the values of arguments that back ends
    are made for."""

    def decorate(reference: Function) -> Function:
        file, name = reference.__module__.rpartition(".")[2], reference.__name__
        adjoint_name = adjoint or f"{name}_adjoint"
        defaults = {parameter.name: parameter.default for parameter in inspect.signature(reference).parameters.values()}
        # Its convolutions and products make positions, on whatever device.
        plain = without_tf32()(reference)

        @functools.wraps(reference)
        def run(*positional: Any, **named: Any) -> Any:
            call = defaults | dict(zip(defaults, positional, strict=False)) | named
            package = None
            if only is None or only.items() <= call.items():
                package = _package([call[each] for each in deciding if isinstance(call[each], Tensor)])
            kernels = None if package is None else _file(package, file)
            value = _found(kernels, name)
            if value is None or package is None:
                return plain(*positional, **named)
            try:
                wanted = _wanting_gradients(call)
                if not wanted:
                    return value(*positional, **named)
                back = _found(kernels, adjoint_name)
                if back is None or not wanted <= set(to) or call.pop("out") is not None:
                    return plain(*positional, **named)
                if not adjoint:
                    back = functools.partial(_gradients, package, back, plain)
                return (function or _Joined).apply(value, back, *call.values())
            except UnusableError as error:
                _give_up(package, error)
                return plain(*positional, **named)

        return run  # type: ignore[return-value]

    return decorate


class _Joined(torch.autograd.Function):
    """A back end's function and its adjoint, which is given the arguments once more."""

    @staticmethod
    def forward(ctx, value: Callable[..., Tensor], adjoint: Callable[..., Any], *arguments: Any) -> Tensor:
        ctx.adjoint = adjoint
        ctx.others = [None if isinstance(each, Tensor) else each for each in arguments]
        ctx.save_for_backward(*(each if isinstance(each, Tensor) else None for each in arguments))
        return value(*arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
        arguments = [other if tensor is None else tensor for tensor, other in pairs]
        found = ctx.adjoint(gradient, ctx.needs_input_grad[2:], *arguments)
        return None, None, *found, *[None] * (len(arguments) - len(found))


def _gradients(
    package: str,
    adjoint: Callable[..., Any],
    reference: Callable[..., Tensor],
    gradient: Tensor,
    wanted: tuple[bool, ...],
    *arguments: Any,
) -> tuple[Tensor | None, ...]:
    """A back end's, or where it turns out to be unusable, the reference's."""
    try:
        return adjoint(gradient, wanted, *arguments)
    except UnusableError as error:
        _give_up(package, error)

    def leaf(argument: Tensor | None) -> Tensor:
        # What was not kept is not needed: the function is linear in it.
        return (torch.zeros_like(gradient) if argument is None else argument.detach()).requires_grad_()

    given = [leaf(each) if on else each for each, on in zip(arguments, wanted, strict=True)]
    leaves = [each for each, on in zip(given, wanted, strict=True) if on]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(reference(*given), leaves, gradient))
    return tuple(next(found) if on else None for on in wanted)


def _give_up(package: str, why: Exception) -> None:
    if package not in _unusable:
        _unusable.add(package)
        said = f"plain torch computes in place of the kernels '{package}', which is slower: {why}"
        warnings.warn(textwrap.shorten(said, 300), stacklevel=3)


def _package(tensors: list[Tensor]) -> str | None:
    """The rule. None: the reference."""
    if not tensors:
        return None
    first = tensors[0]
    by_hand = _by_hand.get() or _checked(os.environ.get(VARIABLE) or None)
    package = _PACKAGES.get((_kind(first.device, by_hand), first.ndim))
    if package is None or package in _unusable:
        return None
    if package.partition(".")[0] != by_hand and (by_hand is not None or package in _UNPROVEN):
        return None
    fits = all(
        each.dtype == torch.float32 and each.device == first.device and each.shape[2:].numel() <= _MOST_VOXELS
        for each in tensors
    )
    return package if fits else None


def _kind(device: torch.device, by_hand: str | None) -> str:
    """A processor counts as a GPU where Triton interprets. What torch calls cuda may be of another maker."""
    if device.type == "cpu" and by_hand == "gpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return "cuda"
    return "hip" if device.type == "cuda" and torch.version.hip else device.type


@functools.cache
def _file(package: str, file: str) -> ModuleType | None:
    """A back end's file for those of the primitives that stand in a file of that name; None where it has none."""
    module = f"{__package__}.{package}.{file}"
    try:
        return importlib.import_module(module) if find_spec(module) else None
    except ImportError as error:
        if package not in _OPTIONAL:
            raise
        _give_up(package, error)
        return None


def _found(kernels: ModuleType | None, name: str) -> Callable[..., Any] | None:
    if torch.are_deterministic_algorithms_enabled() and name in getattr(kernels, "ANY_ORDER", ()):
        return None
    return getattr(kernels, name, None)


def _wanting_gradients(call: dict[str, Any]) -> set[str]:
    if not torch.is_grad_enabled():
        return set()
    return {name for name, value in call.items() if isinstance(value, Tensor) and value.requires_grad}


def _checked(name: str | None) -> str | None:
    if name is not None and name not in CHOICES:
        raise InputError(f"the back end '{name}' ({VARIABLE}) does not exist; there are {', '.join(CHOICES)}")
    return name
