"""Which back end a call goes to."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

from stepwarp.errors import InputError
from stepwarp.kernels import backend, sampling, smoothing
from stepwarp.kernels.gpu.launching import launch

IMAGE, STILL, SAME = torch.rand(1, 1, 4, 5, 6), torch.zeros(1, 3, 4, 5, 6), torch.eye(4, dtype=torch.float64)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the back ends of the processor are called for."""
    from stepwarp.kernels.cpu import planes, smoothing
    from stepwarp.kernels.cpu import sampling as volumes

    seen: list[str] = []
    planes = importlib.import_module(f"{planes.__name__}.sampling")
    for module, names in ((volumes, ("sample", "warp")), (planes, ("warp",)), (smoothing, ("convolve_axes",))):
        for name in names:
            function, label = getattr(module, name), f"{module.__name__.removeprefix('stepwarp.kernels.')}.{name}"
            monkeypatch.setattr(
                module, name, lambda *a, function=function, label=label, **k: seen.append(label) or function(*a, **k)
            )
    return seen


def test_single_precision_on_the_processor_is_compiled_and_all_else_the_reference(calls: list[str]):
    moved = sampling.warp(IMAGE, STILL, SAME)
    assert torch.equal(moved, IMAGE)
    assert calls == ["cpu.sampling.warp"]
    sampling.warp(IMAGE[..., 0], STILL[:, :2, ..., 0], torch.eye(3))
    assert calls[1:] == ["cpu.planes.sampling.warp"]
    sampling.warp(IMAGE.double(), STILL.double(), SAME)
    sampling.warp(IMAGE.half(), STILL, SAME)
    sampling.warp(IMAGE[..., 0, 0], STILL[:, :1, ..., 0, 0], torch.eye(2))
    sampling.warp(IMAGE, STILL, SAME, "nearest")
    assert len(calls) == 2


def test_a_gradient_that_a_back_end_has_no_adjoint_for_is_the_references(calls: list[str]):
    from stepwarp.kernels.cpu import sampling as volumes

    sampling.warp(IMAGE, STILL.clone().requires_grad_(), SAME)
    assert calls == ["cpu.sampling.warp"]
    matrix = SAME.clone().requires_grad_()
    sampling.warp(IMAGE, STILL, matrix).sum().backward()
    assert matrix.grad is not None
    assert calls.count("cpu.sampling.warp") == 1, "by `sample`, as the reference has it"
    assert not hasattr(volumes, "compose_step_adjoint")
    step = STILL.clone().requires_grad_()
    sampling.compose_step(STILL, step, 1.0, 1.0).sum().backward()
    assert step.grad is not None


def test_by_hand_in_a_context_and_by_the_environment(calls: list[str], monkeypatch: pytest.MonkeyPatch):
    for name, count in (("reference", 0), ("gpu", 0), ("cpu", 1)):
        calls.clear()
        with backend.use(name):
            sampling.warp(IMAGE, STILL, SAME)
        assert len(calls) == count, name
        calls.clear()
        monkeypatch.setenv("STEPWARP_KERNELS", name)
        sampling.warp(IMAGE, STILL, SAME)
        assert len(calls) == count, name
        assert backend.name_for(IMAGE.device) == ("cpu" if count else "reference")
    monkeypatch.setenv("STEPWARP_KERNELS", "reference")
    with backend.use("cpu"):
        sampling.warp(IMAGE, STILL, SAME)
    assert len(calls) == 2, "the nearer choice counts"
    monkeypatch.setenv("STEPWARP_KERNELS", "tpu")
    with pytest.raises(InputError, match=r"'tpu'.*STEPWARP_KERNELS.*reference, cpu, gpu"):
        sampling.warp(IMAGE, STILL, SAME)
    with pytest.raises(InputError, match="tpu"), backend.use("tpu"):
        pass


def test_a_back_end_grows_by_one_function_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """One that has nothing but `warp`, without an adjoint, in place of the processor's."""
    ours = ModuleType("stepwarp.kernels.new.sampling")
    ours.warp = lambda image, displacement, *rest, **named: torch.full_like(image, 5.0)
    monkeypatch.setitem(backend._PACKAGES, ("cpu", 5), "new")
    monkeypatch.setattr(backend, "_file", lambda package, file: ours if file == "sampling" else None)
    assert (sampling.warp(IMAGE, STILL, SAME) == 5).all()
    same = sampling.resize_displacement(STILL, (4, 5, 6), SAME)
    assert (same == 5).all(), "the reference is made of primitives"
    with_gradient = sampling.warp(IMAGE, STILL.clone().requires_grad_(), SAME)
    torch.testing.assert_close(with_gradient.detach(), IMAGE)
    torch.testing.assert_close(smoothing.gaussian(torch.ones_like(IMAGE), 1.0), torch.ones_like(IMAGE))
    assert backend.name_for(IMAGE.device) == "new"
    ours.ANY_ORDER = {"warp"}
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    torch.testing.assert_close(sampling.warp(IMAGE, STILL, SAME), IMAGE)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process whose Triton interprets: the back end for GPUs is asked first, and was not given up before."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("STEPWARP_KERNELS", "gpu")
    monkeypatch.setattr(backend, "_unusable", set())
    found_so_far = backend._file
    found_so_far.cache_clear()
    yield
    found_so_far.cache_clear()


def test_without_triton_plain_torch_computes_and_it_is_said_once(interpreted, monkeypatch: pytest.MonkeyPatch):
    for module in [name for name in sys.modules if name.startswith("stepwarp.kernels.gpu.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(UserWarning, match=r"plain torch .* 'gpu'.* triton") as said:
        found = [sampling.warp(IMAGE, STILL, SAME), smoothing.gaussian(IMAGE, 1.0), sampling.warp(IMAGE, STILL, SAME)]
    assert len(said) == 1
    torch.testing.assert_close(found[0], IMAGE)
    assert "\n" not in str(said[0].message)
    assert backend.name_for(IMAGE.device) == "reference"


class DoesNotCompile:
    """A kernel as `launch` starts it."""

    def __class_getitem__(cls, grid: tuple[int, int]) -> None:
        raise RuntimeError("no such\ninstruction")


def does_not_compile(*arguments: object, **named: object) -> None:
    launch(DoesNotCompile, 120, 1, IMAGE)


CALLS = {
    "warp": lambda image: sampling.warp(image, STILL, SAME),
    "convolve_axes": lambda image: smoothing.convolve_axes(image, torch.tensor([0.25, 0.5, 0.25])),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fails", ["", "_adjoint"], ids=["itself", "its gradient"])
def test_where_a_kernel_does_not_compile_plain_torch_computes(name: str, fails: str, interpreted, monkeypatch):
    """Also where it is but that of the gradient, which is found out later."""
    ours = ModuleType("stepwarp.kernels.gpu.anything")
    setattr(ours, name, lambda field, *rest, **named: torch.zeros_like(field))
    setattr(ours, f"{name}_adjoint", does_not_compile)
    setattr(ours, name + fails, does_not_compile)
    monkeypatch.setattr(backend, "_file", lambda package, file: ours)
    image, direction = IMAGE.clone().requires_grad_(), torch.rand_like(IMAGE)
    assert backend.name_for(IMAGE.device) == "gpu"
    with pytest.warns(UserWarning, match=r"plain torch .* 'gpu'.* DoesNotCompile: no such instruction") as said:
        found = [*torch.autograd.grad(CALLS[name](image), image, direction), CALLS[name](image).detach()]
    assert len(said) == 1
    assert backend.name_for(IMAGE.device) == "reference"
    with backend.use("reference"):
        expected = CALLS[name](image)
    torch.testing.assert_close(found, [*torch.autograd.grad(expected, image, direction), expected.detach()])


def test_what_is_wrong_with_a_call_is_not_taken_for_that(interpreted, monkeypatch: pytest.MonkeyPatch):
    ours = ModuleType("stepwarp.kernels.gpu.sampling")

    def refuse(*given, **named):
        raise ValueError("`out` is of another shape")

    ours.warp = refuse
    monkeypatch.setattr(backend, "_file", lambda package, file: ours)
    with pytest.raises(ValueError, match="another shape"):
        sampling.warp(IMAGE, STILL, SAME)
    assert backend.name_for(IMAGE.device) == "gpu"


def test_back_ends_have_the_files_and_functions_of_the_primitives():
    """Whatever is public in a file of a primitive's name: a function that is misspelt would never be called."""
    import stepwarp.kernels as kernels

    seen = []
    packages = [each for each in backend._PACKAGES.values() if each != "gpu" or find_spec("triton")]
    files = {module.name for module in pkgutil.iter_modules(kernels.__path__) if not module.ispkg}
    for package in packages:
        within = importlib.import_module(f"stepwarp.kernels.{package}")
        for found in pkgutil.iter_modules(within.__path__):
            if found.name not in files:
                continue
            theirs = importlib.import_module(f"{within.__name__}.{found.name}")
            ours = importlib.import_module(f"stepwarp.kernels.{found.name}")
            own = [name for name, value in vars(theirs).items() if getattr(value, "__module__", "") == theirs.__name__]
            for name in own:
                known = name.removesuffix("_adjoint").removesuffix("_with_gradients")
                assert name.startswith("_") or hasattr(ours, known), f"{theirs.__name__}.{name}"
                seen.append(f"{package}.{found.name}.{name}")
    assert {"cpu.sampling.warp_adjoint", "cpu.planes.sampling.warp"} <= set(seen)
    if "gpu" in packages:
        assert {"gpu.sampling.warp_adjoint", "gpu.descriptors.self_similarity_adjoint"} <= set(seen)
