"""What the objectives have in common, and what they are for."""

import copy
import math
import re
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from l2r2 import config
from l2r2.classification.timm_model import create_network
from l2r2.errors import ConfigError
from l2r2.training.objectives import OBJECTIVES, Batch, Descent, Network, make_objective
from l2r2.training.objectives.base import evaluating
from tests.training.environments import (
    at,
    make_batches,
    make_network,
    trained,
)

NEUTRAL = {
    "erm": {},
    "groupdro": {"eta": 0},
    "mixup": {"alpha": 0},
    "irm": {"penalty": 0, "anneal_steps": 0},
    "vrex": {"penalty": 0, "anneal_steps": 0},
    "coral": {"gamma": 0},
    "mmd": {"gamma": 0},
    "causirl": {"gamma": 0},
    "w2d": {"worst_share": 1, "mute_share": 0},
    "jtt": {"up_weight": 1},
}
"""Settings that leave nothing of an objective but the mean risk; Fish has none where there are two environments."""


@pytest.fixture
def network():
    return make_network()


def test_every_name_of_the_settings_has_an_objective():
    assert tuple(OBJECTIVES) == get_args(config.Objective)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_unknown_setting_names_the_known_ones(name):
    known = ", ".join(OBJECTIVES[name].numbers) or "none"
    message = f"train.objective_settings: objective {name} has no setting 'gama'; it has {known}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_objective(name, {"gama": 1}, 2)


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("irm", "penalty", -1, "a number from 0 up"),
        ("irm", "anneal_steps", 1.5, "a whole number from 0 up"),
        ("fish", "meta_rate", 1.1, "a number from 0 to 1"),
        ("mixup", "selective", 0.5, "a whole number from 0 to 1"),
        ("coral", "gamma", math.nan, "a number from 0 up"),
        ("vrex", "penalty", math.inf, "a number from 0 up"),
        ("jtt", "first_epochs", 0, "a whole number from 1 up"),
    ],
)
def test_a_value_out_of_range(name, key, value, expected):
    message = f"train.objective_settings.{key} = {value:g}: objective {name} expects {expected}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_objective(name, {key: value}, 2)


def test_the_defaults_are_published_ones():
    # DomainBed, hparams_registry.py; W2D's fork of it; JTT's and LISA's papers
    expected = {
        "erm": {},
        "groupdro": {"eta": 0.01},
        "mixup": {"alpha": 0.2, "selective": 0},
        "irm": {"penalty": 100, "anneal_steps": 500},
        "vrex": {"penalty": 10, "anneal_steps": 500},
        "coral": {"gamma": 1},
        "mmd": {"gamma": 1},
        "causirl": {"gamma": 1, "gaussian": 0},
        "fish": {"meta_rate": 0.5},
        "w2d": {"worst_share": 1 / 3, "last_share": 0.25, "mute_share": 0.25, "mute_samples": 0.25},
        "jtt": {"first_epochs": 1, "up_weight": 50},
    }
    assert {name: make_objective(name, {}, 2).settings for name in OBJECTIVES} == expected
    assert make_objective("mixup", {"selective": 1}, 2).settings["alpha"] == 2
    assert make_objective("mixup", {"selective": 1, "alpha": 0.3}, 2).settings["alpha"] == 0.3


@pytest.mark.parametrize("name", NEUTRAL)
def test_without_strength_it_is_risk_minimisation(network, name):
    batches = make_batches()
    objective = make_objective(name, NEUTRAL[name], 2)
    if name == "jtt":
        objective.load_state_dict({"wrong": torch.tensor([1, 8]), "mean_weight": 1.0})
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    expected = copy.deepcopy(network.module)
    adam = torch.optim.Adam(expected.parameters(), 0.05)
    for _ in range(5):
        adam.zero_grad()
        cross_entropy(expected(images), labels).backward()
        adam.step()
    torch.testing.assert_close(
        trained(network, objective, batches), nn.utils.parameters_to_vector(expected.parameters()).detach()
    )


@pytest.mark.parametrize("name", set(NEUTRAL) - {"erm"})
def test_with_strength_it_is_not(network, name):
    batches = make_batches(seed=1)
    strong = {
        "groupdro": {"eta": 1},
        "irm": {"penalty": 10, "anneal_steps": 0},
        "vrex": {"penalty": 10, "anneal_steps": 0},
    }
    objective = make_objective(name, strong.get(name, {}), 2)
    if name == "jtt":
        objective.load_state_dict({"wrong": torch.tensor([1, 8]), "mean_weight": 1.0})
    plain = trained(network, make_objective("erm", {}, 2), batches)
    assert (trained(network, objective, batches) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_label_smoothing_changes_the_loss(network, name):
    batches, losses = make_batches(), []
    for smoothing in (0, 0.2):
        objective = make_objective(name, NEUTRAL.get(name, {}), 2, label_smoothing=smoothing)
        losses.append(objective.loss(network, batches, at()).item())
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    log_probs = network(images).log_softmax(dim=1)
    chosen = -log_probs.gather(1, labels[:, None]).mean().item()
    assert losses == pytest.approx([chosen, 0.8 * chosen - 0.2 * log_probs.mean().item()])


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_the_parts_of_a_network_make_the_whole(model):
    network = Network(create_network(model, 4).eval())
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(network.classify(network.features(images)), network(images))


def test_evaluating_gives_each_part_its_mode_back():
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    module[1].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False, False]


def spurious(agreement, n, rng):
    """Channel 0 agrees with the label in 75 %, channel 1 with `agreement`; both are ±1, and noise."""
    labels = rng.integers(2, size=n)
    signs = 2 * labels - 1
    cause = np.where(rng.random(n) < 0.75, signs, -signs)
    scene = np.where(rng.random(n) < agreement, signs, -signs)
    images = np.stack([cause, scene, np.zeros(n)], axis=1) + rng.normal(0, 0.1, (n, 3))
    return torch.from_numpy(images)[:, :, None, None], torch.from_numpy(labels)


class Linear(nn.Module):
    """A linear classifier of images of one pixel."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2).double()

    def forward(self, images):
        return self.fc(images[:, :, 0, 0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_invariance_penalty_turns_from_the_scene_to_the_cause(seed):
    rng = np.random.default_rng(seed)
    batches = [Batch(*spurious(share, 2000, rng), torch.arange(2000), str(share)) for share in (0.95, 0.8)]
    images, labels = spurious(0.1, 2000, rng)
    strong = {"penalty": 1000, "anneal_steps": 30}
    accuracy = {}
    for name, settings in {"erm": {}, "irm": strong, "vrex": strong}.items():
        torch.manual_seed(seed)
        network = Network(Linear())
        objective = make_objective(name, settings, 2)
        descent = Descent(torch.optim.Adam(network.module.parameters(), 0.05))
        for number in range(150):
            objective.update(network, descent, batches, at(number))
        accuracy[name] = (network(images).argmax(dim=1) == labels).double().mean().item()
    # by the scene alone 0.1, by the cause alone 0.75
    assert accuracy["erm"] < 0.3
    assert accuracy["irm"] > 0.6
    assert accuracy["vrex"] > 0.6
