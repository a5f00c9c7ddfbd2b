"""A network between the affine and the refinement: used where it helps, set aside and named where it does not."""

import hashlib
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stepwarp.errors import InputError, OutputError
from stepwarp.geometry import Affine, Composition, DisplacementField, Image, LabelMap
from stepwarp.geometry.orientation import canonical
from stepwarp.kernels import jacobian
from stepwarp.registrar.deformable import as_deformation
from stepwarp.registrar.steps import Repeat, Step
from stepwarp.registrar.steps.config import build, read_step
from stepwarp.registrar.weights import SHIPPED, Card, Recipe, Registrar, save_native_weights
from stepwarp.registrar.weights.recipe import Spacing, Tissue
from stepwarp.workflow import search
from stepwarp.workflow import trace as trace_module
from stepwarp.workflow.network import attempt, read_network
from stepwarp.workflow.register import register

LPS = np.array([-1.0, -1.0, 1.0])
RECIPE = Recipe(intensities=Tissue(), grid=Spacing(mm=8, multiple=4))
#: Untrained, each of its steps is an iteration of descent: a network that helps.
DESCENT = {"step": "repeat", "n": 4, "inner": {"step": "guided", "net": {"kind": "unet", "channels": [4, 4]}}}


class Shuffle(Step):
    """Sends every voxel a few voxels off, each its own way."""

    def forward(self, fixed, moving):
        random = torch.Generator().manual_seed(0)
        noise = torch.randn(1, 3, *fixed.grid.shape, generator=random)
        return DisplacementField(4 * noise, fixed.grid)


class Nonsense(Step):
    """Answers with what is no number."""

    def forward(self, fixed, moving):
        return DisplacementField(torch.full((1, 3, *fixed.grid.shape), float("nan")), fixed.grid)


def card(**changes):
    return Card(**{"name": "descent", "data": "none", "licence": "Apache-2.0"} | changes)


def write(path, config=DESCENT, recipe=RECIPE, **of_the_card):
    config = read_step(config)
    save_native_weights(path, config, build(config, 3).state_dict(), recipe, card(**of_the_card))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write(tmp_path_factory.mktemp("weights") / "descent.safetensors")


@pytest.fixture(scope="module")
def run(brains, recipe):
    def make(fixed=None, moving=None, **kwargs):
        pair = brains.fixed if fixed is None else fixed, brains.moving if moving is None else moving
        return register(*pair, **{"preset": recipe, "threads": 1} | kwargs)

    return make


@pytest.fixture(scope="module")
def helped(run, weights):
    return run(weights=weights, trace=True)


@pytest.fixture(scope="module")
def alone(run, weights):
    """The network without what follows."""
    return run(weights=str(weights), refine=False)


def reasons(registration):
    return " | ".join(registration.record["verdict"]["reasons"])


def test_alone_it_is_nearer_than_the_affine_and_free_of_folds(brains, alone):
    assert brains.error(alone.transform) < 0.9 * brains.error(alone.affine)
    assert float(jacobian.smallest_corner_determinant(alone.warp.displacement).min()) > 0
    back = alone.inverse(alone.transform(brains.points))
    assert np.linalg.norm(back - brains.points, axis=1).mean() < 0.1
    assert alone.record["stopped"] == "nothing was refined"
    assert alone.record["loss"] == []


def test_refined_it_is_no_worse_than_without_it(brains, helped, alone, registration):
    assert brains.error(helped.transform) < 1.05 * brains.error(registration.transform)
    assert brains.error(helped.transform) < brains.error(alone.transform)
    assert helped.affine.matrix.tobytes() == registration.affine.matrix.tobytes()


def test_levels_coarser_than_its_grid_are_left_out(helped):
    assert {row["level_mm"] for row in helped.record["loss"]} == {8}


def test_without_a_level_as_fine_as_its_grid_the_network_has_the_last_word(tmp_path, run):
    fine = write(tmp_path / "fine.safetensors", recipe=Recipe(intensities=Tissue(), grid=Spacing(mm=6)))
    record = run(weights=fine).record
    assert record["loss"] == []
    assert record["stopped"] == "no level of the preset is as fine as the network's grid"


def test_the_record_says_which_network_and_what_it_did(helped, weights):
    record = json.loads(json.dumps(helped.record, allow_nan=False))
    network = record["network"]
    assert network["name"] == "descent"
    assert network["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert network["card"]["licence"] == "Apache-2.0"
    assert (network["steps"], network["finest_mm"], network["used"], network["reason"]) == (4, 8.0, True, None)
    assert network["similarity_after"]["lncc"] > network["similarity_before"]["lncc"]
    assert [stage["name"] for stage in record["stages"]] == [
        *("read", "affine", "network", "deformable", "measure", "trace")
    ]
    assert record["settings"]["network"] == "descent"
    assert record["verdict"]["status"] == "pass"
    assert "the network descent raised the local correlation" in reasons(helped)


def test_without_weights_there_is_no_network(registration):
    assert registration.record["network"] is None
    assert registration.record["settings"]["network"] is None
    assert "network" not in reasons(registration)
    assert registration.trace == ()


def test_more_steps_than_it_was_saved_with_go_further(brains, run, weights, alone):
    longer = run(weights=weights, steps=10, refine=False)
    assert longer.record["network"]["steps"] == 10
    assert brains.error(longer.transform) < brains.error(alone.transform)


def test_a_registrar_in_hand_is_used_and_not_changed(brains, run, alone):
    config = read_step(DESCENT)
    registrar = Registrar(build(config, 3), RECIPE, card(), config)
    given = run(weights=registrar, steps=2, refine=False)
    assert registrar.step.n == 4
    assert given.record["network"]["steps"] == 2
    assert given.record["network"]["path"] is None
    assert brains.error(alone.transform) < brains.error(given.transform) < brains.error(given.affine)


@pytest.mark.parametrize(
    ("step", "reason"),
    [(Shuffle(), "it lowered the local correlation"), (Nonsense(), "values that are not numbers")],
    ids=["shuffle", "nonsense"],
)
def test_a_network_that_harms_is_dropped_and_named(run, registration, step, reason):
    found = run(weights=Registrar(step, RECIPE, card(name="harmful")), refine=False, trace=True)
    assert torch.equal(found.warp.displacement, registration.warp.displacement)
    assert found.record["loss"] == registration.record["loss"]
    network = found.record["network"]
    assert not network["used"]
    assert reason in network["reason"]
    said = f"the network harmful was not used, direct optimisation ran without it: {network['reason']}"
    assert said in found.record["verdict"]["reasons"]
    assert [step.used for step in found.trace] == [True, False, True, True]
    json.dumps(found.record, allow_nan=False)


def test_a_network_whose_map_is_refined_into_something_worse_is_dropped(run, registration, weights, monkeypatch):
    """Then direct optimisation begins without it."""
    original = search.optimise

    def led_astray(fixed, moving, affine, settings, *, start, **options):
        if start is None:
            return original(fixed, moving, affine, settings, start=None, **options)
        return as_deformation(DisplacementField(-3 * start.displacement, start.grid), fixed.grid, settings, "astray")

    monkeypatch.setattr(search, "optimise", led_astray)
    found = run(weights=weights)
    assert torch.equal(found.warp.displacement, registration.warp.displacement)
    assert not found.record["network"]["used"]
    assert "what came of it was less alike than after the affine" in found.record["network"]["reason"]


def test_a_map_that_folds_is_dropped_even_where_images_grow_alike(run, brains):
    class Torn(Step):
        """Descends, but for a few voxels in the middle of the brain, which it throws over their neighbours."""

        def forward(self, fixed, moving):
            field = descent(fixed, moving).on(fixed.grid).displacement.clone()
            middle = [slice(n // 2 - 2, n // 2 + 2, 2) for n in fixed.grid.shape]
            field[(0, 0, *middle)] += 2.5
            return DisplacementField(field, fixed.grid)

    descent = build(read_step(DESCENT | {"n": 12}), 3)
    found = run(weights=Registrar(Torn(), RECIPE, card()), refine=False)
    assert not found.record["network"]["used"]
    assert "corner folds in" in found.record["network"]["reason"]
    assert found.record["network"]["similarity_after"]["lncc"] > found.record["network"]["similarity_before"]["lncc"]


def test_a_pair_too_small_for_the_network_is_registered_without_it(tmp_path, run, registration):
    deep = {"step": "vector_field", "net": {"kind": "unet", "channels": [2] * 7}}
    found = run(weights=write(tmp_path / "deep.safetensors", deep))
    assert torch.equal(found.warp.displacement, registration.warp.displacement)
    assert "needs images of 64 voxels" in found.record["network"]["reason"]
    assert "not used" in reasons(found)


def test_a_pair_unlike_the_training_is_to_be_looked_at(tmp_path, run, helped):
    lncc = helped.record["network"]["similarity_before"]["lncc"]
    near, far = ({"lncc_after_affine": [share * lncc, (share + 0.1) * lncc]} for share in (1.1, 1.6))
    assert run(weights=write(tmp_path / "near", expects=near), refine=False).record["network"]["unlike"] == []
    verdict = run(weights=write(tmp_path / "far", expects=far), refine=False).record["verdict"]
    assert verdict["status"] == "check"
    assert "unlike the training of the network descent: local correlation after the affine" in verdict["reasons"][0]
    assert f"{lncc:.3g}, there {1.6 * lncc:.3g} to {1.7 * lncc:.3g}" in verdict["reasons"][0]


def test_how_the_volumes_are_stored_does_not_matter(brains, run, weights, alone):
    """Axes in another order and direction; and the fixed image on a finer grid, which the network reads as coarsely."""
    turned = [
        Image(i.data.permute(2, 0, 1).flip(1).contiguous(), turned_grid(i.grid), i.name)
        for i in (canonical(brains.fixed), canonical(brains.moving))
    ]
    found = run(*turned, weights=weights, refine=False)
    assert np.linalg.norm(found.transform(brains.points) - alone.transform(brains.points), axis=1).max() < 0.05


def turned_grid(grid):
    """Of a canonical volume after permute(2, 0, 1).flip(1)."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[0, 1], matrix[1, 2], matrix[3, 3] = 1, -1, 1, 1
    matrix[0, 3] = grid.shape[0] - 1
    return type(grid)((grid.shape[2], grid.shape[0], grid.shape[1]), grid.affine @ matrix)


def test_another_spacing_gives_about_the_same(brains, run, weights, alone):
    grid = brains.fixed.grid.coarser((1, 2, 1))
    found = run(brains.fixed.warp(Affine.identity(3), grid), weights=weights, refine=False)
    assert found.record["network"]["used"]
    assert brains.error(found.transform) < brains.error(alone.affine)


def test_what_a_mask_excludes_does_not_reach_the_network(brains, run, weights):
    image = brains.fixed
    lesion = tuple(slice(n // 3, n // 2) for n in image.grid.shape)
    trusted = torch.ones(image.grid.shape, dtype=torch.uint8)
    trusted[lesion] = 0
    results = []
    for share in (0.0, 3.0):
        data = image.data.clone()
        data[lesion] = share * image.data.max()
        mask = LabelMap(trusted, image.grid, "mask")
        results.append(run(Image(data, image.grid, "sick"), fixed_mask=mask, weights=weights, refine=False))
    assert results[0].record["network"]["used"]
    assert torch.equal(results[0].warp.displacement, results[1].warp.displacement)


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        ({"weights": "brain-t2"}, "brain-t2: is no file, and no weights of that name come with stepwarp"),
        ({"weights": "/"}, "/: is a folder. Give the file of weights in it"),
        ({"steps": 3}, "no network to run them"),
        ({"refine": False}, "that is affine_only"),
        ({"weights": "x", "affine_only": True}, "affine_only ends before the network"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(run, choice, hint):
    with pytest.raises(InputError, match=hint):
        run("absent.nii.gz", **choice)


def test_steps_of_a_network_that_repeats_nothing_are_refused(tmp_path, run):
    once = write(tmp_path / "once.safetensors", DESCENT["inner"])
    with pytest.raises(InputError, match=r"once\.safetensors: repeats none of its steps"):
        run(weights=once, steps=3)


def test_a_network_of_slices_is_refused(tmp_path, run):
    path = tmp_path / "flat.safetensors"
    config = read_step(DESCENT)
    save_native_weights(path, config, build(config, 2).state_dict(), RECIPE, card(), dims=2)
    with pytest.raises(InputError, match=r"flat\.safetensors: is a network of images of 2 axes"):
        run(weights=path)


def test_a_shipped_file_that_was_changed_is_refused(tmp_path, run, monkeypatch):
    from stepwarp.registrar.weights import shipped

    monkeypatch.setattr(shipped.resources, "files", lambda _: tmp_path)
    monkeypatch.setitem(SHIPPED, "toy", "0" * 64)
    with pytest.raises(InputError, match="is missing, so 'toy' cannot be used"):
        run(weights="toy")
    (tmp_path / "weights").mkdir()
    path = write(tmp_path / "weights" / "toy.safetensors")
    with pytest.raises(InputError, match="is not the file that was released as 'toy'"):
        run(weights="toy")
    monkeypatch.setitem(SHIPPED, "toy", hashlib.sha256(path.read_bytes()).hexdigest())
    assert run(weights="toy", refine=False).record["network"]["path"] == str(path)
    with pytest.raises(InputError, match="did you mean 'toy'"):
        run(weights="toyy")


def test_the_trace_tells_the_way(helped, registration):
    rows = [step.row for step in helped.trace]
    assert [row["kind"] for row in rows] == ["affine", *["network"] * 4, "deformable"]
    lncc = [row["lncc"] for row in rows]
    assert lncc == sorted(lncc)
    assert lncc[0] == helped.record["measures"]["similarity_affine"]["lncc"]
    assert all(0 < row["step_mm"]["mean"] < row["step_mm"]["max"] for row in rows[1:])
    assert all(row["folds"]["count"] == 0 and row["seconds"] > 0 for row in rows)
    assert rows[-1]["grid_mm"] == [8, 8, 8]


def test_strangers_read_the_files_of_the_trace(tmp_path, brains, helped):
    folder = tmp_path / "a" / "trace"
    helped.save_trace(folder)
    rows = json.loads((folder / "trace.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == sorted([*(row["file"] for row in rows[1:]), "trace.json"])
    assert rows[0]["file"] is None
    for row, step in zip(rows[1:], helped.trace[1:], strict=True):
        image = sitk.ReadImage(str(folder / row["file"]), sitk.sitkVectorFloat64)
        field = sitk.DisplacementFieldTransform(image)
        mapped = np.array([field.TransformPoint(point) for point in (brains.points * LPS).tolist()]) * LPS
        assert np.abs(mapped - step.field(brains.points)).max() < 0.01
    whole = Composition.of(helped.affine, helped.trace[-1].field)
    assert brains.error(whole) == pytest.approx(brains.error(helped.transform), rel=0.05)


def test_an_older_trace_is_kept_unless_it_may_be_replaced(tmp_path, helped, run, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    helped.save_trace(tmp_path)
    (tmp_path / "step77_Warp.nii.gz").write_text("of a longer trace")
    rows = json.loads((tmp_path / "trace.json").read_text())
    (tmp_path / "trace.json").write_text(json.dumps([*rows, rows[-1] | {"file": "step77_Warp.nii.gz"}]))
    with pytest.raises(OutputError, match="exists already"):
        helped.save_trace(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(trace_module, "write_json", lambda *_: (_ for _ in ()).throw(OutputError("full")))
        with pytest.raises(OutputError, match="full"):
            helped.save_trace(tmp_path, overwrite=True)
    assert (tmp_path / "step77_Warp.nii.gz").exists()
    helped.save_trace(tmp_path, overwrite=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", *(f"step{n:02d}_Warp.nii.gz" for n in range(1, 6)), "trace.json"]
    with pytest.raises(OutputError, match="is a file"):
        helped.save_trace(tmp_path / "notes.txt")


@pytest.mark.parametrize("content", [None, "[]", '[{"kind": "affine", "file": null}]', "{}"])
def test_what_no_trace_lists_is_refused_and_stays(tmp_path, helped, content):
    (tmp_path / "step01_Warp.nii.gz").write_text("precious")
    (tmp_path / "step1_from_ants_Warp.nii.gz").write_text("precious")
    if content is not None:
        (tmp_path / "trace.json").write_text(content)
    with pytest.raises(OutputError, match="Move it away"):
        helped.save_trace(tmp_path, overwrite=True)
    assert {path.read_text() for path in tmp_path.glob("*.nii.gz")} == {"precious"}


def test_without_a_trace_there_is_none_to_write(tmp_path, registration):
    with pytest.raises(InputError, match="register with trace=True"):
        registration.save_trace(tmp_path / "trace")


def test_the_page_shows_every_step(helped):
    from stepwarp.report.page import render
    from stepwarp.report.pair import PairPage
    from stepwarp.workflow.trace import step_views

    steps = step_views(helped.trace, helped.affine)
    page = PairPage(helped.fixed, helped.moved, helped.moved, helped.record, moving=helped.moving, steps=steps)
    text = render(page)
    assert text.count('<div class="step">') == 1 + len(helped.trace)
    assert "4. network, 8 mm" in text
    assert f"LNCC {helped.trace[-1].row['lncc']:.3f}" in text
    with pytest.raises(ValueError, match="missing"):
        PairPage(helped.fixed, helped.moved, helped.moved, helped.record, steps=steps)


class Slow(Step):
    """Takes its time, on a clock that stands still otherwise."""

    now = 0.0

    def forward(self, fixed, moving):
        Slow.now += 10
        return DisplacementField(torch.zeros(1, 3, *fixed.grid.shape), fixed.grid)


@pytest.mark.parametrize(("budget", "steps"), [(25, 3), (1000, 5), (-1, 0)])
def test_the_time_budget_holds_between_the_steps(brains, monkeypatch, budget, steps):
    monkeypatch.setattr(Slow, "now", 0.0)
    monkeypatch.setattr("stepwarp.progress.time.monotonic", lambda: Slow.now)
    network = read_network(Registrar(Repeat(Slow(), 5), RECIPE, card()), None, torch.device("cpu"))
    tried = attempt(network, brains.fixed, brains.moving, Affine.identity(3), "lncc", deadline=budget)
    said = " | ".join((*tried.notes, *tried.checks))
    assert Slow.now == 10 * steps
    if steps:
        assert tried.record["steps"] == steps
    assert ("the time budget ended the network after 3 of 5 steps" in said) == (steps == 3)
    assert ("the time budget was spent before it" in said) == (steps == 0)


def test_more_steps_than_anything_takes_are_refused(weights):
    with pytest.raises(InputError, match="would run 4000000 steps"):
        read_network(weights, 4_000_000, torch.device("cpu"))


def test_a_map_that_leads_out_of_the_images_is_dropped(brains):
    class Throw(Step):
        def forward(self, fixed, moving):
            return DisplacementField(torch.full((1, 3, *fixed.grid.shape), 1e30), fixed.grid)

    network = read_network(Registrar(Throw(), RECIPE, card()), None, torch.device("cpu"))
    tried = attempt(network, brains.fixed, brains.moving, Affine.identity(3), "lncc")
    assert tried.warp is None
    assert tried.record["reason"] == "its map leads far out of the images"
