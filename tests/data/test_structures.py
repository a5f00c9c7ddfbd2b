import torch

from stepwarp.data.structures import as_classes, structures

NAMES = {0: "Unknown", 2: "Left Thalamus", 9: "Right Thalamus", 4: "Brain Stem", 5: "Left Vessel", 7: "Right Vessel"}


def test_left_and_right_are_one_structure():
    assert structures(NAMES) == {2: 1, 9: 1, 4: 2, 5: 3, 7: 3}


def test_ignored_labels_have_no_class_and_leave_no_gap():
    assert structures(NAMES, ignore=(0, 2, 9)) == {4: 1, 5: 2, 7: 2}
    assert structures(NAMES, ignore=(2,)) == {9: 1, 4: 2, 5: 3, 7: 3}


def test_labels_become_classes_and_unknown_ones_background():
    labels = torch.tensor([[0, 2, 4], [9, -1, 2_000_000_000]], dtype=torch.int32)
    found = as_classes(labels, structures(NAMES))
    assert found.dtype == torch.int64
    assert found.tolist() == [[0, 1, 2], [1, 0, 0]]
    assert as_classes(torch.zeros(2, 2), {}).tolist() == [[0, 0], [0, 0]]
