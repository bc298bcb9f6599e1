"""Classifiers → ONNX: the same logits for any batch, a valid recent file, and one line when it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from l2r2.classification import SessionClassifier
from l2r2.classification.timm_model import TorchClassifier, create_network
from l2r2.config import ViewSettings
from l2r2.errors import ExportError, InputError, ParityError
from l2r2.runtimes import OnnxRuntimeSession
from l2r2.types import Pixels, View
from l2r2.views import normalize, render
from l2r2_export.classifiers import INPUT, OUTPUT, export_classifier
from l2r2_export.graphs import MIN_OPSET, opset_of, save_checked
from l2r2_export.parity import LOGIT_TOLERANCE, check_classifier, compare_logits


@pytest.fixture(scope="module")
def images(photos: dict[str, list[Pixels]]) -> np.ndarray:
    """The sixteen photographs whole, as Lite0 takes them."""
    settings = ViewSettings()
    squares = [render(photo, None, View.FULL, settings) for crops in photos.values() for photo in crops]
    return normalize(squares, settings)


def opened(file: Path, classes: int = 2) -> SessionClassifier:
    return SessionClassifier(OnnxRuntimeSession(file, threads=2), INPUT, classes)


def test_lite0_answers_as_in_torch(lite0: torch.nn.Module, lite0_file: Path, images: np.ndarray) -> None:
    figures = check_classifier(TorchClassifier(lite0), opened(lite0_file), images)
    assert figures["n"] == 16
    assert figures["max_abs"] < LOGIT_TOLERANCE / 10
    assert figures["mean_abs"] <= figures["q99_abs"] <= figures["max_abs"]
    assert figures["top1_agreement"] == 1.0


@pytest.mark.parametrize("n", [1, 3, 8])
def test_any_batch_runs(lite0: torch.nn.Module, lite0_file: Path, images: np.ndarray, n: int) -> None:
    logits = opened(lite0_file).logits(images[:n])
    np.testing.assert_allclose(logits, TorchClassifier(lite0).logits(images[:n]), atol=LOGIT_TOLERANCE)


def test_the_file_is_valid_recent_whole_and_silent(lite0_file: Path) -> None:
    model = onnx.load(str(lite0_file))
    onnx.checker.check_model(model, full_check=True)
    assert opset_of(model) >= MIN_OPSET
    assert [value.name for value in model.graph.input] == [INPUT]
    assert [value.name for value in model.graph.output] == [OUTPUT]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [file.name for file in lite0_file.parent.iterdir()] == [lite0_file.name]
    data = lite0_file.read_bytes()
    assert b"site-packages" not in data
    assert str(Path(__file__).parents[2]).encode() not in data


def test_training_mode_is_left_as_it_was(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(3 * 32 * 32, 2)).train()
    export_classifier(network, 32, tmp_path / "m.onnx")
    assert network.training
    images = np.ones((2, 3, 32, 32), np.float32)
    check_classifier(TorchClassifier(network), opened(tmp_path / "m.onnx"), images)


@pytest.mark.parametrize("model", ["resnet18", "convnextv2_atto"])
def test_families_without_packaged_weights_are_exported(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_network(model, 3)
    with torch.no_grad():  # fresh layers of zeros would prove nothing
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    export_classifier(network, 64, tmp_path / "m.onnx")
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    figures = check_classifier(TorchClassifier(network), opened(tmp_path / "m.onnx", 3), images)
    assert figures["max_abs"] < LOGIT_TOLERANCE


class Branching(torch.nn.Module):
    """What it computes depends on the values, which no graph can hold."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_what_cannot_be_exported_is_one_line_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="classifier Branching cannot be exported at 32 px") as caught:
        export_classifier(Branching(), 32, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_old_opset_is_refused(lite0: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset is 11; expected at least 17"):
        export_classifier(lite0, 224, tmp_path / "m.onnx", opset=11)
    assert list(tmp_path.iterdir()) == []


def test_an_old_or_invalid_graph_is_not_written(lite0_file: Path, tmp_path: Path) -> None:
    old = onnx.load(str(lite0_file))
    old.opset_import[0].version = 11
    with pytest.raises(ExportError, match="m has opset 11; expected at least 17"):
        save_checked(old, tmp_path / "m.onnx", "m")
    broken = onnx.load(str(lite0_file))
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ExportError, match="m is no valid ONNX model"):
        save_checked(broken, tmp_path / "m.onnx", "m")
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_caught_with_the_figures(
    lite0: torch.nn.Module, lite0_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    save_file(lite0.state_dict(), tmp_path / "w.safetensors")
    other = create_network("tf_efficientnet_lite0", 2)
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    with torch.no_grad():
        other.get_parameter("conv_stem.weight").mul_(1.05)
    with pytest.raises(ParityError, match=r"FG: .* expected max_abs \S+, at most 0\.001.*top1_agreement .*n 16") as e:
        check_classifier(TorchClassifier(other), opened(lite0_file), images, what="FG")
    assert "Nothing was written" in str(e.value)


def test_logits_that_are_not_finite_are_caught(
    lite0: torch.nn.Module, lite0_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model = onnx.load(str(lite0_file))
    floats = [weight for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT]
    head = next(weight for weight in floats if sorted(weight.dims) == [2, 1280])
    head.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(head.dims), np.nan, np.float32), head.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(ParityError, match=r"the exported model failed on 2 photographs: .*not finite"):
        check_classifier(TorchClassifier(lite0), opened(tmp_path / "nan.onnx"), images[:2])


class Constant:
    """A classifier that gives what it was made with."""

    def __init__(self, row: list[float]) -> None:
        self._row = row

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.tile(np.asarray(self._row, np.float32), (len(images), 1))


def test_a_figure_that_is_no_number_fails() -> None:
    with pytest.raises(ParityError, match="max_abs nan"):
        check_classifier(Constant([0.0, 1.0]), Constant([0.0, float("nan")]), np.zeros((2, 3, 8, 8), np.float32))


def test_a_batch_that_differs_from_one_by_one_fails() -> None:
    class Batchy(Constant):
        def logits(self, images: np.ndarray) -> np.ndarray:
            return super().logits(images) + np.float32(0.01 * (len(images) == 1))

    with pytest.raises(ParityError, match=r"expected batch_max_abs 0\.01, at most 0\.001 \("):
        check_classifier(Constant([0.0, 1.0]), Batchy([0.0, 1.0]), np.zeros((2, 3, 8, 8), np.float32))


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="no photographs to compare on"):
        check_classifier(Constant([0.0]), Constant([0.0]), np.zeros((0, 3, 8, 8), np.float32))


def test_figures_worked_by_hand() -> None:
    reference = np.array([[0.0, 0.0], [0.0, 2.0]], np.float32)
    exported = np.array([[0.0, 0.0], [0.0, 1.0]], np.float32)  # differences 0 0 0 1
    parity = compare_logits(reference, exported, exported)
    # KL of row 2: p = (1, e²) / (1 + e²), q = (1, e) / (1 + e); Σ p (log p - log q) = p₂ - log((1 + e²) / (1 + e))
    expected = np.e**2 / (1 + np.e**2) - np.log((1 + np.e**2) / (1 + np.e))
    assert (parity.max_abs, parity.mean_abs, parity.batch_max_abs, parity.n) == (1.0, 0.25, 0.0, 2.0)
    assert parity.kl == pytest.approx(expected)
    assert parity.top1_agreement == 1.0
