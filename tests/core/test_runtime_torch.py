"""PyTorch, for comparison: the same network as it was, from a file without a pickle."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from l2r2.errors import ArtifactError, BackendError, BackendMissing
from l2r2.runtimes import open_session
from l2r2.runtimes.torch_session import HEADER, save_timm

MODEL = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = timm.create_model(MODEL, pretrained=False, num_classes=5).eval()
    for parameter in network.parameters():  # a fresh head is nearly zero, and so would be every answer
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "fg.safetensors"
    save_timm(path, network, MODEL, 5, 32, fixed_size=False)
    return path


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def images(n):
    return np.random.default_rng(0).standard_normal((n, 3, 32, 32)).astype(np.float32)


def test_it_answers_as_the_network(network, file):
    session = open_session(file, "torch")
    assert session.inputs == {"images": ["batch", 3, 32, 32]}
    assert session.outputs == ("logits",)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images(3))).numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(session.infer({"images": images(3)})["logits"], expected, rtol=1e-5, atol=1e-5)


def test_half_precision_computes_in_half_and_answers_in_float32(network, file):
    expected = open_session(file, "torch").infer({"images": images(3)})["logits"]
    logits = open_session(file, "torch", precision="bf16").infer({"images": images(3)})["logits"]
    assert logits.dtype == np.float32
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-5 < difference < 0.1


def test_there_is_no_int8(file):
    with pytest.raises(BackendError, match=r"^runtime torch has no int8; expected fp32, fp16, bf16$"):
        open_session(file, "torch", precision="int8")


def test_a_model_of_one_size(tmp_path):
    name = "vit_tiny_patch16_224"
    network = timm.create_model(name, pretrained=False, num_classes=3, img_size=32)
    save_timm(tmp_path / "vit.safetensors", network, name, 3, 32, fixed_size=True)
    session = open_session(tmp_path / "vit.safetensors", "torch")
    assert session.infer({"images": images(2)})["logits"].shape == (2, 3)


def test_frozen_arrays_are_taken_without_a_warning(file):
    frozen = images(1)
    frozen.flags.writeable = False
    open_session(file, "torch").infer({"images": frozen})


@pytest.mark.parametrize("feed", [{}, {"view": images(1)}, {"images": images(1)[..., :16]}, {"images": images(1)[0]}])
def test_a_feed_that_does_not_fit(file, feed):
    with pytest.raises(BackendError, match=r"^PyTorch failed: .+; expected "):
        open_session(file, "torch").infer(feed)


def test_nothing_pickled_is_read(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickle.pt")
    with pytest.raises(ArtifactError, match=r"pickle\.pt is no timm model of l2r2: .+; export it again$"):
        open_session(tmp_path / "pickle.pt", "torch")


def header(**changes):
    values = {"model": MODEL, "classes": 5, "size_px": 32, "fixed_size": False}
    return {HEADER: json.dumps({**values, **changes})}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"is no timm model of l2r2: 'l2r2\.timm'"),
        ({HEADER: "{"}, r"is no timm model of l2r2: Expecting property name"),
        (header(model="hf-hub:someone/something"), r"timm [\d.]+ has no 'hf-hub:someone/something'"),
        (header(classes=7), r"is no timm model of l2r2: Error\(s\) in loading state_dict"),
    ],
    ids=["no header", "no JSON", "a hub's name", "another head"],
)
def test_a_header_that_does_not_fit(network, tmp_path, metadata, message):
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_session(tmp_path / "m.safetensors", "torch")
    assert "\n" not in str(caught.value)


def test_a_truncated_file(file, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"m\.safetensors is no timm model of l2r2: "):
        open_session(tmp_path / "m.safetensors", "torch")


def test_a_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.safetensors is no timm model of l2r2: No such file"):
        open_session(tmp_path / "none.safetensors", "torch")


@pytest.mark.parametrize(("package", "name"), [("torch", "PyTorch"), ("timm", "timm"), ("safetensors", "safetensors")])
def test_without_a_package_the_message_has_the_command(file, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendMissing, match=rf"^{name} is not installed; run: pip install 'l2r2\[train\]'$"):
        open_session(file, "torch")
