"""What distinguishes each family in its paper is in its recipe, and does what it is there for."""

import pytest
import torch

from stepwarp.registrar.steps import Images, Repeat, Velocity
from stepwarp.registrar.steps.structure import repeats, steps_run
from stepwarp.training.config import read_config
from stepwarp.training.dataset import open_dataset
from stepwarp.training.start import read_start
from stepwarp.training.trainees import trainee_of


def made(config):
    """The registrar of a recipe with weights as if it had learned something, and its trainee."""
    trainee = trainee_of(config, read_start(config, 3))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in trainee.module.parameters():
            weights.add_(0.02 * torch.randn(weights.shape, generator=random))
    return trainee.module, trainee


def batch_of(config, tmp_path):
    sample = open_dataset(config, None, tmp_path).training[0]
    return {key: value[None] for key, value in sample.items() if key != "pair"}


def learning(trainee, stage):
    """Which of its steps learn in a stage."""
    trainee.enter(stage)
    return [any(weights.requires_grad for weights in step.parameters()) for step in trainee.module.parts()]


def test_quicksilver_corrects_by_a_second_network_what_a_first_one_that_rests_predicts(family, tmp_path):
    config = family("quicksilver")
    registrar, trainee = made(config)
    assert learning(trainee, 0) == [True, False]
    assert learning(trainee, 1) == [False, True]
    assert all(isinstance(step, Velocity) and step.kernel for step in registrar.parts())
    batch = batch_of(config, tmp_path)
    nearer = {**batch, "teacher": 0.5 * batch["teacher"]}
    still = trainee_of(config, read_start(config, 3)).objective
    with torch.no_grad():  # by the distance to where the teacher leads, and by nothing else
        far, near = (float(still(each, 0, 0)["loss"]) for each in (batch, nearer))
    assert near == pytest.approx(far / 4, rel=1e-4)
    assert set(still(batch, 0, 0)) == {"loss", "supervision"}


def test_avsm_looks_again_for_its_affine_and_smooths_momenta(family):
    registrar, _ = made(family("avsm"))
    affine, deformable = repeats(registrar)
    assert (affine.n, deformable.n) == (5, 2)
    assert isinstance(deformable.step, Velocity)
    assert deformable.step.kernel
    assert steps_run(registrar) == 7


def test_lapirn_adds_finer_levels_of_velocities_while_coarser_ones_rest(family):
    config = family("lapirn")
    _, trainee = made(config)
    stages = [learning(trainee, stage) for stage in range(len(config.curriculum))]
    coarse, middle, fine = [True, False, False], [True, True, False], [True, True, True]
    assert stages == [coarse, [False, True, False], middle, [False, False, True], fine]
    assert all(any(isinstance(part, Velocity) for part in step.modules()) for step in trainee.module.parts())


def test_gradicon_goes_both_ways_and_pays_for_the_derivative_of_what_is_left(family, tmp_path):
    config = family("gradicon")
    registrar, trainee = made(config)
    assert [len(list(registrar.parts())), config.curriculum[0].steps] == [4, 3]
    batch = batch_of(config, tmp_path)
    swapped = batch | {"fixed": batch["moving"], "moving": batch["fixed"]}
    with torch.no_grad():
        there, back = (trainee.objective(each, 1, 0) for each in (batch, swapped))
    assert there["gradicon"] > 0
    assert there["similarity"] == pytest.approx(float(back["similarity"]), rel=1e-3)


def test_voxelmorph_is_one_network_whose_map_can_be_undone(family):
    config = family("voxelmorph")
    registrar, _ = made(config)
    assert isinstance(registrar, Velocity)
    assert steps_run(registrar) == 1
    grid = config.data.grid()
    random = torch.Generator().manual_seed(1)
    images = [Images(torch.rand(1, 1, *grid.shape, generator=random), grid) for _ in range(2)]
    with torch.no_grad():
        found = registrar(*images).on(grid)
        residual = (found @ found.inverse()).on(grid).displacement.abs().max()
    assert residual < 0.05 * found.displacement.abs().max()


def test_synthmorph_sees_no_image_but_two_paintings_of_unlike_greys(family, tmp_path, monkeypatch):
    monkeypatch.setattr("stepwarp.files.read_image", lambda *_, **__: pytest.fail("it read an image"))
    config = family("brain_synth")
    data = open_dataset(config, None, tmp_path)
    labels, greys = [], []
    for number in range(4):
        sample = data.training[number]
        labels.append(sample["fixed_labels"])
        greys.append([float(sample["fixed"][0][sample["fixed_labels"][0] == label].mean()) for label in (1, 2, 3)])
    orders = {tuple(sorted(range(3), key=each.__getitem__)) for each in greys}
    assert len(orders) > 1
    assert read_config("brain_synth").loss.similarity_weight == 0


def test_brain_t1_looks_again_with_the_same_network_on_each_grid(family):
    registrar, _ = made(family("brain_t1"))
    assert all(isinstance(each, Repeat) and each.n > 1 for each in repeats(registrar))
