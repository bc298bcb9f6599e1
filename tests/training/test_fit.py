"""What a fit leaves on disk, and that it depends on seed and photographs alone."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from l2r2.classification.timm_model import TorchClassifier, create_network, load_network
from l2r2.config import ImageSettings
from l2r2.errors import DatasetError, TrainingError
from l2r2.images import read
from l2r2.training import fit as fit_module
from l2r2.training.module import ViewClassifier
from l2r2.types import Region, View
from l2r2.views import normalize, render
from tests.training.noise import TRAIN, TRAINABLE, VIEW, draw_noise, fit, no_regions

kinds = pytest.mark.parametrize("kind", TRAINABLE)


@kinds
def test_weights_are_the_whole_model(uninterrupted, kind):
    network = create_network("test_resnet", 3)
    load_network(network, uninterrupted[kind].weights)
    assert set(load_file(uninterrupted[kind].weights)) == set(network.state_dict())


@kinds
def test_logits_have_one_row_a_photograph(uninterrupted, dataset, kind):
    table = pl.read_parquet(uninterrupted[kind].logits)
    assert dict(table.schema) == {
        "digest": pl.String,
        "split": pl.String,
        "group": pl.String,
        "label": pl.Int64,
        "found": pl.Boolean,
        "logits": pl.Array(pl.Float32, 3),
    }
    columns = ["digest", "split", "group"]
    assert table.select(columns).sort("digest").equals(dataset.table.select(columns).sort("digest"))
    assert np.isfinite(table["logits"].to_numpy()).all()


@kinds
def test_logits_are_those_of_the_weights(uninterrupted, dataset, kind):
    network = create_network("test_resnet", 3)
    load_network(network, uninterrupted[kind].weights)
    part = dataset.split("test")
    squares = [render(read(path, ImageSettings()), None, View.FULL, VIEW) for path in part.paths()]
    expected = TorchClassifier(network).logits(normalize(squares, VIEW))
    table = part.table.select("digest").join(
        pl.read_parquet(uninterrupted[kind].logits), "digest", maintain_order="left"
    )
    np.testing.assert_allclose(table["logits"].to_numpy(), expected, rtol=1e-4, atol=1e-5)
    assert table["label"].to_list() == part.labels().tolist()


@kinds
def test_best_is_measured_on_validation(uninterrupted, kind):
    fitted = uninterrupted[kind]
    val = pl.read_parquet(fitted.logits).filter(pl.col("split") == "val")
    right = val["logits"].to_numpy().argmax(axis=1) == val["label"].to_numpy()
    assert fitted.best["best_val_accuracy"] == right.mean()
    assert 0 <= fitted.best["best_epoch"] < TRAIN.epochs
    assert set(fitted.best) == {"best_epoch", "best_val_loss", "best_val_accuracy"}


def test_colours_are_learned(uninterrupted):
    assert uninterrupted["head"].best["best_val_accuracy"] > 0.6  # chance is a third


@kinds
def test_only_weights_and_logits_are_left(uninterrupted, kind):
    folder = uninterrupted[kind].weights.parent
    assert sorted(path.name for path in folder.iterdir()) == ["logits.parquet", "model.safetensors"]


@kinds
def test_the_same_seed_gives_the_same_weights(uninterrupted, dataset, tmp_path, kind):
    again = fit(dataset, tmp_path, trainable=kind)
    assert again.weights.read_bytes() == uninterrupted[kind].weights.read_bytes()
    assert again.best == uninterrupted[kind].best


@kinds
def test_another_seed_gives_other_weights(uninterrupted, dataset, tmp_path, kind):
    other = fit(dataset, tmp_path, trainable=kind, seed=1, epochs=1)
    assert other.weights.read_bytes() != uninterrupted[kind].weights.read_bytes()


def test_the_order_of_the_table_does_not_matter(uninterrupted, dataset, tmp_path):
    turned = dataclasses.replace(dataset, table=dataset.table.reverse())
    assert turned.digest == dataset.digest
    again = fit(turned, tmp_path, trainable="head")
    assert again.weights.read_bytes() == uninterrupted["head"].weights.read_bytes()


def test_a_head_leaves_the_backbone_alone(dataset, tmp_path):
    start = tmp_path / "start.safetensors"
    start.write_bytes(fit_module.save(create_network("test_resnet", 3).state_dict()))
    fitted = load_file(fit(dataset, tmp_path, trainable="head", checkpoint=start, epochs=1).weights)
    before = load_file(start)
    assert {name for name in before if not torch.equal(before[name], fitted[name])} == {"fc.weight", "fc.bias"}


def test_each_epoch_is_reported(dataset, tmp_path):
    told = []
    fit(dataset, tmp_path, epochs=3, on_epoch=lambda *values: told.append(values))
    assert [epoch for epoch, _ in told] == [0, 1, 2]
    assert all(set(v) == {"train_loss", "val_loss", "val_accuracy", "learning_rate"} for _, v in told)
    # a cosine from 0.01 to 0 in three steps: 0.01 (1 + cos(π e / 3)) / 2
    assert [v["learning_rate"] for _, v in told] == pytest.approx([0.01, 0.0075, 0.0025])


def test_the_best_epoch_is_kept(dataset, tmp_path):
    told = []
    best = fit(dataset, tmp_path, on_epoch=lambda _, values: told.append(values["val_loss"])).best
    assert best["best_epoch"] == np.argmin(told)
    assert best["best_val_loss"] == pytest.approx(min(told), rel=1e-4)


def test_it_stops_when_nothing_improves(dataset, tmp_path):
    """Steps of 1e-12 change no logit that float32 can show, so the first epoch stays the best."""
    told = []
    settings = {"trainable": "head", "learning_rate": 1e-12, "epochs": 50, "patience": 2}
    fitted = fit(dataset, tmp_path, on_epoch=lambda epoch, _: told.append(epoch), **settings)
    assert told == [0, 1, 2]
    assert fitted.best["best_epoch"] == 0
    assert fitted.best["best_val_loss"] == pytest.approx(np.log(3))


def half_found(dataset):
    """A region in every second photograph of the table."""
    middle = Region((16.0, 16.0, 48.0, 48.0), 1.0)
    return {digest: middle if i % 2 else None for i, digest in enumerate(dataset.table["digest"])}


def test_photographs_without_a_region_are_scored(dataset, tmp_path):
    regions = half_found(dataset)
    fitted = fit(dataset, tmp_path, view=View.FG_C, regions=regions, trainable="head", epochs=1)
    table = pl.read_parquet(fitted.logits)
    assert len(table) == len(dataset)
    assert dict(table.select("digest", "found").iter_rows()) == {d: r is not None for d, r in regions.items()}


@pytest.mark.parametrize(("view", "same"), [(View.FG_C, True), (View.FULL, False)])
def test_fg_is_not_trained_on_photographs_without_a_region(tmp_path, view, same):
    """One of them is painted over; FG's weights stay, FULL's do not."""
    dataset = draw_noise(tmp_path)
    regions = half_found(dataset)
    kept = {"view": view, "regions": regions, "trainable": "head", "epochs": 2}
    before = fit(dataset, tmp_path / "before", **kept)
    train = dataset.split("train")
    lost = [path for path, digest in zip(train.paths(), train.table["digest"], strict=True) if regions[digest] is None]
    Image.new("RGB", (64, 64), (0, 0, 0)).save(lost[0])
    after = fit(dataset, tmp_path / "after", **kept)
    assert (before.weights.read_bytes() == after.weights.read_bytes()) is same


def test_fg_without_any_region(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"^no training photograph has a region, so FG_C has nothing to learn from$"):
        fit(dataset, tmp_path, view=View.FG_C, regions=no_regions(dataset), trainable="head")


def test_a_test_set_with_unknown_labels_is_not_scored(dataset, tmp_path):
    unknown = pl.when(pl.col("split") == "test").then(None).otherwise(pl.col("label"))
    blind = dataclasses.replace(dataset, table=dataset.table.with_columns(label=unknown))
    fitted = fit(blind, tmp_path, trainable="head", epochs=1)
    assert set(pl.read_parquet(fitted.logits)["split"]) == {"train", "val"}


def test_a_loss_that_is_no_number(dataset, tmp_path):
    with pytest.raises(
        TrainingError,
        match=r"^the training loss is nan in epoch 0, batch [12]; expected a number; "
        r"lower train\.learning_rate \(now 1e\+30\) or look at the images$",
    ):
        fit(dataset, tmp_path, learning_rate=1e30)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.parquet"))


def test_images_that_are_no_numbers(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "_pooled", lambda network, images: torch.full((len(images), 96), torch.inf))
    with pytest.raises(TrainingError, match=r"^the training loss is nan in epoch 0, batch 0; "):
        fit(dataset, tmp_path, trainable="head")
    assert not list(tmp_path.rglob("*.safetensors"))


class Recorder(torch.nn.Module):
    """Gives the same logits for anything; remembers what it saw."""

    def __init__(self, logit=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(logit))
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.weight.expand(len(images), 3)


def test_a_validation_loss_that_is_no_number():
    module = ViewClassifier(Recorder(torch.nan), TRAIN, 0, mirror=False)
    with pytest.raises(TrainingError, match=r"^the validation loss is nan in epoch 0, batch 7; expected a number; "):
        module.validation_step((torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)), 7)


def mirrored(seed, index, *, mirror=True):
    """Which of 1000 images a training step turns round."""
    module = ViewClassifier(network := Recorder(), TRAIN, seed, mirror=mirror)
    module.log = lambda *_, **__: None
    images = torch.zeros(1000, 3, 2, 2)
    images[..., 0] = 1
    module.training_step((images, torch.zeros(1000, dtype=torch.int64)), index)
    return network.seen[0][:, 0, 0, 0] == 0


def test_half_of_the_images_are_mirrored():
    assert mirrored(0, 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_without_flip_none_is():
    assert not mirrored(0, 0, mirror=False).any()


def test_mirroring_depends_on_seed_and_batch_alone():
    assert torch.equal(mirrored(0, 3), mirrored(0, 3))
    assert not torch.equal(mirrored(0, 3), mirrored(0, 4))
    assert not torch.equal(mirrored(0, 3), mirrored(1, 3))


@pytest.fixture
def backbone(tmp_path):
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(fit_module.save(create_network("test_resnet", 5).state_dict()))
    return path


def test_features_are_kept_for_the_next_seed(dataset, tmp_path, backbone, monkeypatch):
    kept = {"checkpoint": backbone, "trainable": "head", "epochs": 2}
    plain = fit(dataset, tmp_path / "plain", seed=1, **kept)
    fit(dataset, tmp_path / "0", seed=0, features=tmp_path / "features.safetensors", **kept)
    monkeypatch.setattr(fit_module, "_pooled", lambda *_: pytest.fail("the backbone ran again"))
    again = fit(dataset, tmp_path / "1", seed=1, features=tmp_path / "features.safetensors", **kept)
    assert again.weights.read_bytes() == plain.weights.read_bytes()


def test_features_of_a_random_backbone_are_not_kept(dataset, tmp_path):
    """It is another one with every seed."""
    fit(dataset, tmp_path / "fit", features=tmp_path / "features.safetensors", trainable="head", epochs=1)
    assert not (tmp_path / "features.safetensors").exists()
