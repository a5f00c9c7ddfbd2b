import numpy as np
import pytest
import torch

from stepwarp.mnist.classifier import Instruments, accuracy, disturbed, train_classifier
from stepwarp.mnist.data import pairs
from stepwarp.mnist.pull import descent, matched
from stepwarp.mnist.training import objective

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_pair_is_taken_where_its_loss_is_first_as_low():
    path = {"loss": np.array([[4.0, 4], [3, 1], [2, 1], [1, 1]]), "probability": np.arange(8.0).reshape(4, 2)}
    found = matched(path, np.array([[5.0, 4], [2.5, 1], [0, 0]]))
    assert found["loss"].tolist() == [[4, 4], [2, 1], [1, 1]]
    assert found["probability"].tolist() == [[0, 1], [4, 3], [6, 7]]


def test_the_descent_goes_downhill(digits):
    fixed, moving = pairs(digits.test.of(7), 6)
    goal = objective(0.05)
    losses = torch.stack([goal.values(fixed, moving, found.displacement) for found in descent(goal, fixed, moving, 4)])
    assert (losses.diff(dim=0) <= 1e-7).all()
    assert (losses[-1] < 0.7 * losses[0]).float().mean() > 0.5


def test_the_classifier_knows_warped_and_blurred_digits(digits):
    net = train_classifier(digits.train, 6000, seed=0)
    rows = accuracy(net, digits.test)
    assert rows[0]["accuracy"] > 0.6
    assert all(0.25 < row["accuracy"] <= 1 for row in rows)
    judge = Instruments(net, digits.train.of(5).images)
    fives, ones = (digits.test.of(digit).images for digit in (5, 1))
    assert judge.probability(fives, 5).mean() > judge.probability(ones, 5).mean() + 0.3
    assert judge.distance(digits.train.of(5).images).max() < 1e-3 < judge.distance(fives).mean()
    assert judge.distance(fives).mean() < judge.distance(ones).mean()


def test_a_disturbance_of_no_size_is_none(digits):
    images = digits.train.images[:3]
    assert torch.equal(disturbed(images, 0, 1, 0, 0), images)
    assert not torch.equal(disturbed(images, 2, 2, 0, 0), images)
