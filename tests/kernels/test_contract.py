"""What every primitive promises, for every back end: `BACKENDS` is all that a new one has to be added to.

What a back end lacks is done by the reference and passes here as well; that it is used where it has something is for
`test_backend`. Where Triton interprets its kernels, in a process that `gpu/test_interpreted` starts, this is all about
the back end for GPUs, on the processor."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stepwarp.kernels import backend, correlation, descriptors, information, jacobian, sampling, smoothing

#: name -> the device that its tensors are on
BACKENDS = {"gpu": "cpu"} if os.environ.get("TRITON_INTERPRET") == "1" else {"cpu": "cpu", "gpu": "cuda"}
VOLUMES = [(9, 12, 7), (1, 8, 7), (6, 1, 5), (1, 1, 4), (2, 2, 2)]
SHAPES = [*VOLUMES, (9, 12), (5, 1), (1, 7)]
MATRIX = torch.tensor(
    [[0.9, 0.1, -0.05, 0.413], [-0.15, 1.1, 0.1, -0.707], [0.05, -0.1, 0.95, 0.623], [0, 0, 0, 1]], dtype=torch.float64
)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.gpu] * (kind == "cuda")) for name, kind in BACKENDS.items()]
)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A back end's device, while that back end is chosen, which must not be given up."""
    found = torch.device(BACKENDS[request.param])
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with backend.use(request.param):
        yield found
        assert backend.name_for(found) == request.param


@dataclass(frozen=True)
class Primitive:
    """A primitive with its settings, as a function of tensors of these kinds (see `drawn`), also given `out`.

    to: which of them receive gradients. close: how far from the reference, as a share of its largest value. least: the
    voxels along each axis that it needs to say anything."""

    call: Callable[..., Tensor]
    kinds: str
    to: tuple[int, ...] = ()
    close: float = 1e-4
    least: int = 1


def matrix(like: Tensor) -> Tensor:
    """Index to index, for tensors (B, C, *grid)."""
    d = like.ndim - 2
    return MATRIX[[*range(d), 3]][:, [*range(d), 3]]


def lncc(radius: int, epsilon: float) -> Callable[..., Tensor]:
    def call(f: Tensor, m: Tensor, w: Tensor | None = None, **out: Tensor) -> Tensor:
        return correlation.correlation(f, m, w, None, radius, epsilon, **out)

    return call


def prepared(f: Tensor, m: Tensor, w: Tensor, **out: Tensor) -> Tensor:
    known = correlation.of_fixed(f, w, 2, 1e-3)
    return correlation.correlation(f, m, w, known, 2, 1e-3, **out)


PRIMITIVES = {
    "sample": Primitive(lambda image, u, **out: sampling.sample(image, 2 * u + 3, **out), "other u", (0, 1)),
    "sample points": Primitive(
        lambda image, u, **out: sampling.sample(image, 2 * u.flatten(2) + 3, outside="border", **out),
        "other u",
        (0, 1),
    ),
    "warp": Primitive(lambda image, u, **out: sampling.warp(image, u, matrix(u), **out), "other u", (0, 1)),
    "warp to the border": Primitive(
        lambda image, u, **out: sampling.warp(image, u, matrix(u), outside="border", **out), "other u", (0, 1)
    ),
    "warp to the nearest": Primitive(
        lambda image, u, **out: sampling.warp(image, u, matrix(u), "nearest", **out), "other u", (0,)
    ),
    "warp_linear": Primitive(
        lambda image, matrix, **out: sampling.warp_linear(image, matrix, (4, 5, 6)[: len(matrix[0]) - 1], **out),
        "one matrices",
        (1,),
    ),
    "warp_linear to the border": Primitive(
        lambda image, matrix, **out: sampling.warp_linear(
            image, matrix, (4, 5, 6)[: len(matrix[0]) - 1], "border", **out
        ),
        "one matrices",
        (1,),
    ),
    "compose": Primitive(sampling.compose, "u u", (0, 1)),
    "compose two grids": Primitive(lambda a, b, **out: sampling.compose(a, b, matrix(b), **out), "u u", (0, 1)),
    "compose_step": Primitive(
        lambda u, step, **out: sampling.compose_step(u, step, torch.tensor(0.7, dtype=torch.float64), 0.9, **out),
        "u u",
        (0, 1),
    ),
    "resize_displacement": Primitive(
        lambda u, **out: sampling.resize_displacement(u, (5, 8, 6)[: u.shape[1]], matrix(u), **out), "u", (0,)
    ),
    "scaled_gradient": Primitive(sampling.scaled_gradient, "scalar scalar", (0, 1)),
    "convolve_axes": Primitive(
        lambda field, **out: smoothing.convolve_axes(field, smoothing.gaussian_kernel(1.3), **out), "image", (0,)
    ),
    "convolve_axes, a little": Primitive(
        lambda field, **out: smoothing.convolve_axes(field, smoothing.gaussian_kernel(0.5), **out), "u", (0,)
    ),
    "determinant": Primitive(jacobian.determinant, "u", (0,)),
    "volume_change_gradient": Primitive(jacobian.volume_change_gradient, "u"),
    "smallest_corner_determinant": Primitive(jacobian.smallest_corner_determinant, "u", (0,)),
    "invert": Primitive(lambda u, **out: jacobian.invert(u, iterations=100, **out), "smooth", close=5e-3),
    "box_sum": Primitive(lambda image, **out: correlation.box_sum(image, 2, **out), "image", (0,)),
    **{
        f"correlation {radius}{' weighted' * weighted}": Primitive(
            lncc(radius, epsilon), "grey grey" + " weight" * weighted, (0, 1), 5e-3
        )
        for radius, epsilon in ((1, 1e-3), (2, 1e-4), (3, 1e-3))
        for weighted in (False, True)
    },
    "correlation prepared": Primitive(prepared, "grey grey weight", (1,), 5e-3),
    "joint_histogram": Primitive(
        lambda f, m, w, **out: information.joint_histogram(f, m, w, 8, **out), "grey grey weight", (0, 1)
    ),
    "self_similarity": Primitive(
        lambda image, **out: descriptors.self_similarity(image, None, 1, 0.8, **out), "grey", (0,), 1e-2, 2
    ),
    "self_similarity weighted": Primitive(
        lambda image, w, **out: descriptors.self_similarity(image, w, 2, 0.3, **out), "grey weight", (0,), 1e-2, 2
    ),
}
pytestmark = pytest.mark.usefixtures("one_thread")
READINGS = [name for name, each in PRIMITIVES.items() if each.kinds == "other u" and each.to == (0, 1)]
DIFFERENTIABLE = [name for name, each in PRIMITIVES.items() if each.to]
#: Without those that are computed as another one is.
ONE_OF_EACH = [
    name
    for name in PRIMITIVES
    if name not in ("sample", "warp to the nearest", "convolve_axes, a little", "self_similarity", "correlation 2")
    and not name.startswith(("correlation 1", "correlation 3"))
]
each_primitive = pytest.mark.parametrize("name", PRIMITIVES)


def drawn(kinds: str, shape: tuple[int, ...], batch: int = 1) -> list[Tensor]:
    """Of each kind a tensor: u, a displacement of about two voxels, so that many positions lie beyond the grid; smooth,
    one that can be inverted; other, an image on another grid; one, an image without a batch; grey, one of values in
    0..1; matrices, another for each sample."""
    generator = torch.Generator().manual_seed(11)
    d = len(shape)

    def noise(channels: int, grid: tuple[int, ...] = shape) -> Tensor:
        return torch.randn(batch, channels, *grid, generator=generator)

    makers = {
        "u": lambda: 2 * noise(d),
        "smooth": lambda: smoothing.gaussian(0.5 * noise(d).double(), 2).float(),
        "image": lambda: noise(2),
        "other": lambda: noise(4, shape[::-1]),
        "scalar": lambda: noise(1),
        "one": lambda: noise(1)[:1],
        "grey": lambda: torch.rand(batch, 1, *shape, generator=generator),
        "weight": lambda: torch.rand(batch, 1, *shape, generator=generator).round(decimals=1),
        "matrices": lambda: torch.stack([torch.linalg.matrix_power(matrix(noise(1)), n + 1) for n in range(batch)]),
    }
    return [makers[kind]() for kind in kinds.split()]


def with_gradients(primitive: Primitive, given: list[Tensor]) -> list[Tensor]:
    """The value, and its gradients in a random direction."""
    given = [t.clone().requires_grad_(n in primitive.to) for n, t in enumerate(given)]
    result = primitive.call(*given)
    if not primitive.to:
        return [result]
    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return [result.detach(), *torch.autograd.grad((direction * result).sum(), [given[n] for n in primitive.to])]


def agree(primitive: Primitive, given: list[Tensor], device: torch.device) -> None:
    """With the reference in double precision, in value and gradients, and without gradients as with them."""
    with backend.use("reference"):
        expected = with_gradients(primitive, [t.double() for t in given])
    given = [t.to(device) for t in given]
    found = with_gradients(primitive, given)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device.type == device.type
        far = primitive.close * max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-4, atol=far)
    torch.testing.assert_close(primitive.call(*given), found[0], rtol=1e-4, atol=1e-4)


@each_primitive
@pytest.mark.parametrize("batch", [1, 3])
def test_agrees_with_the_reference(name: str, batch: int, device: torch.device):
    primitive = PRIMITIVES[name]
    for shape in SHAPES:
        if min(shape) >= primitive.least:
            agree(primitive, drawn(primitive.kinds, shape, batch), device)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_agrees_where_an_image_is_more_than_a_program_works_on(name: str, device: torch.device):
    primitive = PRIMITIVES[name]
    agree(primitive, drawn(primitive.kinds, (5, 9, 7), 2), device)


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("batches", [(1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("shape", [(9, 12, 7), (6, 1, 5), (9, 12)], ids=str)
def test_a_batch_of_one_serves_all(name: str, shape: tuple[int, ...], batches: tuple[int, int], device: torch.device):
    image, u = drawn("other u", shape, 2)
    agree(PRIMITIVES[name], [image[: batches[0]], u[: batches[1]]], device)


@each_primitive
@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5)], ids=str)
def test_memory_layout_does_not_matter(name: str, shape: tuple[int, ...], device: torch.device):
    primitive = PRIMITIVES[name]
    given = [t.to(device) for t in drawn(primitive.kinds, shape)]
    gapped = [torch.stack([t, t], -1)[..., 0] for t in given]
    assert not gapped[0].is_contiguous()
    torch.testing.assert_close(primitive.call(*gapped), primitive.call(*given), rtol=1e-6, atol=1e-6)


@each_primitive
@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5)], ids=str)
def test_what_is_given_for_the_result_receives_it(name: str, shape: tuple[int, ...], device: torch.device):
    primitive = PRIMITIVES[name]
    given = [t.to(device) for t in drawn(primitive.kinds, shape, 2)]
    before = [t.clone() for t in given]
    expected = primitive.call(*given)
    assert expected.is_contiguous()
    out = torch.full_like(expected, 7.0)
    result = primitive.call(*given, out=out)
    assert result is out
    assert torch.equal(out, expected)
    assert all(torch.equal(t, was) for t, was in zip(given, before, strict=True))
    for wrong in (torch.stack([out, out], -1)[..., 0], out[None], out.half()):
        with pytest.raises(ValueError, match=r"`out`"):
            primitive.call(*given, out=wrong)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_gradient_goes_through_what_is_given_for_the_result(name: str, device: torch.device):
    primitive = PRIMITIVES[name]
    given = [t.to(device) for t in drawn(primitive.kinds, (6, 5, 7))]
    out = torch.empty_like(primitive.call(*given))
    for n in primitive.to:
        given[n].requires_grad_()
    with pytest.raises(ValueError, match="no gradient"):
        primitive.call(*given, out=out)
    with torch.no_grad():
        primitive.call(*given, out=out)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("name", [*READINGS, "compose", "compose_step", "determinant", "invert", "resize_displacement"])
@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5)], ids=str)
def test_a_wild_displacement_touches_no_wild_memory(name: str, shape: tuple[int, ...], bad: float, device):
    primitive = PRIMITIVES[name]
    given = [t.to(device) for t in drawn(primitive.kinds, shape)]
    given[-1][:, 1] = bad
    if primitive.kinds == "other u":
        result, to_image, _ = with_gradients(primitive, given)
        assert to_image.isfinite().all()
        if name == "warp":
            assert (result == 0).all(), "nowhere is outside the image"
    else:
        result = primitive.call(*given)
        if name != "invert" and bad != bad:
            assert result.isnan().any(), "the damage stays visible"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e60])
@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5)], ids=str)
def test_maps_of_which_a_search_has_lost_hold_lead_out_of_the_image(shape, bad: float, device):
    matrices = torch.eye(len(shape) + 1, dtype=torch.float64, device=device).repeat(2, 1, 1)
    matrices[0, :-1, -1] = bad
    image = torch.ones(1, 1, *shape, device=device)
    moved = sampling.warp_linear(image, matrices, shape)
    assert (moved[0] == 0).all()
    assert (moved[1] == 1).all()


@pytest.mark.parametrize("shape", [(5, 5, 5), (5, 5)], ids=str)
def test_the_smallest_determinant_keeps_what_is_not_a_number(shape: tuple[int, ...], device: torch.device):
    displacement = torch.zeros(1, len(shape), *shape, device=device)
    displacement[(0, 1, *[2] * len(shape))] = float("nan")
    spoiled = jacobian.smallest_corner_determinant(displacement)[0].isnan()
    # The voxel itself and its neighbours use the value.
    assert spoiled.sum() == 2 * len(shape) + 1
    assert spoiled[(2,) * (len(shape) - 1)][1:4].all()


@pytest.mark.parametrize("weighted", [False, True])
def test_background_does_not_pull_though_it_fills_the_histogram(weighted: bool, device: torch.device):
    images = [(1.6 * t - 0.3).clamp(0, 1).to(device).requires_grad_() for t in drawn("grey grey", (6, 5, 7), 2)]
    (weight,) = (t.to(device) for t in drawn("weight", (6, 5, 7), 2))
    given = (*images, weight if weighted else None, 8)
    bins = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    found = torch.autograd.grad((information.joint_histogram(*given) * bins).sum(), images)
    with backend.use("reference"):
        expected = torch.autograd.grad((information.joint_histogram(*given) * bins).sum(), images)
    for image, ours, theirs in zip(images, found, expected, strict=True):
        at_the_end = (image == 0) | (image == 1)
        assert at_the_end.sum() > 20
        assert (ours[at_the_end] == 0).all()
        assert (ours[~at_the_end] != 0).any()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 12, 7), (9, 12)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_forces_are_the_gradients_along_the_images_slopes(shape, weighted: bool, device: torch.device):
    fixed, moved, weight = (t.to(device) for t in drawn("grey grey weight", shape, 2))
    given = (fixed, moved, weight if weighted else None, 2, 1e-3)
    found = correlation.forces(*given)
    with backend.use("reference"):
        exact = (fixed.double(), moved.double(), weight.double() if weighted else None, 2, 1e-3)
        expected = correlation.forces(*exact)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=5e-3 * float(theirs.abs().max()))
    out = tuple(torch.empty_like(each) for each in found[1:])
    value, *again = correlation.forces(*given, out=out)
    assert value.shape == ()
    assert value.device == fixed.device
    assert all(torch.equal(a, b) and a is room for a, b, room in zip(again, found[1:], out, strict=True))


@pytest.mark.parametrize(
    "name",
    [each for each in DIFFERENTIABLE if not re.match("correlation|self_similarity|.*nearest", each)],
)
@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 4)], ids=str)
def test_the_reference_against_finite_differences(name: str, shape: tuple[int, ...]):
    primitive = PRIMITIVES[name]
    given = [t.double().requires_grad_(n in primitive.to) for n, t in enumerate(drawn(primitive.kinds, shape))]
    torch.autograd.gradcheck(primitive.call, given, fast_mode=True)
