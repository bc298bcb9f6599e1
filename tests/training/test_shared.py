"""One encoder, a head a view: what is minimised, and that each view comes out as a classifier like any other."""

import subprocess
import sys
import textwrap

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from l2r2.classification.timm_model import TorchClassifier, create_network, load_network, pooled
from l2r2.config import ImageSettings
from l2r2.errors import ConfigError, DatasetError
from l2r2.images import read
from l2r2.training.shared import SharedClassifier, SharedNetwork, fit_shared
from l2r2.types import View
from l2r2.views import normalize, render
from tests.training.noise import TRAIN, VIEW, draw_noise, half_found, no_regions

VIEWS = (View.FG_C, View.FULL)


def shared(dataset, folder, *, regions=None, views=VIEWS, on_epoch=None, **changes):
    settings = TRAIN.model_copy(update={"shared": True, **changes})
    known = half_found(dataset) if regions is None else regions
    return fit_shared(dataset, known, views, settings, VIEW, ImageSettings(), 0, folder, on_epoch)


@pytest.fixture(scope="module")
def fitted(one_thread, dataset, tmp_path_factory):
    return shared(dataset, tmp_path_factory.mktemp("shared"))


def test_one_encoder_and_two_heads(fitted):
    fg, full = (load_file(fitted[view].weights) for view in VIEWS)
    assert {name for name in fg if not torch.equal(fg[name], full[name])} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_is_an_ordinary_classifier(fitted, dataset, view):
    network = create_network("test_resnet", 3)
    load_network(network, fitted[view].weights)
    regions = half_found(dataset)
    part = dataset.split("test")
    squares = [
        render(read(path, ImageSettings()), regions[digest], view, VIEW)
        for path, digest in zip(part.paths(), part.table["digest"], strict=True)
    ]
    table = part.table.select("digest").join(pl.read_parquet(fitted[view].logits), "digest", maintain_order="left")
    expected = TorchClassifier(network).logits(normalize(squares, VIEW))
    np.testing.assert_allclose(table["logits"].to_numpy(), expected, rtol=1e-4, atol=1e-5)
    assert len(pl.read_parquet(fitted[view].logits)) == len(dataset)


def test_only_weights_and_logits_are_left(fitted):
    folder = fitted[View.FULL].weights.parent.parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(VIEWS)
    assert sorted(path.name for path in (folder / "FULL").iterdir()) == ["logits.parquet", "model.safetensors"]


def test_the_epoch_is_that_of_the_lowest_mean_loss(dataset, tmp_path):
    told = []
    best = shared(dataset, tmp_path, on_epoch=lambda _, values: told.append(values["val_loss"]))
    assert {fitted.best["best_epoch"] for fitted in best.values()} == {float(np.argmin(told))}
    mean = np.mean([fitted.best["best_val_loss"] for fitted in best.values()])
    assert mean == pytest.approx(min(told), rel=1e-4)


def test_the_loss_is_the_sum_over_views_of_those_that_count():
    torch.manual_seed(0)
    network = SharedNetwork(create_network("test_resnet", 3), VIEWS).eval()
    module = SharedClassifier(network, TRAIN)
    module.log = lambda *_, **__: None
    images, labels = torch.randn(4, 2, 3, 64, 64), torch.tensor([0, 1, 2, 1])
    counts = torch.tensor([[True, True], [False, True], [True, True], [False, True]])
    loss = module.training_step((images, counts, labels), 0)
    expected = 0.0
    for i, view in enumerate(VIEWS):
        which = [n for n in range(4) if counts[n, i]]
        with torch.no_grad():
            logits = network.heads[view](pooled(network.network, images[which, i])).numpy()
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected -= np.mean([log_probs[row, labels[n]] for row, n in enumerate(which)])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(head.weight.grad.any() for head in network.heads.values())
    assert network.network.get_classifier().weight.grad is None


def test_a_batch_without_any_foreground():
    module = SharedClassifier(SharedNetwork(create_network("test_resnet", 3), VIEWS), TRAIN)
    module.log = lambda *_, **__: None
    counts = torch.tensor([[False, True]] * 2)
    loss = module.training_step((torch.randn(2, 2, 3, 64, 64), counts, torch.tensor([0, 1])), 0)
    assert torch.isfinite(loss)


@pytest.mark.parametrize(("views", "same"), [((View.FG_C, View.FG_C), True), (VIEWS, False)])
def test_fg_is_not_trained_on_photographs_without_a_region(tmp_path, views, same):
    """One of them is painted over; an encoder that FULL shares sees it, one of FG alone does not."""
    views = tuple(dict.fromkeys(views))
    dataset = draw_noise(tmp_path)
    regions = half_found(dataset)
    kept = {"regions": regions, "views": views, "epochs": 1}
    before = shared(dataset, tmp_path / "before", **kept)
    train = dataset.split("train")
    lost = [path for path, digest in zip(train.paths(), train.table["digest"], strict=True) if regions[digest] is None]
    Image.new("RGB", (64, 64), (0, 0, 0)).save(lost[0])
    after = shared(dataset, tmp_path / "after", **kept)
    assert (before[views[0]].weights.read_bytes() == after[views[0]].weights.read_bytes()) is same


def test_killed_and_resumed_equals_uninterrupted(dataset, fitted, tmp_path):
    program = f"""
        import time
        from pathlib import Path
        import torch
        from l2r2.datasets import load_dataset
        from tests.training.test_shared import shared

        torch.set_num_threads(1)

        def on_epoch(epoch, _):
            print(epoch, flush=True)
            if epoch == 2:
                time.sleep(120)

        shared(load_dataset(Path({str(dataset.folder)!r})), Path({str(tmp_path)!r}), on_epoch=on_epoch)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as child:
        assert [child.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        child.kill()
    assert child.returncode == -9
    told = []
    resumed = shared(dataset, tmp_path, on_epoch=lambda epoch, _: told.append(epoch))
    assert told == [2, 3]
    for view in VIEWS:
        assert resumed[view].weights.read_bytes() == fitted[view].weights.read_bytes()
        assert resumed[view].logits.read_bytes() == fitted[view].logits.read_bytes()


def test_a_frozen_backbone_is_shared_already(dataset, tmp_path):
    message = r'^train\.shared = true needs train\.trainable = "all"; a frozen backbone is shared already$'
    with pytest.raises(ConfigError, match=message):
        shared(dataset, tmp_path, trainable="head")


def test_other_objectives_are_refused(dataset, tmp_path):
    message = r'^train\.shared = true needs train\.objective = "erm"; got \'irm\'$'
    with pytest.raises(ConfigError, match=message):
        shared(dataset, tmp_path, objective="irm", environment="group")


def test_fg_without_any_region(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"^no training photograph has a region, so FG_C has nothing to learn from$"):
        shared(dataset, tmp_path, regions=no_regions(dataset))
