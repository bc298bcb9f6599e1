"""INT8 with Q/DQ pairs: the answers stay, kept layers stay float, and what cannot be quantized is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from l2r2.errors import ArtifactError, ExportError
from l2r2.runtimes import open_session
from l2r2_export.quantize import QdqQuantizer
from tests.export.toy import LAYERS, logits_of, save, toy_classifier, toy_images

CALIBRATION = [toy_images(32, 5)[0], toy_images(16, 6)[0]]
IMAGES = toy_images(120, 7)[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_classifier(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.fixture(scope="module")
def quantizer(source: Path) -> QdqQuantizer:
    return QdqQuantizer(source, CALIBRATION)


def _noise(file: Path, source: Path) -> float:
    """Mean squared change of a logit over its variance."""
    before, after = logits_of(source, IMAGES), logits_of(file, IMAGES)
    return float(np.square(after - before).mean() / before.var(axis=0).mean())


def _weights(file: Path) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in onnx.load(str(file)).graph.initializer}


def _rounded(file: Path) -> dict[str, np.ndarray]:
    return {name: v for name, v in _weights(file).items() if v.dtype == np.int8 and v.ndim > 1}


def test_layers_are_those_with_weights_and_how_often_they_multiply(quantizer: QdqQuantizer) -> None:
    assert tuple(quantizer.layers) == LAYERS
    assert list(quantizer.layers.values()) == [8 * 3 * 9 * 256, 8 * 9 * 64, 16 * 8 * 64, 3 * 16]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_all_in_int8_the_answers_stay(runtime: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    QdqQuantizer(source, CALIBRATION, runtime).write(out)  # type: ignore[arg-type]
    before = logits_of(source, IMAGES)
    after = open_session(out, runtime, precision="int8").infer({"images": IMAGES})["logits"]
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.95
    assert 0 < np.abs(after - before).max() < 0.2 * np.ptp(before)
    assert len(_rounded(out)) == len(LAYERS)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_a_kept_layer_keeps_its_weights(target: str, source: Path, tmp_path: Path) -> None:
    QdqQuantizer(source, CALIBRATION, target).write(tmp_path / "kept.onnx", ["point"])  # type: ignore[arg-type]
    file = onnx.load(str(tmp_path / "kept.onnx"))
    (node,) = (node for node in file.graph.node if node.name == "point")
    np.testing.assert_array_equal(_weights(tmp_path / "kept.onnx")[node.input[1]], _weights(source)["point.weight"])
    assert len(_rounded(tmp_path / "kept.onnx")) == len(LAYERS) - 1


def test_keeping_all_is_the_model_itself(quantizer: QdqQuantizer, source: Path, tmp_path: Path) -> None:
    quantizer.write(tmp_path / "all.onnx", LAYERS)
    np.testing.assert_allclose(logits_of(tmp_path / "all.onnx", IMAGES), logits_of(source, IMAGES), atol=1e-4)


def test_keeping_more_changes_less(quantizer: QdqQuantizer, source: Path, tmp_path: Path) -> None:
    noises = []
    for keep in ((), LAYERS[:2], LAYERS[:3]):
        quantizer.write(tmp_path / "some.onnx", keep)
        noises.append(_noise(tmp_path / "some.onnx", source))
    assert noises[0] > noises[1] > noises[2] > 0


def test_kept_layers_load_in_openvino_where_a_concat_is_before_them(tmp_path: Path) -> None:
    """What keeps ONNX Runtime from rounding kept weights, OpenVINO takes for more channels."""
    rng = np.random.default_rng(0)

    nodes = [
        helper.make_node("Conv", ["images", "one"], ["a"], "one"),
        helper.make_node("Conv", ["images", "two"], ["b"], "two"),
        helper.make_node("Concat", ["a", "b"], ["c"], "both", axis=1),
        helper.make_node("Conv", ["c", "out"], ["d"], "last"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["logits"], "flatten"),
    ]
    weights = {"one": rng.normal(0, 1, (1, 3, 1, 1)), "two": rng.normal(0, 1, (1, 3, 1, 1))}
    weights["out"] = rng.normal(0, 1, (3, 2, 1, 1))
    source = save(tmp_path / "concat.onnx", nodes, weights, ("images", [3, 16, 16]), ("logits", [3]))
    QdqQuantizer(source, CALIBRATION, "openvino").write(tmp_path / "kept.onnx", ["last"])
    after = open_session(tmp_path / "kept.onnx", "openvino", precision="int8").infer({"images": IMAGES})["logits"]
    np.testing.assert_allclose(after, logits_of(source, IMAGES), atol=0.1)


def test_weights_rounded_together_are_better_than_each_to_the_nearest(source: Path, tmp_path: Path) -> None:
    noises = []
    for compensate in (True, False):
        QdqQuantizer(source, CALIBRATION, seven_bits=True, compensate=compensate).write(tmp_path / "q.onnx")
        noises.append(_noise(tmp_path / "q.onnx", source))
    assert noises[0] < noises[1]


def test_for_tensorrt_all_zero_points_are_zero(source: Path, tmp_path: Path) -> None:
    QdqQuantizer(source, CALIBRATION, "tensorrt").write(tmp_path / "q.onnx")
    points = [values for name, values in _weights(tmp_path / "q.onnx").items() if "zero_point" in name]
    assert points
    assert all(not values.any() and values.dtype in (np.int8, np.int32) for values in points)


def test_seven_bits_are_seven_bits(source: Path, tmp_path: Path) -> None:
    for seven, largest in ((True, 64), (False, 127)):
        QdqQuantizer(source, CALIBRATION, seven_bits=seven).write(tmp_path / "q.onnx")
        assert (
            max(int(np.abs(values.astype(int)).max()) for values in _rounded(tmp_path / "q.onnx").values()) <= largest
        )


def test_the_same_set_gives_the_same_file(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        QdqQuantizer(source, CALIBRATION).write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("empty", [[], [IMAGES[:0]]], ids=["no batch", "an empty batch"])
def test_an_empty_calibration_set_is_refused(source: Path, empty: list[np.ndarray]) -> None:
    with pytest.raises(ExportError, match="the calibration set is empty; expected rendered views"):
        QdqQuantizer(source, empty)


def test_a_calibration_set_with_nan_is_refused(source: Path) -> None:
    broken = IMAGES.copy()
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="the calibration set has numbers that are not finite"):
        QdqQuantizer(source, [broken])


def test_a_calibration_set_of_another_shape_is_refused(source: Path) -> None:
    with pytest.raises(ExportError, match=r"toy\.onnx cannot be calibrated: "):
        QdqQuantizer(source, [np.zeros((2, 3, 8, 16), np.float32)])


def test_an_unknown_layer_is_refused(quantizer: QdqQuantizer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no layer 'pointt' to keep; expected one of its 4 layers"):
        quantizer.write(tmp_path / "q.onnx", ["pointt"])
    assert not list(tmp_path.iterdir())


def test_damaged_sources_and_unknown_operators_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(source.read_bytes()[:-200])
    strange = helper.make_node("Rotate", ["scores"], ["logits"], "rotate", domain="somewhere.else")
    toy_classifier(tmp_path / "strange.onnx", extra=[strange])
    for name in ("half.onnx", "strange.onnx", "absent.onnx"):
        with pytest.raises(ArtifactError, match=f"{name} cannot be loaded by ONNX Runtime: "):
            QdqQuantizer(tmp_path / name, CALIBRATION)


def test_a_place_that_cannot_be_written_is_named(quantizer: QdqQuantizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtifactError, match="file"):
        quantizer.write(tmp_path / "file" / "q.onnx")


def test_a_full_disk_leaves_what_was_there(
    quantizer: QdqQuantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "q.onnx"
    out.write_bytes(b"before")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        quantizer.write(out)
    monkeypatch.undo()
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"before"]
