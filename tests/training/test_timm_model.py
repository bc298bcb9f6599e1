"""Networks by name, and weights from a package, a file or nowhere."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo

from l2r2.classification.timm_model import (
    TorchClassifier,
    build_network,
    create_network,
    load_network,
    view_settings,
)
from l2r2.config import TrainSettings, ViewSettings
from l2r2.errors import ArtifactError, ConfigError
from l2r2.types import View
from l2r2.views import normalize, render

TINY = TrainSettings(model="test_resnet", weights="none")


@pytest.mark.parametrize(
    ("model", "near"),
    [("resnet5", "resnet50"), ("efficentnet_b0", "efficientnet_b0"), ("resnet10t.unheard", "resnet10t")],
)
def test_an_unknown_model_names_a_near_one(model, near):
    with pytest.raises(ConfigError, match=rf"^timm has no model '{re.escape(model)}'; did you mean {near}, .+\?$"):
        create_network(model, 3)


def test_a_model_that_is_like_none():
    with pytest.raises(ConfigError, match=r"^timm has no model 'zzzzqq'$"):
        create_network("zzzzqq", 3)


def test_no_package_ships_another_model():
    message = "no package ships weights for 'test_resnet'; set train.weights to hub or none, or give train.checkpoint"
    with pytest.raises(ConfigError, match=rf"^{re.escape(message)}$"):
        build_network(TINY.model_copy(update={"weights": "package"}), 3)


def test_the_head_starts_at_zero():
    network = build_network(TINY, 3).eval()
    assert not network(torch.randn(2, 3, 64, 64)).any()
    assert not any(parameter.any() for parameter in network.get_classifier().parameters())


@pytest.fixture
def five(tmp_path):
    """A checkpoint with a head of five classes."""
    path = tmp_path / "five.safetensors"
    path.write_bytes(save(create_network("test_resnet", 5).state_dict()))
    return path


def test_a_checkpoint_of_another_head_starts_the_features(five):
    network = build_network(TINY.model_copy(update={"checkpoint": five}), 3)
    other = create_network("test_resnet", 5)
    load_network(other, five)
    state = network.state_dict()
    differ = {name for name, value in other.state_dict().items() if not torch.equal(value, state[name])}
    assert differ == {"fc.weight", "fc.bias"}
    assert not state["fc.weight"].any()


def test_a_checkpoint_of_another_head_is_no_whole_model(five):
    message = f"{five} does not fit the model: 2 tensors are missing or differ, first fc.bias"
    with pytest.raises(ArtifactError, match=rf"^{re.escape(message)}$"):
        load_network(create_network("test_resnet", 3), five)


def test_a_checkpoint_of_another_model(five):
    settings = TrainSettings(model="test_vit", weights="none", checkpoint=five)
    with pytest.raises(
        ArtifactError,
        match=rf"^{re.escape(str(five))} does not fit the model: \d+ tensors are missing or differ, first ",
    ):
        build_network(settings, 3)


@pytest.mark.parametrize("data", [None, b"", b"PK\x03\x04" + bytes(60)])
def test_a_checkpoint_that_cannot_be_read(tmp_path, data):
    path = tmp_path / "a.safetensors"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"^{re.escape(str(path))} is no readable safetensors file: .+$"):
        load_network(create_network("test_resnet", 3), path)


@pytest.fixture(scope="module")
def lite0():
    return build_network(TrainSettings(), 1000)


@pytest.mark.parametrize(("name", "expected"), [("flower.jpg", "daisy"), ("china.jpg", "palace")])
def test_packaged_weights_know_photographs(lite0, name, expected):
    """scikit-learn's two: a flower with many petals, and a pavilion of the Summer Palace in Beijing.

    Were one tensor in another's place, the answers would be noise.
    """
    settings = view_settings("tf_efficientnet_lite0", ViewSettings())
    image = normalize([render(load_sample_image(name), None, View.FULL, settings)], settings)
    best = np.argsort(-TorchClassifier(lite0).logits(image)[0])[:5]
    assert expected in {ImageNetInfo().index_to_description(int(k)) for k in best}


def test_packaged_weights_take_a_new_head(lite0):
    network = build_network(TrainSettings(), 3)
    assert not network.get_classifier().weight.any()
    assert torch.equal(network.state_dict()["conv_stem.weight"], lite0.state_dict()["conv_stem.weight"])


def test_the_packaged_model_has_the_default_normalisation():
    assert view_settings("tf_efficientnet_lite0", ViewSettings(size_px=64)) == ViewSettings(size_px=64)


def test_another_model_has_its_own():
    own = view_settings("resnet10t", ViewSettings(size_px=64))
    # ImageNet's mean and deviation
    assert (own.mean, own.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert own.size_px == 64


@pytest.mark.parametrize("field", ["mean", "std"])
def test_what_the_recipe_says_stays(field):
    given = ViewSettings(**{field: (0.1, 0.2, 0.3)})
    assert view_settings("resnet10t", given) is given


def test_no_normalisation_is_known():
    with pytest.raises(ConfigError, match=r"^timm knows no normalisation for 'zzzzqq'; set view\.mean and view\.std$"):
        view_settings("zzzzqq", ViewSettings())


def test_rows_stay_in_order():
    classifier = TorchClassifier(create_network("test_resnet", 3))
    images = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
    assert classifier.logits(images).dtype == np.float32
    np.testing.assert_allclose(classifier.logits(images[::-1].copy()), classifier.logits(images)[::-1], atol=1e-5)
