"""Networks by name, and weights from a package, a file or nowhere."""

import re

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo
from timm.layers import DropPath, resample_abs_pos_embed

from l2r2.classification.timm_model import (
    TorchClassifier,
    build_network,
    create_network,
    head_of,
    load_network,
    pooled,
    view_settings,
)
from l2r2.config import TrainSettings, ViewSettings
from l2r2.errors import ArtifactError, BackendError, ConfigError
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


@pytest.fixture(scope="module")
def theirs():
    """torchvision's network, random weights, batch statistics that are not 0 and 1."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def same_features(network, theirs):
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*list(theirs.children())[:-1])(images).flatten(1)
        torch.testing.assert_close(pooled(network.eval(), images), expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_in_torchvisions_names(theirs, tmp_path):
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(save(theirs.state_dict()))
    settings = TrainSettings(model="resnet50", weights="torchvision", checkpoint=path)
    network = build_network(settings, 3)
    assert set(network.state_dict()) == set(theirs.state_dict())
    assert head_of(network).out_features == 3
    same_features(network, theirs)


def test_torchvisions_own_weights(theirs, tmp_path, monkeypatch):
    """Version 1, from where torchvision keeps what it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth")
    same_features(build_network(TrainSettings(model="resnet50", weights="torchvision"), 3), theirs)


def test_torchvision_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):  # a port that nothing listens on
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    message = r"^the hub's weights for resnet50 cannot be had \(URLError\); give train\.checkpoint a local file$"
    with pytest.raises(BackendError, match=message):
        build_network(TrainSettings(model="resnet50", weights="torchvision"), 3)


def test_torchvisions_weights_fit_one_model():
    message = r"^torchvision's weights fit 'resnet50' only, not 'test_resnet'; set train\.weights$"
    with pytest.raises(ConfigError, match=message):
        build_network(TINY.model_copy(update={"weights": "torchvision"}), 3)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext"])
def test_drop_path(model):
    """Some blocks are left out in training, none in evaluation."""
    network = build_network(TINY.model_copy(update={"model": model, "drop_path": 0.5}), 3, size_px=64)
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.5)
    for parameter in network.parameters():  # residual branches start at zero
        torch.nn.init.normal_(parameter, std=0.5)
    images = torch.randn(16, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images), network(images))
        for module in network.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        assert not torch.allclose(network(images), network(images), atol=1e-3)


def test_no_drop_path_in_a_model_without():
    message = r"^'vgg11' has no stochastic depth; set train\.drop_path = 0 \(now 0\.1\)$"
    with pytest.raises(ConfigError, match=message):
        create_network("vgg11", 3, drop_path=0.1)


@pytest.mark.parametrize("model", ["test_vit", "test_vit_relpos", "test_resnet", "test_coatnet"])
def test_any_model_takes_the_views_size(model):
    network = create_network(model, 3, size_px=128).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 128, 128)).shape == (1, 3)


def test_dinov2_is_made_for_the_views_size():
    """Built for 518 px; at 224 it has 16 × 16 patches and the class token."""
    network = create_network("vit_small_patch14_dinov2", 3, size_px=224).eval()
    assert network.pos_embed.shape == (1, 257, 384)
    with torch.inference_mode():
        assert pooled(network, torch.zeros(1, 3, 224, 224)).shape == (1, 384)


def test_patches_must_tile_the_input():
    message = r"^'vit_small_patch14_dinov2' cuts its input into patches of 14 px; 256 px is no multiple of it$"
    with pytest.raises(ConfigError, match=message):
        create_network("vit_small_patch14_dinov2", 3, size_px=256)


def test_a_checkpoint_of_another_size(tmp_path):
    """Its position embeddings are resampled; all else stays."""
    torch.manual_seed(0)
    large = create_network("test_vit", 5)
    path = tmp_path / "large.safetensors"
    path.write_bytes(save(large.state_dict()))
    small = build_network(TINY.model_copy(update={"model": "test_vit", "checkpoint": path}), 3, size_px=64)
    differ = {
        n
        for n, v in small.state_dict().items()
        if n.split(".")[0] != "head"
        and not (v.shape == large.state_dict()[n].shape and torch.equal(v, large.state_dict()[n]))
    }
    assert differ == {"pos_embed"}
    expected = resample_abs_pos_embed(large.pos_embed, [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(small.pos_embed, expected)


def test_a_model_with_two_heads():
    with pytest.raises(ConfigError, match=r"^LevitDistilled has no single head to train; set train\.model to another$"):
        build_network(TINY.model_copy(update={"model": "levit_128s"}), 3)


def test_a_classifier_takes_features_too():
    head = torch.nn.Linear(4, 3)
    rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    expected = rows @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(TorchClassifier(head).logits(rows), expected, atol=1e-5)
