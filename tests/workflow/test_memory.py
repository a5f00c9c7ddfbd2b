"""Memory is planned, what does not fit is left out with a word, and what was planned is what is taken."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from stepwarp.config import preset
from stepwarp.errors import MemoryShortageError
from stepwarp.files import write_volume
from stepwarp.geometry import Grid, Image
from stepwarp.losses.similarities.lncc import LNCC
from stepwarp.workflow import fitting, memory, search
from stepwarp.workflow.fitting import Room, fitted
from stepwarp.workflow.memory import Extent, PairMemory
from stepwarp.workflow.register import register

MIB = 2**20
HEAD = Extent.of_grid(Grid.isotropic((180, 220, 180)))


def peaks(pair, recipe):
    return {stage.name: stage.bytes for stage in pair.stages(recipe)}


@pytest.fixture
def hungry(monkeypatch):
    """The small brains need gigabytes: a few for their coarse level, and several times as much for the fine one."""
    monkeypatch.setattr(LNCC, "bytes_per_voxel", (10**6, 10**6))


def left_out(registration):
    return registration.record["memory"]["left_out"]


def test_only_as_many_levels_are_run_as_there_is_room_for():
    pair, recipe = PairMemory(HEAD, HEAD), preset("default")
    assert pair.edges(recipe) == [8, 4, 2, 1]
    needed = peaks(pair, recipe)["deformable 1 mm"]
    assert fitted(pair, recipe, Room(needed))[0] == recipe
    fewer, plan = fitted(pair, recipe, Room(needed - 1, stated=needed - 1))
    assert fewer.deformable.levels == recipe.deformable.levels[:-1]
    assert plan.peak < needed
    (said,) = plan.left_out
    assert "the level of 1 mm was left out" in said
    assert f"needs {needed / 2**30:.2f} GiB" in said
    assert "--max-memory" in said


def test_the_least_that_a_pair_needs_is_said_where_there_is_less():
    pair = PairMemory(HEAD, HEAD)
    with pytest.raises(MemoryShortageError, match=r"too little memory.* needs \d.* GiB .* 700 MiB.*coarser voxels"):
        fitted(pair, preset("fast"), Room(700 * MIB))
    with pytest.raises(MemoryShortageError):
        fitted(replace(pair, affine_only=True), preset("fast"), Room(700 * MIB))


def test_a_gpu_has_a_limit_of_its_own():
    pair, recipe = PairMemory(HEAD, HEAD, gpu=True, kernels=False), preset("default")
    assert peaks(pair, recipe)["deformable 1 mm"] < peaks(replace(pair, gpu=False), recipe)["deformable 1 mm"]
    stages = {stage.name: stage for stage in pair.stages(recipe)}
    assert {name for name, stage in stages.items() if not stage.gpu_bytes} == {"read", "write", "verify", "report"}
    fewer, plan = fitted(pair, recipe, Room(2**36, gpu=2 * 2**30))
    assert fewer.deformable.levels == recipe.deformable.levels[:-1]
    assert "of the GPU's memory" in plan.left_out[0]
    assert max(stage.gpu_bytes for stage in plan.stages) <= 2 * 2**30


def test_further_pairs_take_memory_as_well_and_so_does_what_compares_them():
    one, recipe = PairMemory(HEAD, HEAD), preset("default")
    two = replace(one, further=((HEAD, HEAD),), compared_by=("lncc",))
    mind = replace(two, compared_by=("mind",))
    for name, needed in peaks(one, recipe).items():
        assert peaks(two, recipe)[name] - needed >= 4 * HEAD.voxels
    assert peaks(two, recipe)["deformable 1 mm"] - peaks(one, recipe)["deformable 1 mm"] > 2 * HEAD.held()
    assert peaks(mind, recipe)["deformable 1 mm"] > peaks(two, recipe)["deformable 1 mm"]


def test_a_network_without_room_is_left_out_and_the_levels_stay():
    pair, recipe = PairMemory(HEAD, HEAD, network=2**40), preset("default")
    same, plan = fitted(pair, recipe, Room(2**33))
    assert same == recipe
    assert not plan.network
    assert "the network was left out" in plan.left_out[0]


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("similarity", ["lncc", "ssd"])
def test_what_auto_may_come_to_is_planned(kernels, similarity):
    def by(name):
        deformable = preset("default").deformable.model_copy(update={"similarity": name})
        return preset("default").model_copy(update={"deformable": deformable})

    pair = PairMemory(HEAD, HEAD, kernels=kernels)
    planned = peaks(replace(pair, auto=True), by(similarity))
    for name in (similarity, "mi", "lncc"):
        assert all(size <= planned[stage] for stage, size in peaks(pair, by(name)).items())
    if kernels:  # and costs no level where the images turn out to be alike
        another_image = 4 * HEAD.voxels
        assert planned["deformable 1 mm"] <= peaks(pair, by(similarity))["deformable 1 mm"] + another_image


def test_structures_for_which_there_is_no_room_are_not_looked_for_and_cost_nothing(monkeypatch):
    monkeypatch.setattr(memory, "_LOOKING", 5000)
    pair, recipe = PairMemory(HEAD, HEAD, structures=True), preset("default")
    needed = peaks(pair, recipe)
    assert list(needed)[:3] == ["read", "affine", "structures"]
    assert needed["structures"] == max(needed.values())
    same, plan = fitted(pair, recipe, Room(needed["structures"] - 1))
    assert same == recipe
    assert plan.left_out == ()
    assert plan.stages == replace(pair, structures=False).stages(recipe)


@pytest.mark.parametrize(("given", "stages"), [({"affine_only": True}, 0), ({"fixed": replace(HEAD, partly=False)}, 6)])
def test_what_is_not_done_is_not_planned(given, stages):
    whole, some = (peaks(PairMemory(**{"fixed": HEAD, "moving": HEAD} | each), preset("best")) for each in ({}, given))
    assert sum("deformable" in name or "fields" in name for name in some) == (5 if stages else 0)
    assert all(some[name] <= whole[name] for name in some)
    assert sum(some.values()) < sum(whole.values())


def test_a_level_that_does_not_fit_is_left_out_and_the_rest_is_as_without_it(brains, recipe, hungry):
    found = register(brains.fixed, brains.moving, preset=recipe, threads=1, max_memory="12G")
    coarse = recipe.deformable.model_copy(update={"levels": recipe.deformable.levels[:1]})
    without = register(brains.fixed, brains.moving, preset=recipe.model_copy(update={"deformable": coarse}), threads=1)
    assert torch.equal(found.warp.displacement, without.warp.displacement)
    (note,) = left_out(found)
    assert note in found.record["verdict"]["reasons"]
    assert found.record["memory"]["limit_mib"] == 12288
    assert found.record["memory"]["planned_mib"] <= 12288
    assert left_out(without) == []
    json.dumps(found.record["memory"])


def test_what_is_free_is_the_limit_where_none_is_given(brains, recipe, hungry, monkeypatch):
    monkeypatch.setattr(fitting.limits, "free_memory", lambda: 12 * 2**30)
    (note,) = left_out(register(brains.fixed, brains.moving, preset=recipe, threads=1))
    assert "--max-memory" not in note


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_where_memory_runs_out_all_the_same_the_finest_level_is_left_out_once(brains, recipe, monkeypatch, error):
    tried = []

    def optimise(*arguments, **options):
        tried.append(len(arguments[3].levels))
        if len(tried) == 1:
            raise error
        return real(*arguments, **options)

    real = search.optimise
    monkeypatch.setattr(search, "optimise", optimise)
    found = register(brains.fixed, brains.moving, preset=recipe, threads=1)
    assert tried == [2, 1]
    (note,) = left_out(found)
    assert "memory ran out" in note
    assert note in found.record["verdict"]["reasons"]
    assert sum("deformable" in stage["stage"] for stage in found.record["memory"]["stages"]) == 1


def test_twice_is_said_with_what_was_planned(brains, recipe, monkeypatch):
    def optimise(*_, **__):
        raise MemoryError

    monkeypatch.setattr(search, "optimise", optimise)
    coarse = recipe.deformable.model_copy(update={"levels": recipe.deformable.levels[:1]})
    with pytest.raises(MemoryShortageError, match=r"memory ran out, of which \d+(\.\d+)? GiB were planned"):
        register(brains.fixed, brains.moving, preset=recipe.model_copy(update={"deformable": coarse}), threads=1)


def test_files_that_do_not_fit_are_not_read(tmp_path, brains, monkeypatch):
    paths = [tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"]
    for path, image in zip(paths, (brains.fixed, brains.moving), strict=True):
        write_volume(path, image)
    monkeypatch.setattr("stepwarp.files.nifti.read_voxels", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(MemoryShortageError, match=r"reading it needs \d.* 20 MiB by --max-memory"):
        register(*paths, max_memory="20M")


def test_an_extent_knows_the_box_around_a_subject_and_what_shows():
    values = torch.zeros(60, 50, 40)
    values[8:40, 12:32, 4:36] = 1
    image = Image(values, Grid.isotropic((60, 50, 40)))
    extent = Extent.of_image(image, None, 4)
    assert all(0 <= box - true <= 4 for box, true in zip(extent.box, (32, 20, 32), strict=True))
    assert extent.shown == pytest.approx(float(values.sum()), rel=0.2)
    assert not extent.partly
    assert Extent.of_image(image, image, 4).partly
    values[:, 20:30, 20:30] = 1
    assert Extent.of_image(image, None, 4).partly, "it may be cut"


MEASURE = """
import json, sys
from stepwarp.machine import peak_mib
from stepwarp.workflow.register import register
found = register(*sys.argv[1:3], preset=sys.argv[3], similarity=sys.argv[4], threads=1, escalate=False,
                 structures=len(sys.argv) > 6)
found.save(sys.argv[5])
print(json.dumps([found.record["memory"]["planned_mib"], peak_mib()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "mm", "name", "similarity", "looked"),
    [
        (64, 2.5, "fast", "lncc", ["looked at"]),  # where room that may be needed for that would be most of the plan
        (176, 1.0, "fast", "lncc", []),
        (160, 1.0, "default", "lncc", []),
        (144, 1.1, "default", "mind", []),
        (160, 1.0, "default", "mi", []),
    ],
)
def test_a_plan_is_more_than_what_is_taken_and_not_much_more(tmp_path, size, mm, name, similarity, looked):
    at = (np.indices((size,) * 3) - (size - 1) / 2) * (2 / size)
    paths = []
    for number, stretch in enumerate((1.0, 1.15)):
        radius = np.sqrt((at[0] * stretch) ** 2 + at[1] ** 2 + (at[2] * 1.2) ** 2)
        values = (radius < 0.8) * (1 + 0.5 * np.cos(12 * radius + 3 * at[0]))
        paths.append(tmp_path / f"{number}.nii.gz")
        affine = np.diag([mm, mm, mm, 1])
        write_volume(paths[-1], Image(torch.from_numpy(values.astype(np.float32)), Grid((size,) * 3, affine)))
    words = [sys.executable, "-c", MEASURE, *paths, name, similarity, tmp_path / "out", *looked]
    planned, measured = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    assert measured <= planned <= 1.5 * measured, (measured, planned)
