"""Checkpoints as icon_registration and uniGradICON write them."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stepwarp.errors import InputError
from stepwarp.geometry import Affine, DisplacementField, Image
from stepwarp.registrar.weights import Recipe, load_icon_weights, load_weights, named_recipe
from stepwarp.registrar.weights.recipe import FullExtent, Modality

icon = pytest.importorskip("icon_registration")
networks = pytest.importorskip("icon_registration.networks")

#: What a network of two small levels, twice pooled, can still work on; like the published ones: (z, y, x).
SHAPE = (14, 17, 15)
RECIPE = Recipe(intensities=Modality(), grid=FullExtent(shape=SHAPE))


def their_network(unet=lambda: networks.UNet2(2, [[2, 4, 6], [4, 6]], 3)) -> nn.Module:
    """The tree of uniGradICON's `make_network`, with every number of its weights at random."""
    torch.manual_seed(3)
    step = icon.FunctionFromVectorField(unet())
    for _ in range(2):
        coarse = icon.DownsampleRegistration(step, dimension=3)
        step = icon.TwoStepRegistration(coarse, icon.FunctionFromVectorField(unet()))
    step = icon.TwoStepRegistration(step, icon.FunctionFromVectorField(unet()))
    for weights in step.parameters():
        nn.init.normal_(weights, std=0.2)
    for module in step.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    step.assign_identity_map([1, 1, *SHAPE])
    return step.eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "Step_2_final.trch"
    torch.save(their_network().state_dict(), path)
    return path


def as_itk(image: Image):
    """A RAS image as ITK holds it: arrays (z, y, x), LPS."""
    import itk

    lps = np.diag([-1.0, -1, 1, 1]) @ image.grid.affine
    held = itk.image_from_array(np.ascontiguousarray(image.data.numpy().T))
    held.SetSpacing(image.grid.spacing.tolist())
    held.SetOrigin(lps[:3, 3].tolist())
    held.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / image.grid.spacing)))
    return held


def as_they_scale(image: Image) -> Image:
    """uniGradICON's preprocessing of MRI: its minimum to its 99th percentile."""
    low = image.data.min()
    high = torch.kthvalue(image.data.flatten(), int(0.99 * image.data.numel())).values
    return Image((image.data.clamp(low, high) - low) / (high - low), image.grid)


@torch.no_grad()
def test_both_libraries_register_a_pair_alike(checkpoint, pair):
    """In mm, on oblique volumes of different sizes: their map of the voxels of the resized arrays, put into the world
    by saying that resizing keeps the outer faces of the volume where they are."""
    their_step = their_network()
    arrays = [as_they_scale(image).data.permute(2, 1, 0)[None, None] for image in pair]
    fixed, moving = (F.interpolate(a, size=SHAPE, mode="trilinear", align_corners=False) for a in arrays)
    share = their_step(moving, fixed)(their_step.identity_map)[0].flatten(1).T.double().numpy()
    start = their_step.identity_map[0].flatten(1).T.double().numpy()

    def world(share: np.ndarray, image: Image) -> np.ndarray:
        faces = (share * (np.array(SHAPE) - 1) + 0.5) / SHAPE
        index = faces[:, ::-1] * image.grid.shape - 0.5
        return Affine(image.grid.affine)(index)

    found = load_icon_weights(checkpoint, RECIPE).register(*pair)
    expected = world(share, pair[1])
    assert np.linalg.norm(expected - world(start, pair[1]), axis=1).max() > 1
    np.testing.assert_allclose(found(world(start, pair[0])), expected, atol=1e-3)


@pytest.mark.slow
def test_both_libraries_register_a_pair_alike_through_itk(checkpoint, pair, points):
    """In mm, as `register_pair` and its ITK transform do it. (Most of the time is the import of ITK.)"""
    from icon_registration import itk_wrapper

    fixed, moving = pair
    model = icon.GradientICON(their_network(), icon.LNCC(sigma=2), 1.0)
    model.assign_identity_map([1, 1, *SHAPE])
    model.eval()
    there, _ = itk_wrapper.register_pair(model, as_itk(as_they_scale(moving)), as_itk(as_they_scale(fixed)))
    here = load_icon_weights(checkpoint, RECIPE).register(fixed, moving)

    at = points(fixed)
    expected = np.array([there.TransformPoint(point) for point in (at * [-1, -1, 1]).tolist()]) * [-1, -1, 1]
    start = here.parts[0]
    assert np.linalg.norm(expected - start(at), axis=1).max() > 1
    np.testing.assert_allclose(here(at), expected, atol=1e-3)
    assert isinstance(here.parts[1], DisplacementField)


def test_how_volumes_are_stored_does_not_matter(checkpoint, pair, points, furthest, restored):
    fixed, moving = pair
    registrar = load_icon_weights(checkpoint, RECIPE)
    straight = registrar.register(fixed, moving)
    stored = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
    for order, flips in stored[5::13]:
        found = registrar.register(restored(fixed, order, flips), restored(moving, order[::-1], flips[::-1]))
        assert furthest(found, straight, points(fixed)) < 1e-3


@pytest.mark.parametrize("prefix", ["", "regis_net.", "module.", "module.regis_net."])
def test_names_as_they_come_with_a_loss_or_data_parallel_around(prefix, checkpoint, pair, points, furthest, tmp_path):
    straight = load_icon_weights(checkpoint, RECIPE).register(*pair)
    state = {prefix + name: tensor for name, tensor in their_network().state_dict().items()}
    state |= {f"{prefix}{name}identity_map": torch.zeros(1, 3, *SHAPE) for name in ("", "netPhi.")}
    torch.save(state, tmp_path / "other.trch")
    assert (
        furthest(load_icon_weights(tmp_path / "other.trch", RECIPE).register(*pair), straight, points(pair[0])) < 1e-5
    )


def test_a_network_of_the_published_size_and_the_recipe_by_name(tmp_path):
    step = icon.FunctionFromVectorField(networks.tallUNet2(dimension=3))
    torch.save(step.state_dict(), tmp_path / "brain.trch")
    registrar = load_weights(tmp_path / "brain.trch", "gradicon-brain")
    assert registrar.recipe.grid.shape == (130, 155, 130)
    assert "17,670,229 parameters" in repr(registrar)
    assert load_weights(tmp_path / "brain.trch").recipe == named_recipe("unigradicon")
    with pytest.raises(InputError, match="did you mean 'unigradicon-ct'"):
        load_weights(tmp_path / "brain.trch", "unigradicon-cta")


def test_every_step_can_be_looked_at(checkpoint, pair, points, furthest):
    registrar = load_icon_weights(checkpoint, RECIPE)
    transforms = list(registrar.trace(*pair))
    assert len(transforms) == 4
    assert furthest(transforms[-1], registrar.register(*pair), points(pair[0])) < 1e-4
    assert furthest(transforms[0], transforms[-1], points(pair[0])) > 0.1


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_executed(tmp_path):
    exploded = tmp_path / "exploded"
    for name, content in (("whole.trch", Bomb(exploded)), ("within.trch", {"net.lastConv.weight": Bomb(exploded)})):
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match="more than tensors"):
            load_weights(tmp_path / name)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(InputError, match="plain"):
        load_weights(tmp_path / "plain.pkl")
    assert not exploded.exists()


def test_files_of_something_else(tmp_path, checkpoint):
    good = torch.load(checkpoint, weights_only=True)
    first = next(iter(good))
    wrong = {
        "list": [torch.zeros(3)],
        "empty": {},
        "numbers": {"net.lastConv.weight": 3},
        "another library": {"encoder.weight": torch.zeros(3)},
        "lacks": {name: tensor for name, tensor in good.items() if name != first},
        "unknown": good | {"netPsi.net.residues.0.weight": torch.zeros(1)},
        "shape": good | {first: torch.zeros(2, 2)},
        "shape of the last": good | {"netPsi.net.lastConv.weight": torch.zeros(3, 9, 3, 3, 3)},
        "axes": {name: tensor[..., None, None] for name, tensor in good.items()},
        "not finite": good | {first: torch.full_like(good[first], float("nan"))},
        "integers": good | {first: good[first].long()},
        "deep": {"net." * 300 + "lastConv.weight": torch.zeros(1)},
        "chunky": networks.FCNet(8).state_dict(),
    }
    for name, content in wrong.items():
        path = tmp_path / f"{name}.trch"
        torch.save(content, path)
        with pytest.raises(InputError, match=name):
            load_weights(path)


def test_files_that_are_damaged(tmp_path, checkpoint):
    whole = checkpoint.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "cut": whole[:middle],
        "short": whole[:5],
        "none": b"",
        "text": b"These are no weights at all.",
        "turned": whole[:200] + bytes(255 - byte for byte in whole[200:600]) + whole[600:],
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_weights(tmp_path / name)
    with pytest.raises(InputError, match="absent"):
        load_weights(tmp_path / "absent.trch")
    with pytest.raises(InputError, match=str(tmp_path)):
        load_weights(tmp_path)
