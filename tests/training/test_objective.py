import pytest
import torch

from stepwarp.geometry import DisplacementField
from stepwarp.losses.consistency import inverse_consistency
from stepwarp.losses.regularity import diffusion, folding
from stepwarp.losses.similarities.ssd import SSD
from stepwarp.registrar.steps import Images
from stepwarp.registrar.steps.config import build
from stepwarp.training.objective import TrainingObjective, first_steps, train_only

ONE_STAGE = [{"iterations": 1}]


class Known(torch.nn.Module):
    """Finds what it is told to: one field for the pair in its order, another one for the pair reversed."""

    def __init__(self, there, back, first):
        super().__init__()
        self.fields = torch.nn.ParameterList([there, back])
        self.first = first

    def forward(self, fixed, moving):
        return DisplacementField(self.fields[0 if torch.equal(fixed.data, self.first) else 1], fixed.grid)


@pytest.fixture
def batch(recipe):
    shape = recipe().data.grid().shape
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 2, 1, *shape, generator=generator)
    labels = torch.randint(0, 4, (2, 2, 1, *shape), generator=generator)
    teacher = torch.rand(2, 3, *shape, generator=generator)
    return {
        "fixed": images[0],
        "moving": images[1],
        "fixed_labels": labels[0],
        "moving_labels": labels[1],
        "teacher": teacher,
    }


@pytest.fixture
def fields(recipe):
    shape = recipe().data.grid().shape
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, 3, *shape, generator=generator)


def terms_of(config, batch, fields):
    return TrainingObjective(Known(*fields, batch["fixed"]), config)(batch, 0)


def test_terms_are_those_of_the_losses_both_ways(recipe, batch, fields):
    loss = {"grids": [{"mm": 5}], "regularity_weight": 0.5, "inverse_consistency": 0.25, "folding": 2, "gradicon": 0.1}
    config = recipe(curriculum=ONE_STAGE, loss=loss)
    grid = config.data.grid()
    terms = terms_of(config, batch, fields)
    fixed, moving = Images(batch["fixed"], grid), Images(batch["moving"], grid)
    there, back = (DisplacementField(field, grid) for field in fields)
    similarity = (SSD()(fixed.data, moving.warp(there).data) + SSD()(moving.data, fixed.warp(back).data)) / 2
    assert torch.allclose(terms["similarity"], similarity)
    assert torch.allclose(terms["regularity"], 0.5 * (diffusion(fields[0], grid) + diffusion(fields[1], grid)) / 2)
    assert torch.allclose(terms["folding"], 2 * (folding(fields[0]) + folding(fields[1])) / 2)
    consistency = [inverse_consistency(a, b, grid) for a, b in (fields, fields.flip(0))]
    assert torch.allclose(terms["inverse_consistency"], 0.25 * sum(consistency) / 2)
    assert torch.allclose(terms["loss"], sum(value for name, value in terms.items() if name != "loss"))


def test_gradicon_is_drawn_anew_by_its_seed_alone(recipe, batch, fields):
    config = recipe(curriculum=ONE_STAGE, loss={"gradicon": 1})
    objective = TrainingObjective(Known(*fields, batch["fixed"]), config)
    a, b, c = (objective(batch, 0, seed=seed)["gradicon"].item() for seed in (5, 5, 6))
    assert a == b != c


def test_a_batch_is_worth_the_mean_of_its_pairs(recipe, batch, fields):
    loss = {"similarity": {"kind": "ncc"}, "dice": 1, "supervision": 1, "regularity_weight": 1}
    config = recipe(curriculum=ONE_STAGE, loss=loss, data={"teacher": "teacher"})
    whole = terms_of(config, batch, fields)
    parts = [
        terms_of(config, {k: v[n : n + 1] for k, v in batch.items()}, fields[:, n : n + 1]) for n in range(len(fields))
    ]
    for name, value in whole.items():
        assert float(value) == pytest.approx(sum(float(part[name]) for part in parts) / 2, rel=1e-5), name


def test_a_teacher_that_is_obeyed_and_labels_that_match_cost_nothing(recipe, batch, fields):
    loss = {"similarity_weight": 0, "dice": 1, "supervision": 1, "regularity_weight": 0}
    config = recipe(curriculum=ONE_STAGE, loss=loss, data={"teacher": "teacher"})
    still = torch.zeros_like(fields)
    same = {**batch, "teacher": still[0], "moving_labels": batch["fixed_labels"]}
    assert float(terms_of(config, same, still)["loss"]) == pytest.approx(0, abs=1e-6)
    shifted = {**same, "teacher": torch.ones_like(fields[0])}
    assert float(terms_of(config, shifted, still)["supervision"]) == pytest.approx(3 * 5**2)


def test_labels_that_are_ignored_cost_nothing_wherever_they_lie(recipe, batch, fields):
    config = recipe(curriculum=ONE_STAGE, loss={"similarity_weight": 0, "dice": 1, "regularity_weight": 0})
    elsewhere = torch.where(batch["fixed_labels"] == 3, 9, batch["fixed_labels"])
    given, still = {**batch, "moving_labels": elsewhere}, torch.zeros_like(fields)
    ignored, counted = (
        TrainingObjective(Known(*still, batch["fixed"]), config, ignore)(given, 0)["dice"].item()
        for ignore in ((3, 9), ())
    )
    assert ignored == pytest.approx(0, abs=1e-6)
    assert counted == pytest.approx(0.5)


def test_the_weights_of_loss_grids_are_relative(recipe, batch, fields):
    def similarity(grids):
        return float(terms_of(recipe(curriculum=ONE_STAGE, loss={"grids": grids}), batch, fields)["similarity"])

    alone = [similarity([{"mm": mm, "weight": 3}]) for mm in (5, 10)]
    both = similarity([{"mm": 5, "weight": 3}, {"mm": 10, "weight": 1}])
    assert both == pytest.approx((3 * alone[0] + alone[1]) / 4)


def test_a_stage_takes_the_first_steps_and_rests_the_frozen(recipe):
    config = recipe(
        steps={"step": "two_step", "steps": [{"step": "vector_field", "net": {"kind": "unet", "channels": [2]}}] * 3},
        curriculum=[{"iterations": 1, "steps": 1}, {"iterations": 1, "steps": 2, "frozen": 1}, {"iterations": 1}],
    )
    step = build(config.steps, 3)
    wanted = [{"first.first."}, {"first.second."}, {"first.first.", "first.second.", "second."}]
    for stage, heads in zip(config.curriculum, wanted, strict=True):
        train_only(step, config, stage)
        trained = {name for name, weights in step.named_parameters() if weights.requires_grad}
        assert trained == {name for name, _ in step.named_parameters() if name.startswith(tuple(heads))}
    found = [first_steps(step, config, stage) for stage in config.curriculum]
    assert found == [step.first.first, step.first, step]


def test_a_stage_may_see_coarser_images(recipe, batch):
    config = recipe(curriculum=[{"iterations": 1, "spacing_mm": 10}, {"iterations": 1}])
    seen = []
    objective = TrainingObjective(build(config.steps, 3), config)
    objective.step.register_forward_pre_hook(lambda module, images: seen.append(images[0].grid))
    for stage in (0, 1):
        objective(batch, stage)
    assert seen == [config.data.grid().coarser(2), config.data.grid()]


def test_half_precision_is_for_the_registrar_alone(recipe, batch):
    config = recipe(curriculum=ONE_STAGE, precision="bf16")
    types = []
    objective = TrainingObjective(build(config.steps, 3), config)
    objective.step.second.net.first.register_forward_hook(lambda module, images, output: types.append(output.dtype))
    value = objective(batch, 0)["loss"]
    assert types == [torch.bfloat16]
    assert value.dtype == torch.float32
    exact = TrainingObjective(build(config.steps, 3), recipe(curriculum=ONE_STAGE))(batch, 0)["loss"]
    assert torch.equal(value, exact), "an untrained registrar finds the identity in any precision"
