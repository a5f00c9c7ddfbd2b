import pytest
import torch

from stepwarp.errors import RegistrationError
from stepwarp.geometry import Grid
from stepwarp.mnist.config import Variation
from stepwarp.mnist.data import GRID, SIDE, pairs
from stepwarp.mnist.models import MODELS, TIED
from stepwarp.mnist.study import measures
from stepwarp.mnist.training import icon_weight, loss, objective, surprise, train
from stepwarp.networks.mlp import FCNet
from stepwarp.registrar.steps import Images, Repeat, VectorField
from stepwarp.training.settings import OptimiserSettings

pytestmark = pytest.mark.usefixtures("one_thread")
LAMBDA = 0.05


def shaken(steps, lazy=False):
    """A network whose maps are some pixels long."""
    torch.manual_seed(0)
    net = FCNet(SIDE, (8,))
    torch.nn.init.normal_(net.last.weight, std=0.005)
    return Repeat(VectorField(net, unit="extent"), steps, lazy=lazy, outside="border")


def theirs(net, fixed, moving, steps):
    """icon_registration's DiffusionRegularized of its own composition, of the same network."""
    icon = pytest.importorskip("icon_registration")
    losses = pytest.importorskip("icon_registration.losses")

    class Swapped(torch.nn.Module):
        def forward(self, a, b):
            return net(b, a)

    inner = icon.FunctionFromVectorField(Swapped())
    whole = inner
    for _ in range(steps - 1):
        whole = icon.TwoStepRegistration(whole, inner)
    made = losses.DiffusionRegularizedNet(whole, losses.SSD(), LAMBDA)
    made.assign_identity_map([len(fixed.data), 1, SIDE, SIDE])
    return made(moving.data, fixed.data)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_loss_is_that_of_icon_registration(digits, steps):
    fixed, moving = pairs(digits.train, 6)
    step = shaken(steps, lazy=True)
    ssd, energy = loss(step, fixed, moving, LAMBDA)
    found = theirs(step.step.net, fixed, moving, steps)
    assert 2 * (ssd + energy).item() == pytest.approx(found.all_loss.item(), abs=1e-5)
    assert 2 * ssd.item() == pytest.approx(found.similarity_loss.item(), abs=1e-5)
    assert energy.item() > 1e-4


def test_collapsing_the_maps_changes_the_loss_by_less_than_a_hundredth(digits):
    fixed, moving = pairs(digits.train, 6)
    exact, collapsed = (sum(loss(shaken(9, lazy), fixed, moving, LAMBDA)).item() for lazy in (True, False))
    assert collapsed == pytest.approx(exact, rel=0.01)


def test_the_objective_of_the_probes_is_the_loss_of_the_training(digits):
    fixed, moving = pairs(digits.train, 6)
    step = shaken(3)
    values = objective(LAMBDA).values(fixed, moving, step(fixed, moving).on(GRID).displacement)
    assert values.mean().item() == pytest.approx(sum(loss(step, fixed, moving, LAMBDA)).item(), rel=1e-5)


def test_their_diffusion_has_no_meaning_on_other_grids():
    with pytest.raises(ValueError, match="not square"):
        icon_weight(LAMBDA, Grid.isotropic((28, 20)))


def test_training_registers_digits_that_it_has_not_seen(digits, settings):
    longer = Variation(iterations=150, batch=32).of(settings.training)
    step = MODELS[TIED].untrained(settings, 0)
    seen = []
    trained = train(step, digits.train.of(5), longer, LAMBDA, 0, lambda *report: seen.append(report))
    judged = measures(trained.step, *pairs(digits.test.of(5), 30))
    assert judged["reduction"] > 0.4
    assert judged["ci95"][0] < judged["reduction"] < judged["ci95"][1]
    assert judged["folds"] < 1
    assert trained.curve["loss"][-1] < 0.7 * trained.curve["loss"][0]
    assert trained.curve["iteration"][-1] == 150
    assert all(0 < each < 32 for each in trained.curve["surprise"])
    assert [done for done, _, _ in seen] == list(range(1, 151))


def test_a_gradient_that_adam_does_not_expect_is_a_surprise():
    weights = torch.nn.Parameter(torch.zeros(4))
    optimiser = OptimiserSettings(second_moment=0.99).build([weights])
    found = []
    for size in [1.0] * 200 + [50.0, 1.0]:
        weights.grad = torch.full((4,), size)
        optimiser.step()
        found.append(surprise(optimiser))
    assert found[199] == pytest.approx(1, abs=1e-3)
    assert 9 < found[200] < 1 / (1 - 0.99) ** 0.5
    assert found[201] < 0.3


def test_the_same_seed_gives_the_same_weights(digits, settings):
    states = []
    for _ in range(2):
        step = MODELS[TIED].untrained(settings, 4)
        states.append(train(step, digits.train.of(5), settings.training, LAMBDA, 4).step.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_loss_that_is_no_number_ends_the_training(digits, settings):
    broken = digits.train.of(5)
    images = broken.images.clone()
    images[:] = torch.nan
    step = MODELS[TIED].untrained(settings, 0)
    with pytest.raises(RegistrationError, match="iteration 1: the loss is not a number"):
        train(step, type(broken)(images, broken.labels, ""), settings.training, LAMBDA, 0)


def test_same_images_have_no_loss_before_training(digits, settings):
    images = Images(digits.train.images[:4], GRID)
    ssd, energy = loss(MODELS[TIED].untrained(settings, 0), images, images, LAMBDA)
    assert (ssd.item(), energy.item()) == (pytest.approx(0, abs=1e-12), 0)
