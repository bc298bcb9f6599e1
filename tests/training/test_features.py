"""Features of a frozen backbone: one row a photograph, used by every seed and every partition."""

import dataclasses
import logging

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from l2r2.classification.timm_model import create_network, head_of, load_network, pooled
from l2r2.config import ImageSettings
from l2r2.images import read
from l2r2.training import features as features_module
from l2r2.types import View
from l2r2.views import normalize, render
from tests.training.noise import VIEW, fit


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    path.write_bytes(save(create_network("test_resnet", 5).state_dict()))
    return path


@pytest.fixture
def head(dataset, backbone, tmp_path):
    """Fits a head in a folder of that name; keeps its features beside."""

    def fit_head(name, dataset=dataset, **changes):
        kept = {"checkpoint": backbone, "trainable": "head", "epochs": 1, "features": tmp_path / "f.safetensors"}
        return fit(dataset, tmp_path / name, **{**kept, **changes})

    fit_head.file = tmp_path / "f.safetensors"
    return fit_head


@pytest.fixture
def no_backbone(monkeypatch):
    """From here on the backbone must not run."""
    return lambda: monkeypatch.setattr(features_module, "pooled", lambda *_: pytest.fail("the backbone ran again"))


def rows(path):
    """Digest → features, plain and mirrored, by the file's own documentation."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        digests = file.metadata()["digests"].split()
    plain = dict(zip(digests, tensors["plain"], strict=True))
    return plain, dict(zip([digests[i] for i in tensors["mirrored_of"]], tensors["mirrored"], strict=True))


def partition(dataset, n=6):
    """The first n training photographs moved to a split of another name."""
    moved = dataset.split("train").table["digest"].sort().head(n).to_list()
    split = pl.when(pl.col("digest").is_in(moved)).then(pl.lit("held_out")).otherwise("split")
    return dataclasses.replace(dataset, table=dataset.table.with_columns(split=split))


def test_one_row_a_photograph(head, dataset, backbone):
    head("fit")
    plain, mirrored = rows(head.file)
    assert sorted(plain) == sorted(dataset.table["digest"])
    assert sorted(mirrored) == sorted(dataset.split("train").table["digest"])
    network = create_network("test_resnet", 5).eval()
    load_network(network, backbone)
    path, digest = dataset.split("train").paths()[3], dataset.split("train").table["digest"][3]
    square = torch.from_numpy(normalize([render(read(path, ImageSettings()), None, View.FULL, VIEW)], VIEW))
    with torch.inference_mode():
        torch.testing.assert_close(plain[digest], pooled(network, square)[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mirrored[digest], pooled(network, square.flip(-1))[0], atol=1e-4, rtol=1e-4)


def test_without_flip_nothing_is_mirrored(head):
    head("fit", flip=False)
    plain, mirrored = rows(head.file)
    assert (len(plain) > 0, len(mirrored)) == (True, 0)


def test_another_seed_uses_them(head, no_backbone):
    plain = head("plain", seed=1, features=None)
    head("0", seed=0)
    no_backbone()
    assert head("1", seed=1).weights.read_bytes() == plain.weights.read_bytes()


def test_another_partition_uses_them(head, dataset, no_backbone):
    head("whole")
    no_backbone()
    table = pl.read_parquet(head("fold", partition(dataset)).logits)
    assert dict(table["split"].value_counts().iter_rows()) == {"train": 18, "held_out": 6, "val": 12, "test": 12}


def test_a_partition_that_lacks_some_is_added_to(head, dataset):
    """The fold's file knows six photographs unmirrored, and no test set; the whole adds what it lacks."""
    fold = partition(dataset)
    head("fold", dataclasses.replace(fold, table=fold.table.filter(pl.col("split") != "test")))
    before = rows(head.file)
    assert (len(before[0]), len(before[1])) == (36, 18)
    known, plain = head("known"), head("plain", features=None)
    after = rows(head.file)
    assert (len(after[0]), len(after[1])) == (48, 24)
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(value, new[digest]) for digest, value in old.items())
    logits = [pl.read_parquet(fitted.logits)["logits"].to_numpy() for fitted in (known, plain)]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_photographs_of_two_test_sets_have_one_row(head, dataset):
    twice = dataset.table.filter(pl.col("split") == "test").with_columns(split=pl.lit("again"))
    fitted = head("fit", dataclasses.replace(dataset, table=pl.concat([dataset.table, twice])))
    assert len(rows(head.file)[0]) == len(dataset)
    table = pl.read_parquet(fitted.logits).sort("digest")
    again, test = (table.filter(pl.col("split") == name)["logits"].to_numpy() for name in ("again", "test"))
    np.testing.assert_array_equal(again, test)


def damage(path, how):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no digests":
        save_file(tensors, path)
    elif how == "a digest lost":
        save_file(tensors, path, {"digests": header["digests"].rpartition(" ")[0]})
    elif how == "rows astray":
        save_file({**tensors, "mirrored_of": tensors["mirrored_of"] + 1000}, path, header)
    else:
        save_file({"train": tensors["plain"]}, path, header)


@pytest.mark.parametrize("how", ["truncated", "empty", "no digests", "a digest lost", "rows astray", "another form"])
def test_a_damaged_file_is_made_anew(head, caplog, how):
    whole = head("whole")
    before = head.file.read_bytes()
    damage(head.file, how)
    with caplog.at_level(logging.WARNING, "l2r2"):
        again = head("again")
    assert str(head.file) in caplog.text
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    assert head.file.read_bytes() == before


def test_features_of_a_random_backbone_are_not_kept(head):
    """It is another one with every seed."""
    head("fit", checkpoint=None)
    assert not head.file.exists()


@pytest.mark.parametrize(
    "model", ["test_resnet", "test_vit", "test_vit2", "test_vit3", "test_convnext", "test_efficientnet", "test_byobnet"]
)
def test_the_head_on_features_is_the_network(model):
    torch.manual_seed(0)
    network = create_network(model, 3, size_px=64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(head_of(network)(pooled(network, images)), network(images))
