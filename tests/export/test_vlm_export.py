"""Zero-shot classifiers as a bundle's models: the same logits for any batch, and no text tower in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from l2r2.classification import SessionClassifier
from l2r2.classification.timm_model import TorchClassifier
from l2r2.classification.vlm import ZeroShotNetwork, load_vlm
from l2r2.config import VlmSettings
from l2r2.runtimes import OnnxRuntimeSession
from l2r2.training.zero_shot import fitted_weights, load_zero_shot_network
from l2r2_export.classifiers import INPUT, export_classifier
from l2r2_export.parity import check_classifier
from tests.training.tiny_vlm import CONFIGS, WORDS, noise, save_open_clip, save_transformers

TOLERANCE = 1e-4
"""Of a logit; the scale before the cosine is about 12 here."""


@pytest.fixture(scope="module", params=["tiny-clip", "tiny-sig", "clip", "siglip"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ZeroShotNetwork, int, Path]:
    """A network as it comes back from disk, its input's size, and its ONNX file."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in CONFIGS:
        settings = save_open_clip(folder, request.param)[0]
    else:
        save_transformers(folder / "model", request.param)
        settings = VlmSettings(model=request.param, checkpoint=folder / "model")
    vlm = load_vlm(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("L2R2_CACHE", str(folder / "cache"))
        network = load_zero_shot_network(fitted_weights(vlm.network(WORDS), folder / "w.safetensors"))
    export_classifier(network, vlm.view.size_px, folder / "m.onnx")
    return network, vlm.view.size_px, folder / "m.onnx"


def test_the_file_answers_as_in_torch_for_any_batch(exported: tuple[ZeroShotNetwork, int, Path]) -> None:
    network, size, file = exported
    classifier = SessionClassifier(OnnxRuntimeSession(file, threads=1), INPUT, len(WORDS))
    images = noise(size, 7).numpy()
    expected = TorchClassifier(network).logits(images)
    assert expected.std(axis=0).min() > 100 * TOLERANCE
    for n in (1, 2, 7):
        np.testing.assert_allclose(classifier.logits(images[:n]), expected[:n], atol=TOLERANCE)
    assert check_classifier(TorchClassifier(network), classifier, images)["top1_agreement"] == 1.0


def test_there_is_no_text_tower_in_the_file(exported: tuple[ZeroShotNetwork, int, Path]) -> None:
    """Weights are counted; small constants of the graph (shapes, the epsilon of a norm) come on top."""
    network, _, file = exported
    held = sum(np.prod(w.dims) for w in onnx.load(str(file)).graph.initializer if w.data_type == onnx.TensorProto.FLOAT)
    tower = sum(value.numel() for value in network.tower.parameters())
    assert tower + network.prototypes.numel() <= held <= 1.01 * (tower + network.prototypes.numel()) + 16


def test_the_network_is_left_as_it_was(exported: tuple[ZeroShotNetwork, int, Path]) -> None:
    network, size, _ = exported
    assert not network.training
    assert torch.isfinite(network(noise(size, 1))).all()
