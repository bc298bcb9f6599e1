"""Objectives on features and on samples, against independent computations."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from l2r2.classification.timm_model import create_network
from l2r2.errors import ConfigError
from l2r2.training.objectives import Batch, Descent, Network, make_objective
from l2r2.training.objectives.coral import moment_distance
from l2r2.training.objectives.mmd import mean_discrepancy
from l2r2.training.objectives.w2d import kept, worst
from tests.training.environments import (
    CLASSES,
    TinyNetwork,
    at,
    make_batches,
    make_network,
    pooled,
    risks,
    trained,
)


@pytest.fixture
def network():
    return make_network()


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
