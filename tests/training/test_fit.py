"""What a fit leaves on disk, and that it depends on seed and photographs alone."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from l2r2.classification.timm_model import TorchClassifier, create_network, load_network
from l2r2.config import ImageSettings
from l2r2.errors import ConfigError, DatasetError, TrainingError
from l2r2.images import read
from l2r2.training import features as features_module
from l2r2.training.module import ViewClassifier
from l2r2.types import View
from l2r2.views import normalize, render
from tests.training.noise import TRAIN, TRAINABLE, VIEW, draw_noise, fit, half_found, no_regions

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
    start.write_bytes(save(create_network("test_resnet", 3).state_dict()))
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
    monkeypatch.setattr(features_module, "pooled", lambda network, images: torch.full((len(images), 96), torch.inf))
    with pytest.raises(TrainingError, match=r"^the training loss is nan in epoch 0, batch 0; "):
        fit(dataset, tmp_path, trainable="head")
    assert not list(tmp_path.rglob("*.safetensors"))


class Constant(torch.nn.Module):
    """Gives the same logits for anything."""

    def __init__(self, logit):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(logit))

    def forward(self, images):
        return self.weight.expand(len(images), 3)


def test_a_validation_loss_that_is_no_number():
    module = ViewClassifier(Constant(torch.nan), TRAIN)
    with pytest.raises(TrainingError, match=r"^the validation loss is nan in epoch 0, batch 7; expected a number; "):
        module.validation_step((torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)), 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "head", "environment": "group"}, r'trains the whole network; set train\.trainable = "all" '),
        ({}, r"compares environments; set train\.environment to the column that names them"),
        ({"environment": "place"}, r"column train\.environment = 'place' is missing or has gaps in train; the table "),
        ({"environment": "gaps"}, r"column train\.environment = 'gaps' is missing or has gaps in train; the table "),
    ],
)
def test_an_objective_needs_environments(dataset, tmp_path, changes, message):
    gaps = dataset.table.with_columns(gaps=pl.when(pl.col("label") == "red").then(pl.lit("a")))
    with pytest.raises(ConfigError, match=rf"^train\.objective = 'groupdro':? {message}"):
        fit(dataclasses.replace(dataset, table=gaps), tmp_path, objective="groupdro", **changes)
    assert list(tmp_path.iterdir()) == []


def test_an_objective_trains_on_environments(dataset, tmp_path):
    near = pl.when(pl.col("digest") < "8").then(pl.lit("near")).otherwise(pl.lit("far"))
    places = dataset.table.with_columns(place=near)
    told = []
    fitted = fit(
        dataclasses.replace(dataset, table=places),
        tmp_path,
        objective="groupdro",
        environment="place",
        on_epoch=lambda _, values: told.append(values),
    )
    assert told[-1]["train_loss"] < told[0]["train_loss"]
    assert fitted.best["best_val_loss"] == pytest.approx(min(values["val_loss"] for values in told), rel=1e-4)
    assert set(told[0]) == {"train_loss", "val_loss", "val_accuracy", "learning_rate"}


def test_half_precision_trains(dataset, tmp_path):
    """bfloat16 has eight bits of mantissa: near the same losses, never the same."""
    losses = {
        precision: fit(dataset, tmp_path / precision, precision=precision, epochs=1).best["best_val_loss"]
        for precision in ("32-true", "bf16-mixed")
    }
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)
    assert losses["bf16-mixed"] != losses["32-true"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_sixteen_bit_floats_need_a_gpu(dataset, tmp_path):
    message = r"^train\.precision = '16-mixed' needs a CUDA GPU; set bf16-mixed or 32-true$"
    with pytest.raises(ConfigError, match=message):
        fit(dataset, tmp_path, precision="16-mixed")


def test_labels_are_smoothed():
    """With logits 0, 0, log 2 and label 2: p = ¼, ¼, ½; smoothed by 0.3 the target is 0.1, 0.1, 0.8."""
    network = torch.nn.Linear(1, 3)
    torch.nn.init.zeros_(network.weight)
    network.bias.data = torch.tensor([0.0, 0.0, np.log(2.0)], dtype=torch.float32)
    module = ViewClassifier(network, TRAIN.model_copy(update={"label_smoothing": 0.3}))
    module.log = lambda *_, **__: None
    loss = module.training_step((torch.zeros(4, 1), torch.full((4,), 2)), 0)
    assert loss.item() == pytest.approx(0.2 * np.log(4) + 0.8 * np.log(2))


def test_augmented_views_train_other_weights(dataset, tmp_path):
    """Each of the three changes something."""
    plain = {"flip": False, "crop_scale": 1.0, "color_jitter": 0.0, "epochs": 1}
    fits = {
        name: fit(dataset, tmp_path / name, **{**plain, **changes}).weights.read_bytes()
        for name, changes in {
            "plain": {},
            "flip": {"flip": True},
            "crop": {"crop_scale": 0.5},
            "jitter": {"color_jitter": 0.4},
        }.items()
    }
    assert len(set(fits.values())) == 4


def test_a_vision_transformer_is_fitted(dataset, tmp_path):
    """Built for 160 px; here it sees 64."""
    fitted = fit(dataset, tmp_path, model="test_vit", trainable="head", epochs=2)
    network = create_network("test_vit", 3, size_px=64)
    load_network(network, fitted.weights)
    part = dataset.split("val")
    squares = [render(read(path, ImageSettings()), None, View.FULL, VIEW) for path in part.paths()]
    table = part.table.select("digest").join(pl.read_parquet(fitted.logits), "digest", maintain_order="left")
    expected = TorchClassifier(network).logits(normalize(squares, VIEW))
    np.testing.assert_allclose(table["logits"].to_numpy(), expected, rtol=1e-4, atol=1e-5)
