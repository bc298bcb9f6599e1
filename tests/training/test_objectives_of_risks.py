"""Objectives on the risks and logits of the environments, against independent computations."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from l2r2.training.objectives import Batch, Descent, Network, make_objective
from tests.training.environments import SIZE, at, make_batches, make_network, risks


@pytest.fixture
def network():
    return make_network()


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
