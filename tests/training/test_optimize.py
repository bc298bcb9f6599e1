"""Optimizers against one step by hand, learning rates against the schedule's formula."""

import numpy as np
import pytest
import torch

from l2r2.config import TrainSettings
from l2r2.errors import ConfigError
from l2r2.training.optimize import configure, rate_of_epoch

RATE, DECAY = 0.1, 0.5


def steps(optimizer, gradients):
    """A weight of 1 after steps along these gradients."""
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    settings = TrainSettings(optimizer=optimizer, learning_rate=RATE, weight_decay=DECAY)
    chosen = configure([weight], settings)["optimizer"]
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        chosen.step()
    return weight.item()


def test_sgd_has_momentum():
    # w = 1, g = 2 + 0.5·1 = 2.5 → w = 0.75; then g = 1 + 0.5·0.75 = 1.375, v = 0.9·2.5 + 1.375 = 3.625 → w = 0.3875
    assert steps("sgd", [2.0, 1.0]) == pytest.approx(0.3875)


def test_adam_takes_decay_into_its_gradient():
    # the first step is the gradient's sign: −1 + 0.5·1 < 0, and decay alone does not turn it
    assert steps("adam", [-1.0]) == pytest.approx(1 + RATE)
    assert steps("adam", [-0.25]) == pytest.approx(1 - RATE)  # −0.25 + 0.5 > 0: it does here


def test_adamw_decays_apart():
    # 1·(1 − 0.1·0.5) − 0.1·sign(g), whatever g is
    assert steps("adamw", [-1.0]) == pytest.approx(1.05)
    assert steps("adamw", [-0.25]) == pytest.approx(1.05)


def rates(**changes):
    settings = TrainSettings(learning_rate=RATE, **changes)
    chosen = configure([torch.nn.Parameter(torch.ones(1))], settings)
    seen = []
    for _ in range(settings.epochs):
        seen.append(chosen["optimizer"].param_groups[0]["lr"])
        chosen["optimizer"].step()
        chosen["lr_scheduler"]["scheduler"].step()
    assert chosen["lr_scheduler"]["interval"] == "epoch"
    return seen


def test_cosine_is_that_of_torch():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], RATE)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(epochs=7) == pytest.approx(expected)


def test_a_constant_rate():
    assert rates(epochs=3, schedule="constant") == [RATE] * 3


def test_warm_up_rises_from_a_hundredth():
    assert rates(epochs=4, schedule="constant", warmup_epochs=2) == pytest.approx([0.001, 0.0505, 0.1, 0.1])


def test_cosine_falls_over_what_warm_up_leaves():
    # two epochs of warm-up, then (1 + cos(π e / 4)) / 2 for e = 0, 1, 2, 3
    falling = [1, (1 + np.sqrt(0.5)) / 2, 0.5, (1 - np.sqrt(0.5)) / 2]
    assert rates(epochs=6, warmup_epochs=2)[2:] == pytest.approx([RATE * share for share in falling])


@pytest.mark.parametrize("warmup", [3, 4])
def test_warm_up_leaves_an_epoch(warmup):
    message = rf"^train\.warmup_epochs = {warmup} leaves nothing of train\.epochs = 3; lower it$"
    with pytest.raises(ConfigError, match=message):
        rate_of_epoch(TrainSettings(epochs=3, warmup_epochs=warmup))
