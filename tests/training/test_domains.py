"""Batches of several environments, and fits on them that repeat."""

import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from l2r2.config import TrainSettings, ViewSettings
from l2r2.errors import ConfigError, DatasetError, TrainingError
from l2r2.training.augment import Augment
from l2r2.training.checkpoints import SafetensorsCheckpointIO
from l2r2.training.domains import DomainClassifier, domain_loader
from l2r2.training.objectives import OBJECTIVES
from tests.training.environments import CLASSES, SIZE, TinyNetwork

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*|.*weights_only.*"),
]

ENVIRONMENTS = np.array(["wood", "bog", "wood", "wood", "bog", "wood", "wood", "wood", "bog", "wood", "wood", "wood"])
BOG, WOOD = {1, 4, 8}, {0, 2, 3, 5, 6, 7, 9, 10, 11}

SETTINGS = {
    "groupdro": {"eta": 1},
    "irm": {"penalty": 5, "anneal_steps": 3},
    "vrex": {"penalty": 5, "anneal_steps": 3},
    "jtt": {"first_epochs": 2, "up_weight": 5},
}
"""Where the defaults would show nothing in nine steps."""


def make_items(n=12, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 1, (n, 3, SIZE, SIZE)).astype(np.float32)
    return TensorDataset(torch.from_numpy(images), torch.from_numpy(rng.integers(CLASSES, size=n)))


def epochs_of(loader, *epochs):
    """Positions by step and environment of some epochs, as Lightning asks for them."""
    result = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        result.append([[batch.positions.tolist() for batch in step] for step in loader])
    return result


# The loader


def test_each_step_has_a_whole_batch_of_each_environment():
    loader = domain_loader(make_items(), ENVIRONMENTS, 4, 0, 0)
    assert len(loader) == 3  # ⌈9 / 4⌉
    for step in loader:
        assert [batch.environment for batch in step] == ["bog", "wood"]
        for batch in step:
            assert batch.images.shape == (4, 3, SIZE, SIZE)
            assert set(batch.positions.tolist()) <= (BOG if batch.environment == "bog" else WOOD)


def test_batches_hold_the_items_of_their_positions():
    items = make_items()
    for step in domain_loader(items, ENVIRONMENTS, 4, 0, 0):
        for batch in step:
            assert torch.equal(batch.images, items.tensors[0][batch.positions])
            assert torch.equal(batch.labels, items.tensors[1][batch.positions])


def test_an_epoch_goes_through_the_largest_environment_and_round_the_others():
    (steps,) = epochs_of(domain_loader(make_items(), ENVIRONMENTS, 4, 0, 0), 3)
    bog, wood = ([i for step in steps for i in step[number]] for number in (0, 1))
    assert set(wood[:9]) == WOOD
    for start in range(0, 12, 3):
        assert set(bog[start : start + 3]) == BOG


def test_order_depends_on_seed_and_epoch_alone():
    first, second = (domain_loader(make_items(), ENVIRONMENTS, 4, 0, 5) for _ in range(2))
    one, two = epochs_of(first, 0, 1)
    assert one != two
    assert epochs_of(second, 1, 0) == [two, one]
    assert epochs_of(domain_loader(make_items(), ENVIRONMENTS, 4, 0, 6), 0) != [one]


def test_worker_processes_change_nothing():
    epochs = [epochs_of(domain_loader(make_items(), ENVIRONMENTS, 4, workers, 0), 0, 1) for workers in (0, 1)]
    assert epochs[0] == epochs[1]


def test_environments_must_be_as_many_as_items():
    with pytest.raises(DatasetError, match=r"^12 environments for 11 training items; expected one each$"):
        domain_loader(make_items(11), ENVIRONMENTS, 4, 0, 0)


# The fit


class Losses(Callback):
    """Notes what is logged after each epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()} | {"rate": rate})


def make_module(objective, seed=0, dropout=0.2, **changes):
    numbers = {"objective_settings": SETTINGS.get(objective, {}), "epochs": 3, "batch_size": 4, "learning_rate": 0.02}
    settings = TrainSettings(objective=objective, weights="none", trainable="all", **numbers | changes)
    torch.manual_seed(seed)
    return DomainClassifier(TinyNetwork(dropout=dropout, norm=True), settings, seed, ["bog", "wood"])


def run(module, folder, epochs, resume=None, callbacks=()):
    """Train until `epochs` are done, on twelve images of noise."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[
            ModelCheckpoint(folder, "last", enable_version_counter=False),
            Augment(module._settings, ViewSettings(), 0),
            *callbacks,
        ],
        plugins=[SafetensorsCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(
        module,
        domain_loader(make_items(), ENVIRONMENTS, 4, 0, 0),
        DataLoader(make_items(6, seed=1), 6),
        ckpt_path=resume,
    )
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, name):
    whole, after = make_module(name), Losses()
    expected = run(whole, tmp_path / "whole", 3, callbacks=[after])
    stopped = make_module(name)
    early = run(stopped, tmp_path / "stopped", 1)
    resumed, seen = make_module(name, seed=0), Losses()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    torch.manual_seed(99)  # another process
    ended = run(resumed, tmp_path / "stopped", 3, tmp_path / "stopped" / "last.ckpt", callbacks=[seen])
    assert all(torch.equal(ended[key], value) for key, value in expected.items())
    assert not torch.equal(early["network.fc.weight"], expected["network.fc.weight"])
    assert seen.seen == after.seen[1:]
    state, other = whole.objective.state_dict(), resumed.objective.state_dict()
    torch.testing.assert_close(other, state, rtol=0, atol=0)


def test_the_state_that_is_resumed_is_more_than_the_network(tmp_path):
    run(make_module("groupdro"), tmp_path / "groupdro", 1)
    run(make_module("jtt"), tmp_path / "jtt", 1)
    read = SafetensorsCheckpointIO().load_checkpoint
    weights = read(tmp_path / "groupdro" / "last.ckpt")["objective"]["q"]
    assert weights.sum().item() == pytest.approx(1)
    assert weights[0] != weights[1]
    assert 0 < len(read(tmp_path / "jtt" / "last.ckpt")["objective"]["wrong"]) < 12


def test_risk_minimisation_is_plain_training_on_both_batches(tmp_path):
    settings = {"optimizer": "sgd", "weight_decay": 0.0, "flip": False}
    module, losses = make_module("erm", dropout=0.0, **settings), Losses()
    other = make_module("erm", dropout=0.0).network
    run(module, tmp_path, 2, callbacks=[losses])
    items = make_items()
    sgd = torch.optim.SGD(other.parameters(), 0.02, momentum=0.9)
    loader, each = domain_loader(items, ENVIRONMENTS, 4, 0, 0), []
    rates = [0.02, 0.02 * (1 + np.cos(np.pi / 3)) / 2, 0.02 * (1 + np.cos(2 * np.pi / 3)) / 2]
    for epoch, steps in enumerate(epochs_of(loader, 0, 1)):
        sgd.param_groups[0]["lr"] = rates[epoch]
        for step in steps:
            positions = [i for batch in step for i in batch]
            loss = torch.nn.functional.cross_entropy(other(items.tensors[0][positions]), items.tensors[1][positions])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            each.append(loss.item())
    for name, value in other.state_dict().items():
        torch.testing.assert_close(module.network.state_dict()[name], value)
    assert [seen["train_loss"] for seen in losses.seen] == pytest.approx(
        [np.mean(each[:3]), np.mean(each[3:])], rel=1e-5
    )
    assert [seen["rate"] for seen in losses.seen] == pytest.approx(rates[1:])
    assert set(losses.seen[0]) == {"train_loss", "val_loss", "val_accuracy", "rate"}


def test_jtt_notes_the_errors_of_a_first_fit_at_the_full_rate(tmp_path):
    first = {"optimizer": "sgd", "weight_decay": 0.0, "flip": False, "dropout": 0.0, "schedule": "constant"}
    first["learning_rate"] = 0.1
    fitted = make_module("erm", **first, epochs=2)
    run(fitted, tmp_path / "first", 2)
    images, labels = make_items().tensors
    fitted.network.eval()
    expected = torch.nonzero(fitted.network(images).argmax(dim=1) != labels)[:, 0].tolist()
    assert 0 < len(expected) < 12
    slow = make_module("erm", **first | {"warmup_epochs": 2})
    run(slow, tmp_path / "slow", 2)
    slow.network.eval()
    assert expected != torch.nonzero(slow.network(images).argmax(dim=1) != labels)[:, 0].tolist()

    module = make_module("jtt", **first | {"warmup_epochs": 2})
    initial = {name: value.clone() for name, value in module.network.state_dict().items()}
    run(module, tmp_path / "jtt", 0)
    assert module.objective.wrong is None
    starts = []

    class Start(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            starts.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})
            assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)
            assert not trainer.optimizers[0].state
            assert trainer.global_step == 0

    run(module, tmp_path / "jtt", 1, callbacks=[Start()])
    assert module.objective.wrong.tolist() == expected
    assert all(torch.equal(value, initial[name]) for name, value in starts[0].items())


def test_a_loss_that_is_no_number_stops_the_fit(tmp_path):
    module = make_module("erm")
    with torch.no_grad():
        module.network.fc.bias.fill_(torch.nan)
    message = "the training loss is nan in epoch 0, batch 0; expected a number; lower train.learning_rate (now 0.02)"
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}"):
        run(module, tmp_path, 1)


def test_batches_too_small_for_the_objective():
    message = "train.batch_size = 1: objective irm expects at least 2 examples of each environment"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_module("irm", batch_size=1)
