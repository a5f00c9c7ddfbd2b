import pytest
import torch
from torch import nn

from stepwarp.training.ema import RunningMean


def constant(value):
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    for weights in module.parameters():
        nn.init.constant_(weights, value)
    module[1].running_mean.fill_(value)
    return module


def test_the_mean_follows_with_its_decay():
    module = constant(0.0)
    mean = RunningMean(module, 0.9)
    mean.count = 10_000
    for weights in module.parameters():
        nn.init.constant_(weights, 1.0)
    module[1].running_mean.fill_(3.0)
    for n in range(1, 4):
        mean.update(module)
        assert float(mean.module[0].weight.detach()[0, 0]) == pytest.approx(1 - 0.9**n)
    assert float(mean.module[1].running_mean[0]) == 3.0
    assert float(module[0].weight.detach()[0, 0]) == 1.0


def test_untrained_weights_are_forgotten():
    mean = RunningMean(constant(100.0), 0.999)
    mean.update(constant(1.0))
    assert float(mean.module[0].weight.detach()[0, 0]) == pytest.approx(1.0)


def test_without_decay_it_is_the_last_weights():
    mean = RunningMean(constant(0.0), 0.0)
    for value in (1.0, 2.0, 3.0):
        mean.update(constant(value))
        assert float(mean.module[0].weight.detach()[0, 0]) == value


def test_the_mean_cannot_be_trained():
    mean = RunningMean(constant(0.0), 0.5)
    assert not any(weights.requires_grad for weights in mean.module.parameters())
    assert not mean.module.training
    assert torch.is_grad_enabled()
