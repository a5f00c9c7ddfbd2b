import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stepwarp.data.augment import Augmentation
from stepwarp.data.manifest import Pair, Scan
from stepwarp.data.pairs import (
    FixedPairs,
    PairLoader,
    PairTable,
    VariedPairs,
    training_pairs,
    validation_pairs,
)
from stepwarp.data.settings import AugmentSettings, DataSettings, SynthesisSettings
from stepwarp.data.synthesis import Synthesis
from stepwarp.data.teachers import Teachers
from stepwarp.errors import InputError
from stepwarp.files import write_affine, write_displacement
from stepwarp.geometry import Affine, DisplacementField
from stepwarp.geometry.grid import Grid

EVERYTHING = AugmentSettings(elastic=1, bias=1, gamma=1, blur=1, noise=1, slices=1)


def settings(**more):
    return DataSettings(**{"manifest": "oasis", "split": "split_a"} | more)


def names(table):
    return [table[place][1:] for place in range(len(table))]


def listed(*pairs, **transforms):
    return [
        Pair(f"{fixed}-{moving}", Scan(fixed, None), Scan(moving, None), transforms=transforms)
        for fixed, moving in pairs
    ]


def varied(scans, seed=0, **more):
    table = training_pairs(settings(split="training"), scans.about)
    return varied_pairs(settings(split="training", seed=seed, **more), scans, table)


def varied_pairs(chosen, scans, table, teachers=None):
    augmentation = None if chosen.augment is None else Augmentation(chosen.augment, scans.grid)
    synthesis = None if chosen.synthesis is None else Synthesis(chosen.synthesis)
    made = {"augmentation": augmentation, "synthesis": synthesis, "teachers": teachers}
    return VariedPairs(scans, table, seed=chosen.seed, labels=chosen.labels, **made)


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) if key != "pair" else one[key] == other[key] for key in one)


def first(loader, count):
    return list(itertools.islice(loader, count))


def test_all_ordered_pairs_of_the_split_and_of_no_other(held):
    about = held(6, "aabbab", "uvwxyz").about
    table = training_pairs(settings(), about)
    assert set(names(table)) == set(itertools.permutations(("s0", "s1", "s4"), 2))
    assert len(table) == 6
    assert table[0][0] == "s0_s1"


def test_whoever_is_held_out_is_not_trained_on_by_any_scan(held):
    about = held(5, "aaaaa", "ppqrs").about
    chosen = settings(held_out=("s0", "s3"))
    assert set(names(training_pairs(chosen, about))) == set(itertools.permutations(("s2", "s4"), 2))
    assert names(validation_pairs(chosen, about)) == [("s0", "s3"), ("s3", "s0")]


def test_two_scans_of_one_person_make_a_pair_only_if_asked(held):
    about = held(3, "aaa", "ppq").about
    assert ("s0", "s1") in names(training_pairs(settings(), about))
    assert set(names(training_pairs(settings(same_person=False), about))) == {
        ("s0", "s2"),
        ("s2", "s0"),
        ("s1", "s2"),
        ("s2", "s1"),
    }


def test_a_validation_split_gives_its_listed_pairs_or_a_ring(held):
    about = held(6, "aabbba", "uvwxyz").about
    chosen = settings(validation_split="split_b")
    assert names(validation_pairs(chosen, about)) == [("s2", "s3"), ("s3", "s4"), ("s4", "s2")]
    table = validation_pairs(chosen, about, listed(("s4", "s3"), ("s0", "s1")))
    assert [table[place] for place in range(len(table))] == [("s4-s3", "s4", "s3")]
    assert len(validation_pairs(settings(), about)) == 0


def test_settings_and_data_that_do_not_fit_are_refused(held):
    about = held(3, "aab", "uvw").about
    with pytest.raises(InputError, match="no pair to train on"):
        training_pairs(settings(held_out=("s0",)), about)
    with pytest.raises(InputError, match="no pair to train on with transforms 'syn'"):
        training_pairs(settings(teacher="syn"), about, listed(("s0", "s1")))
    with pytest.raises(InputError, match="'s2' is no scan of the split"):
        training_pairs(settings(held_out=("s2",)), about)
    with pytest.raises(InputError, match="no pair can be made"):
        validation_pairs(settings(validation_split="split_b"), about)
    for wrong in (
        {"validation_split": "split_a"},
        {"held_out": ("s0",), "validation_split": "split_b"},
        {"teacher": "syn", "synthesis": SynthesisSettings()},
        {"augment": {"elastik": 1}},
        {"augment": {"gammas": (2, 1)}},
    ):
        with pytest.raises(ValidationError):
            settings(**wrong)


def test_pairs_across_splits_are_refused_whoever_listed_them(held):
    scans = held(3, "aab", "uvw")
    mixed = PairTable(("s0", "s2"), np.array([0]), np.array([1]))
    with pytest.raises(InputError, match="several splits"):
        FixedPairs(scans, mixed)
    with pytest.raises(InputError, match="several splits"):
        VariedPairs(scans, mixed, seed=0)


def test_fixed_pairs_are_the_scans_as_they_are(held, box):
    scans = held(3)
    pairs = FixedPairs(scans, training_pairs(settings(split="training"), scans.about), labels=True)
    assert len(pairs) == 6
    sample = pairs[1]
    assert sample["pair"] == "s0_s2"
    assert torch.equal(sample["moving"], scans["s2"].intensities()[0])
    assert sample["moving"].dtype == torch.float32
    assert sample["fixed"].shape == sample["fixed_labels"].shape == (1, *box.shape)
    assert sample["fixed_labels"].unique().tolist() == [0, 2, 41]
    assert torch.equal(sample["fixed_labels"], scans["s0"].labelled().values()[0])
    with pytest.raises(IndexError):
        pairs[6]


def test_every_pair_comes_once_a_round_in_another_order_each_time(held):
    pairs = varied(held(4), augment=None)
    rounds = [[pairs[number]["pair"] for number in range(12 * turn, 12 * turn + 12)] for turn in range(3)]
    assert all(len(set(order)) == 12 for order in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert pairs[5]["pair"] == rounds[0][5]


@pytest.mark.parametrize("synthesis", [None, SynthesisSettings(share=0.5)])
def test_a_sample_depends_on_the_seed_and_its_number_alone(held, synthesis):
    more = {"augment": EVERYTHING, "labels": True, "synthesis": synthesis}
    pairs, again = varied(held(), **more), varied(held(), **more)
    torch.manual_seed(1)
    samples = [pairs[number] for number in range(4)]
    torch.rand(3)
    assert all(equal(again[number], samples[number]) for number in (2, 0, 3, 1))
    assert not any(equal(varied(held(), seed=1, **more)[number], samples[number]) for number in range(4))


def test_labels_follow_their_images(held):
    """Where an image was painted without texture, it is constant on each label that comes with it."""
    only_motion = AugmentSettings(bias=0, gamma=0, blur=0, noise=0, slices=0, elastic=1)
    flat = SynthesisSettings(texture=(0, 0), blur_voxels=(0, 0))
    sample = varied(held(), augment=only_motion, labels=True, synthesis=flat)[0]
    for side in ("fixed", "moving"):
        for label in sample[f"{side}_labels"].unique():
            assert len(sample[side][sample[f"{side}_labels"] == label].unique()) == 1


def test_labels_must_be_there_when_they_are_wanted(held):
    from dataclasses import replace

    scans = held(2)
    bare = replace(scans, scans={name: replace(scans[name], index=None, ids=None) for name in scans.about})
    assert "fixed_labels" not in varied(bare)[0]
    with pytest.raises(InputError, match="without labels"):
        varied(bare, labels=True)[0]


def test_batches_hold_what_was_promised(held, box):
    batch = next(iter(PairLoader(varied(held(), labels=True), batch=3)))
    assert {key: tuple(value.shape) for key, value in batch.items() if key != "pair"} == dict.fromkeys(
        ("fixed", "moving", "fixed_labels", "moving_labels"), (3, 1, *box.shape)
    )
    assert batch["fixed"].dtype == torch.float32
    assert batch["fixed_labels"].dtype == torch.int32
    assert batch["pair"] == [varied(held())[number]["pair"] for number in range(3)]


def test_a_resumed_sequence_goes_on_exactly(held):
    loader = PairLoader(varied(held(), augment=EVERYTHING), batch=2)
    whole = first(loader, 5)
    interrupted = PairLoader(varied(held(), augment=EVERYTHING), batch=2)
    first(interrupted, 2)
    state = interrupted.state_dict()
    resumed = PairLoader(varied(held(), augment=EVERYTHING), batch=2)
    resumed.load_state_dict(state)
    assert all(map(equal, first(resumed, 3), whole[2:]))
    # Also in another batch size: the pairs are counted, not the batches.
    single = PairLoader(varied(held(), augment=EVERYTHING), given=state["given"])
    assert next(iter(single))["pair"] == whole[2]["pair"][:1]


@pytest.mark.slow
def test_workers_change_nothing_nor_do_they_run_ahead(held):
    """What they made in advance and nobody took is made again."""
    alone = first(PairLoader(varied(held(), augment=EVERYTHING)), 5)
    loader = PairLoader(varied(held(), augment=EVERYTHING), workers=1)
    before = torch.get_rng_state()
    assert all(map(equal, first(loader, 3), alone))
    assert torch.equal(torch.get_rng_state(), before)
    assert loader.state_dict()["given"] == 3


def test_processes_that_train_together_share_the_sequence(held):
    together = [PairLoader(varied(held()), batch=2, rank=rank, ranks=2) for rank in range(2)]
    parts = [[batch["pair"] for batch in first(loader, 2)] for loader in together]
    in_turn = [pair for step in zip(*parts, strict=True) for batch in step for pair in batch]
    assert in_turn == [batch["pair"][0] for batch in first(PairLoader(varied(held())), 8)]
    assert together[0].state_dict() == together[1].state_dict()
    # Also where they go on, and in whatever number: the pairs of all of them are counted.
    assert together[0].state_dict()["given"] == 8
    whole = [batch["pair"][0] for batch in first(PairLoader(varied(held())), 12)]
    for ranks in (1, 2):
        resumed = [PairLoader(varied(held()), batch=2, rank=rank, ranks=ranks) for rank in range(ranks)]
        for loader in resumed:
            loader.load_state_dict(together[1].state_dict())
        assert [pair for loader in resumed for pair in first(loader, 1)[0]["pair"]] == whole[8 : 8 + 2 * ranks]


def test_another_sequence_is_not_resumed(held):
    state = PairLoader(varied(held())).state_dict()
    with pytest.raises(InputError, match="other pairs"):
        PairLoader(varied(held(3))).load_state_dict(state)
    with pytest.raises(InputError, match="other seed"):
        PairLoader(varied(held(), seed=1)).load_state_dict(state)


@pytest.fixture
def taught(held, box, tmp_path):
    """Two scans with alignments, and a transform of their worlds in a file."""
    alignments = [np.diag([1.1, 0.9, 1.0, 1.0]), np.eye(4)]
    alignments[0][:3, 3], alignments[1][:3, 3] = (40, -30, 10), (-5, 3, 100)
    world = Affine(np.array([[0.95, 0, 0.02, 1], [0, 1.05, 0, -2], [0.01, 0, 1, 1.5], [0, 0, 0, 1.0]]))
    transform = Affine(alignments[1]) @ world @ Affine(alignments[0]).inverse()
    write_affine(tmp_path / "teacher.tfm", transform)
    return held(2, "aa"), tmp_path / "teacher.tfm", alignments, world


def test_a_teacher_is_read_between_the_boxes_and_kept(taught, box, tmp_path):
    _, path, alignments, world = taught
    expected = world.on(box).displacement
    teachers = Teachers({"p": (path, *alignments)}, box, tmp_path / "cache")
    assert (teachers["p"] - expected).abs().max() < 0.01
    assert "p" in teachers
    again = Teachers({"p": (path, *alignments)}, box, tmp_path / "cache")
    write_affine(path, Affine.identity(3), overwrite=True)
    assert torch.equal(again["p"], teachers["p"])
    changed = Teachers({"p": (path, *alignments)}, box, tmp_path / "cache")
    assert (changed["p"] - expected).abs().max() > 1


@pytest.mark.parametrize("changed", ["fixed", "moving", "box"])
def test_a_teacher_is_read_anew_for_another_alignment_of_either_scan_and_another_box(taught, box, tmp_path, changed):
    _, path, alignments, _ = taught
    moved = np.eye(4)
    moved[:3, 3] = 7, -5, 3
    before = Teachers({"p": (path, *alignments)}, box, tmp_path / "cache")["p"]
    if changed == "box":
        box = Grid(box.shape, moved @ box.affine)
    else:
        place = ("fixed", "moving").index(changed)
        alignments[place] = alignments[place] @ moved
    after, fresh = (Teachers({"p": (path, *alignments)}, box, cache)["p"] for cache in (tmp_path / "cache", None))
    assert torch.equal(after, fresh)
    assert (after - before).abs().max() > 0.1


def test_a_teacher_in_a_field_of_millimetres(box, tmp_path):
    grid = Grid.isotropic((30, 34, 28), 3.0)
    shift = DisplacementField.from_millimetres(np.broadcast_to([3.0, -2.0, 1.0], (*grid.shape, 3)), grid)
    write_displacement(tmp_path / "teacher.nii.gz", shift)
    to_scan = np.eye(4)
    to_scan[:3, 3] = grid.centre - box.centre
    teacher = Teachers({"p": (tmp_path / "teacher.nii.gz", to_scan, to_scan)}, box)["p"]
    assert torch.allclose(teacher[0].flatten(1).mean(1), torch.tensor([1.5, -1, 0.5]), atol=1e-2)


def test_teachers_come_with_their_pairs_augmented_or_not(taught, box):
    scans, path, alignments, world = taught
    chosen = settings(teacher="syn", augment=AugmentSettings(elastic=0, flip=1))
    table = training_pairs(chosen, scans.about, listed(("s0", "s1"), syn=path))
    teachers = Teachers({"s0-s1": (path, *alignments)}, box)
    plain = FixedPairs(scans, table, teachers=teachers)[0]["teacher"]
    assert plain.shape == (3, *box.shape)
    assert (plain - world.on(box).displacement[0]).abs().max() < 0.01
    pairs = varied_pairs(chosen, scans, table, teachers=teachers)
    fixed, moving = pairs.augmentation.motions(np.random.default_rng([0, 1, 0]))
    expected = (moving.transform().inverse() @ world @ fixed.transform()).on(box).displacement[0]
    # Inside: what the teacher says beyond the box is not known.
    assert (pairs[0]["teacher"] - expected)[:, 5:-5, 5:-5, 5:-5].abs().max() < 0.01
    assert (expected - plain)[:, 5:-5, 5:-5, 5:-5].abs().max() > 0.1
    still = varied_pairs(chosen.model_copy(update={"augment": None}), scans, table, teachers=teachers)
    assert torch.equal(still[0]["teacher"], plain)
