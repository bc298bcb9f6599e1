"""Each objective against an independent computation, and what they have in common."""

import copy
import itertools
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
from l2r2.training.objectives import OBJECTIVES, Batch, Descent, Network, Step, make_objective
from l2r2.training.objectives.base import evaluating
from l2r2.training.objectives.coral import moment_distance
from l2r2.training.objectives.mmd import mean_discrepancy
from l2r2.training.objectives.w2d import kept, worst

CLASSES, SIZE = 3, 4

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


class TinyNetwork(nn.Module):
    """A convolution, rectified; its mean over space; a linear head. In timm's parts."""

    def __init__(self, classes=CLASSES, width=5, dropout=0.0, *, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def forward_features(self, images):
        return self.norm(self.conv(images)).relu()

    def forward_head(self, maps, pre_logits=False):
        pooled = self.drop(maps.mean(dim=(2, 3)))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self):
        return self.fc

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(TinyNetwork().double())


def make_batches(sizes=(6, 6), seed=0):
    """Noise around a mean that differs by environment, in double precision."""
    rng = np.random.default_rng(seed)
    batches, start = [], 0
    for number, size in enumerate(sizes):
        images = torch.from_numpy(rng.normal(0.5 * number, 1, (size, 3, SIZE, SIZE)))
        labels = torch.from_numpy(rng.integers(CLASSES, size=size))
        batches.append(Batch(images, labels, torch.arange(start, start + size), f"e{number}"))
        start += size
    return batches


def at(number=0, total=1000, seed=0):
    return Step(number, total, np.random.default_rng(seed))


def risks(network, batches):
    return [cross_entropy(network(b.images), b.labels).item() for b in batches]


def pooled(network, batches):
    return [network.features(b.images).detach().numpy() for b in batches]


def trained(network, objective, batches, steps=5, kind=torch.optim.Adam):
    """Weights after some steps from those of `network`, which stays as it is."""
    copied = Network(copy.deepcopy(network.module))
    descent = Descent(kind(copied.module.parameters(), 0.05))
    for number in range(steps):
        objective.update(copied, descent, batches, at(number, steps, seed=number))
    return nn.utils.parameters_to_vector(copied.module.parameters()).detach()


# What all have in common


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


# GroupDRO


def test_groupdro_weights_follow_the_exponentiated_gradient(network):
    batches = make_batches((6, 4, 5))
    objective = make_objective("groupdro", {"eta": 0.7}, 3)
    expected = np.full(3, 1 / 3)
    descent = Descent(torch.optim.SGD(network.module.parameters(), 0.5))
    for number in range(4):
        each = np.array(risks(network, batches))
        expected = expected * np.exp(0.7 * each)
        expected /= expected.sum()
        assert objective.update(network, descent, batches, at(number)) == pytest.approx(expected @ each)
    assert objective.state_dict()["q"].numpy() == pytest.approx(expected, rel=1e-6)
    assert expected.max() - expected.min() > 0.01


def test_groupdro_survives_a_large_eta(network):
    objective = make_objective("groupdro", {"eta": 1e4}, 2)
    assert objective.loss(network, make_batches(), at()).item() == pytest.approx(max(risks(network, make_batches())))


# Mixup


class Recorder(Network):
    """Keeps the images that it was given."""

    def __call__(self, images):
        self.given = images
        return super().__call__(images)


def test_mixup_mixes_images_and_risks_in_a_ring(network):
    batches = make_batches((6, 6, 6))
    rng = np.random.default_rng(3)
    order, total = rng.permutation(3), 0.0
    for place, i in enumerate(order):
        j = order[(place + 1) % 3]
        share = rng.beta(0.2, 0.2)
        logits = network(share * batches[i].images + (1 - share) * batches[j].images)
        total += share * cross_entropy(logits, batches[i].labels).item()
        total += (1 - share) * cross_entropy(logits, batches[j].labels).item()
    objective = make_objective("mixup", {}, 3)
    assert objective.loss(network, batches, at(seed=3)).item() == pytest.approx(total / 3)


def test_mixup_of_one_hot_shares_takes_whole_batches(network):
    batches = make_batches()
    first, second = risks(network, batches)
    objective = make_objective("mixup", {"alpha": 1e-6}, 2)
    seen = {round(objective.loss(network, batches, at(seed=seed)).item(), 9) for seed in range(12)}
    assert seen == {round(value, 9) for value in ((first + second) / 2, first, second)}


def test_selective_mixup_mixes_the_same_label_only(network):
    # an image is filled with 10 × environment + label, so its mixture says what it is made of
    labels = [torch.tensor([0, 1, 1, 2]), torch.tensor([1, 1, 0, 0])]
    batches = [
        Batch((10.0 * e + y)[:, None, None, None].expand(-1, 3, SIZE, SIZE).double(), y, torch.arange(4), str(e))
        for e, y in enumerate(labels)
    ]
    recorder = Recorder(network.module)
    loss = make_objective("mixup", {"selective": 1}, 2).loss(recorder, batches, at())
    order = np.random.default_rng(0).permutation(2).tolist()
    values, own = recorder.given[:, 0, 0, 0], torch.cat([labels[i] for i in order])
    shares = dict(zip(order, ((values - own) / 10).split(4), strict=True))  # of environment 1
    assert shares[0][3] == 0  # the only 2 stays as it is
    for mixed in (shares[0][:3], shares[1]):
        assert 0.01 < mixed[0] < 0.99
        torch.testing.assert_close(mixed, mixed[:1].expand_as(mixed))
    assert loss.item() == pytest.approx(cross_entropy(network(recorder.given), own).item())


# IRM and VREx


def derivative(logits, labels, h=1e-5):
    """Of the risk by a scale on the logits, by central differences."""
    high, low = (cross_entropy(logits * scale, labels).item() for scale in (1 + h, 1 - h))
    return (high - low) / (2 * h)


def test_irm_penalty_is_the_product_of_two_halves_gradients(network):
    batches = make_batches((7, 4))
    expected = 0.0
    for batch in batches:
        logits = network(batch.images).detach()
        expected += derivative(logits[::2], batch.labels[::2]) * derivative(logits[1::2], batch.labels[1::2]) / 2
    loss = make_objective("irm", {"penalty": 30, "anneal_steps": 0}, 2).loss(network, batches, at())
    assert loss.item() == pytest.approx(np.mean(risks(network, batches)) + 30 * expected, rel=1e-6)


def test_irm_penalty_of_equal_halves_is_the_squared_gradient(network):
    batch = make_batches((5,))[0]
    logits = network(batch.images)
    penalty = make_objective("irm", {}, 1).squared_gradient(
        logits.repeat_interleave(2, dim=0), batch.labels.repeat_interleave(2)
    )
    assert penalty.item() == pytest.approx(derivative(logits.detach(), batch.labels) ** 2, rel=1e-6)


def test_irm_penalty_has_the_gradient_of_finite_differences(network):
    batches = make_batches()
    objective = make_objective("irm", {"penalty": 30, "anneal_steps": 0}, 2)
    bias = network.module.fc.bias
    gradient = torch.autograd.grad(objective.loss(network, batches, at()), bias)[0][0].item()
    values = []
    for moved in (1e-5, -1e-5):
        with torch.no_grad():
            bias[0] += moved
        values.append(objective.loss(network, batches, at()).item())
        with torch.no_grad():
            bias[0] -= moved
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_vrex_penalty_is_the_variance_of_the_risks(network):
    batches = make_batches((6, 4, 5))
    each = risks(network, batches)
    loss = make_objective("vrex", {"penalty": 7, "anneal_steps": 0}, 3).loss(network, batches, at())
    assert loss.item() == pytest.approx(np.mean(each) + 7 * np.var(each))


@pytest.mark.parametrize("name", ["irm", "vrex"])
def test_the_penalty_weighs_one_until_annealed(network, name):
    batches = make_batches()
    objective = make_objective(name, {"penalty": 20, "anneal_steps": 3}, 2)
    before, last, annealed = (objective.loss(network, batches, at(number)).item() for number in (0, 2, 3))
    mean = np.mean(risks(network, batches))
    assert before == last
    assert annealed - mean == pytest.approx(20 * (before - mean))


@pytest.mark.parametrize("name", ["irm", "vrex"])
def test_the_optimizer_forgets_where_the_penalty_is_annealed(network, name):
    objective = make_objective(name, {"penalty": 1, "anneal_steps": 2}, 2)
    batches = make_batches()
    adam = torch.optim.Adam(network.module.parameters(), 0.01)
    counts = []
    for number in range(5):
        objective.update(network, Descent(adam), batches, at(number))
        counts.append(int(adam.state[network.module.fc.bias]["step"]))
    assert counts == [1, 2, 1, 2, 3]


# CORAL, MMD, CausIRL


def moments_apart(x, y):
    means = np.mean((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    return means + np.mean((np.cov(x, rowvar=False) - np.cov(y, rowvar=False)) ** 2)


def kernels_apart(x, y):
    def mean_kernel(p, q):
        pairs = itertools.product(p, q)
        return np.mean([sum(math.exp(-(10.0**e) * np.sum((a - b) ** 2)) for e in range(-3, 4)) for a, b in pairs])

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


APART = {"coral": moments_apart, "mmd": kernels_apart}


@pytest.mark.parametrize(("ours", "theirs"), [(moment_distance, moments_apart), (mean_discrepancy, kernels_apart)])
def test_distances_of_distributions(ours, theirs):
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (7, 4)), rng.normal(0.5, 2, (5, 4))
    assert ours(torch.from_numpy(x), torch.from_numpy(y)).item() == pytest.approx(theirs(x, y), rel=1e-6)
    assert ours(torch.from_numpy(x), torch.from_numpy(x)).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_the_penalty_is_the_mean_over_pairs(network, name):
    batches = make_batches((6, 6, 6))
    features = pooled(network, batches)
    expected = np.mean([APART[name](x, y) for x, y in itertools.combinations(features, 2)])
    loss = make_objective(name, {"gamma": 3}, 3).loss(network, batches, at())
    assert loss.item() == pytest.approx(np.mean(risks(network, batches)) + 3 * expected, rel=1e-5)


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_one_environment_has_no_pairs(network, name):
    batches = make_batches((6,))
    assert make_objective(name, {}, 1).loss(network, batches, at()).item() == pytest.approx(risks(network, batches)[0])


@pytest.mark.parametrize("gaussian", [0, 1])
def test_causirl_compares_two_mixtures_of_the_environments(network, gaussian):
    batches = make_batches()
    rng = np.random.default_rng(5)
    first, second = [], []
    for features in pooled(network, batches):
        cut = rng.integers(len(features))
        first.append(features[:cut])
        second.append(features[cut:])
    assert sum(map(len, first)) > 1
    expected = (kernels_apart if gaussian else moments_apart)(np.concatenate(first), np.concatenate(second))
    loss = make_objective("causirl", {"gamma": 3, "gaussian": gaussian}, 2).loss(network, batches, at(seed=5))
    assert loss.item() == pytest.approx(np.mean(risks(network, batches)) + 3 * expected, rel=1e-5)


def test_causirl_without_a_covariance_is_the_risk(network):
    batches = make_batches((2,))  # one of the halves has one example, or none
    loss = make_objective("causirl", {}, 1).loss(network, batches, at())
    assert loss.item() == pytest.approx(risks(network, batches)[0])


# Fish


def sequential(network, batches, rate):
    """Plain gradient steps, one environment after another, by hand."""
    copied = copy.deepcopy(network.module)
    for batch in batches:
        gradients = torch.autograd.grad(cross_entropy(copied(batch.images), batch.labels), list(copied.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(copied.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    return nn.utils.parameters_to_vector(copied.parameters()).detach()


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_fish_goes_a_share_of_the_way_of_sequential_descent(network, share):
    batches = make_batches((6, 4, 5))
    start = nn.utils.parameters_to_vector(network.module.parameters()).detach()
    end = sequential(network, batches, 0.3)
    descent = Descent(torch.optim.SGD(network.module.parameters(), 0.3))
    make_objective("fish", {"meta_rate": share}, 3).update(network, descent, batches, at())
    moved = nn.utils.parameters_to_vector(network.module.parameters()).detach()
    torch.testing.assert_close(moved, start + share * (end - start))


def test_fish_moves_running_statistics_the_same_share():
    torch.manual_seed(0)
    module = TinyNetwork(norm=True).double()
    other = copy.deepcopy(module)
    batches = make_batches()
    with torch.no_grad():
        for batch in batches:
            other(batch.images)
    descent = Descent(torch.optim.SGD(module.parameters(), 0.0))
    make_objective("fish", {"meta_rate": 0.5}, 2).update(Network(module), descent, batches, at())
    torch.testing.assert_close(module.norm.running_mean, other.norm.running_mean / 2)
    assert module.norm.num_batches_tracked == 2


def test_fish_in_one_environment_is_risk_minimisation(network):
    batches = make_batches((6,))
    fish = trained(network, make_objective("fish", {"meta_rate": 1}, 1), batches)
    torch.testing.assert_close(fish, trained(network, make_objective("erm", {}, 1), batches))


# W2D


def test_w2d_takes_the_samples_of_the_highest_loss(network):
    images, labels = (torch.cat(parts) for parts in list(zip(*make_batches((9, 8)), strict=True))[:2])
    each = [
        cross_entropy(network(image[None]), label[None]).item() for image, label in zip(images, labels, strict=True)
    ]
    expected = sorted(range(17), key=lambda i: -each[i])[:5]  # ⌊17/3⌋
    assert worst(network, images, labels, 1 / 3).tolist() == expected
    assert worst(network, images, labels, 0).tolist() == expected[:1]
    assert worst(network, images, labels, 1).tolist() == list(range(17))


class Weighted(TinyNetwork):
    """Not every place counts alike."""

    places = torch.linspace(0.5, 2, 16, dtype=torch.double).view(4, 4) / 16

    def forward_head(self, maps, pre_logits=False):
        pooled = (maps * self.places).sum(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)


def test_w2d_mutes_the_places_of_the_highest_activation():
    torch.manual_seed(0)
    network = Network(Weighted().double())
    batch = make_batches((8,))[0]
    places = Weighted.places.numpy()
    maps = network.maps(batch.images).detach()
    weight, bias = network.module.fc.weight.detach().numpy(), network.module.fc.bias.detach().numpy()
    # the gradient of a logit at a place is the product of both weights; its mean over space is what counts
    muted, costs = [], []
    for sample, label in zip(maps.numpy(), batch.labels.tolist(), strict=True):
        activation = np.einsum("d,dhw->hw", weight[label] * places.mean(), sample)
        mask = np.ones(16)
        mask[np.argsort(-activation.ravel())[:4]] = 0  # ⌊0.25 × 16⌋
        mask = mask.reshape(4, 4)
        probs = []
        for seen in (sample, sample * mask):
            scores = np.exp(weight @ (seen * places).sum(axis=(1, 2)) + bias)
            probs.append(scores[label] / scores.sum())
        muted.append(mask)
        costs.append(probs[0] - probs[1] - 1e-4)
    leaning = np.argsort(-np.array(costs))[:2]  # 0.25 × 8
    assert all(costs[i] > 0 for i in leaning)
    expected = np.ones((8, 4, 4))
    expected[leaning] = np.array(muted)[leaning]
    assert np.array_equal(kept(network, maps, batch.labels, 0.25, 0.25).numpy(), expected.astype(bool))


def test_w2d_is_the_risk_of_the_worst_with_muted_maps(network):
    batches = make_batches()
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    objective = make_objective("w2d", {}, 2)
    for number, chosen in ((0, worst(network, images, labels, 1 / 3)), (750, torch.arange(12))):
        maps = network.maps(images[chosen])
        mask = kept(network, maps.detach(), labels[chosen], 0.25, 0.25)
        assert not mask.all()
        expected = cross_entropy(network.module.fc((maps * mask[:, None]).mean(dim=(2, 3))), labels[chosen])
        assert objective.loss(network, batches, at(number, 1000)).item() == pytest.approx(expected.item())


def test_w2d_wants_a_convolutional_network():
    network = Network(create_network("test_vit", CLASSES))
    batch = Batch(torch.randn(3, 3, 160, 160), torch.arange(3), torch.arange(3), "e0")
    with pytest.raises(ConfigError, match=r"^objective w2d mutes places .+ VisionTransformer gives .+ convolutional"):
        make_objective("w2d", {}, 1).loss(network, [batch], at())


# JTT


class Rehearsal:
    """Trains by giving the network other weights."""

    def __init__(self, network, batches):
        self.network, self.batches, self.epochs = network, batches, []

    def train(self, epochs):
        self.epochs.append(epochs)
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in self.network.module.parameters():
                parameter.copy_(torch.randn_like(parameter))
        self.weights = copy.deepcopy(self.network.module)

    def examples(self):
        return self.batches


def test_jtt_upweights_exactly_the_errors_and_starts_again(network):
    batches = make_batches((9, 7))
    initial = copy.deepcopy(network.module.state_dict())
    objective = make_objective("jtt", {"first_epochs": 3, "up_weight": 6}, 2)
    rehearsal = Rehearsal(network, batches)
    objective.begin(network, rehearsal)
    assert rehearsal.epochs == [3]
    assert all(torch.equal(value, initial[name]) for name, value in network.module.state_dict().items())

    wrong = [rehearsal.weights(b.images).argmax(dim=1) != b.labels for b in batches]
    count = sum(part.sum().item() for part in wrong)
    assert 0 < count < 16
    # the training set in which each error stands six times
    repeated = [
        cross_entropy(network(image[None]), label[None]).item()
        for batch, part in zip(batches, wrong, strict=True)
        for image, label, error in zip(batch.images, batch.labels, part, strict=True)
        for _ in range(6 if error else 1)
    ]
    assert objective.loss(network, batches, at()).item() == pytest.approx(np.mean(repeated))


def test_jtt_does_not_train_the_first_time_again(network):
    batches = make_batches()
    objective = make_objective("jtt", {}, 2)
    objective.begin(network, Rehearsal(network, batches))
    resumed, rehearsal = make_objective("jtt", {}, 2), Rehearsal(network, batches)
    resumed.load_state_dict(objective.state_dict())
    resumed.begin(network, rehearsal)
    assert rehearsal.epochs == []
    assert resumed.loss(network, batches, at()).item() == objective.loss(network, batches, at()).item()


# What they are for


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
