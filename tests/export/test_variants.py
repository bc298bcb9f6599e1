"""A stage in each precision a runtime has: made, compared, or refused with nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from l2r2.classification import SessionClassifier
from l2r2.config import SaliencySettings
from l2r2.errors import ArtifactError, BackendError, ConfigError, ExportError, ParityError
from l2r2.localization import SaliencyLocalizer
from l2r2.runtimes import OnnxRuntimeSession, open_session, why_not
from l2r2.types import Pixels
from l2r2_export import variants
from l2r2_export.precision_parity import TOLERANCES
from l2r2_export.variants import Variant, classifier_variant, localizer_variant
from tests.export.toy import CLASSES, logits_of, toy_classifier, toy_images, toy_localizer
from tests.tiny import make_photo, make_uniform

CALIBRATION = [toy_images(32, 5)[0], toy_images(32, 6)[0]]
VALIDATION, LABELS = toy_images(240, 7)
GROUPS = np.arange(240) // 2
SETTINGS = SaliencySettings(size_px=288)

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_classifier(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.fixture(scope="module")
def breaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One channel between two of its layers is so large that eight bits hold nothing else."""
    return toy_classifier(tmp_path_factory.mktemp("toy") / "breaking.onnx", outlier=3000.0)


@pytest.fixture(scope="module")
def saliency(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_localizer(tmp_path_factory.mktemp("toy") / "localizer.onnx")


def _classifier(file: Path) -> SessionClassifier:
    return SessionClassifier(OnnxRuntimeSession(file), "images", CLASSES)


def _made(source: Path, runtime: str, precision: Any, folder: Path, **changes: Any) -> Variant:
    given = {
        "name": "FG",
        "reference": _classifier(source),
        "classes": CLASSES,
        "calibration": CALIBRATION,
        "validation": VALIDATION,
        "labels": LABELS,
        "groups": GROUPS,
        "threads": 1,
    }
    return classifier_variant(source, runtime, precision, folder, **{**given, **changes})


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("onnxruntime", "int8"),
        pytest.param("openvino", "fp32", marks=needs_openvino),
        pytest.param("openvino", "int8", marks=needs_openvino),
    ],
)
def test_a_classifier_that_keeps_its_answers_runs_where_it_is_for(
    runtime: str, precision: Any, source: Path, tmp_path: Path
) -> None:
    made = _made(source, runtime, precision, tmp_path)
    assert (made.precision, made.kept, made.compared_on) == (precision, (), runtime)
    assert (made.file == source) == (precision == "fp32")
    assert made.figures["top1_agreement"] >= made.tolerance["min_agreement"]
    assert made.figures["n"] == 240.0
    after = open_session(made.file, runtime, precision=precision).infer({"images": VALIDATION})["logits"]
    before = logits_of(source, VALIDATION)
    assert (before.argmax(1) == after.argmax(1)).mean() == pytest.approx(made.figures["top1_agreement"])
    assert np.abs(after - before).max() == pytest.approx(made.figures["max_abs"], abs=1e-5)


@needs_openvino
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_is_a_setting_of_the_runtime_takes_the_source(
    precision: Any, source: Path, tmp_path: Path
) -> None:
    try:
        open_session(source, "openvino", precision=precision)
    except BackendError:
        with pytest.raises(BackendError, match=r"this CPU computes in b?f(16|32) where "):
            _made(source, "openvino", precision, tmp_path)
    else:
        assert _made(source, "openvino", precision, tmp_path).file == source
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_layers_that_break_are_found_and_kept(runtime: str, breaking: Path, tmp_path: Path) -> None:
    made = _made(breaking, runtime, "int8", tmp_path)
    assert made.precision == "int8"
    assert 0 < len(made.kept) < 4
    assert set(made.kept) <= {"depthwise", "point"}
    assert made.log[0]["what"] == "all"
    assert made.log[0]["passed"] is False
    assert any(step["what"] == "alone" for step in made.log)
    assert TOLERANCES["int8"].broken(made.figures) == []
    if made.file.suffix == ".onnx":
        weights = {each.name: each for each in onnx.load(str(made.file)).graph.initializer}
        floats = {n for n, w in weights.items() if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) == 4}
        assert len(floats) == len(made.kept)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_for_engines_files_are_symmetric_and_compared_on_onnx_runtime(
    runtime: str, source: Path, tmp_path: Path
) -> None:
    made = _made(source, runtime, "int8", tmp_path)
    assert made.compared_on == "onnxruntime"
    graph = onnx.load(str(made.file)).graph
    points = [onnx.numpy_helper.to_array(w) for w in graph.initializer if w.name.endswith("zero_point")]
    assert points
    assert not any(point.any() for point in points)


def test_for_a_strongly_typed_runtime_half_is_in_the_file(source: Path, tmp_path: Path) -> None:
    made = _made(source, "tensorrt-rtx", "fp16", tmp_path)
    kinds = {weight.data_type for weight in onnx.load(str(made.file)).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert made.compared_on == "onnxruntime"


def test_where_the_precision_is_a_flag_the_source_is_taken_and_layers_are_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "_takes_flags", lambda: True)
    made = _made(source, "tensorrt", "fp16", tmp_path)
    assert made.file == source
    assert made.kept == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(why_not("tensorrt-rtx") is not None and find_spec("tensorrt_rtx") is None, reason="not installed")
def test_tensorrt_rtx_builds_what_was_made_for_it(source: Path, tmp_path: Path) -> None:
    from l2r2.runtimes import ShapeProfile, build_ahead

    profile = ShapeProfile.of_batches(OnnxRuntimeSession(source).inputs)
    for precision in ("fp16", "int8"):
        made = _made(source, "tensorrt-rtx", precision, tmp_path)
        cache = tmp_path / "engines"
        (engine,) = build_ahead(
            made.file, "tensorrt-rtx", cache, architectures=["SM89"], precision=precision, profile=profile
        )
        assert engine.is_file()


def test_what_stays_outside_is_refused_with_figures_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    other = toy_images(240, 7)[0][::-1].copy()

    class Reversed:
        def logits(self, images: np.ndarray) -> np.ndarray:
            return -logits_of(source, images)

    with pytest.raises(ParityError, match=r"top1_agreement \S+, at least 0\.96"):
        _made(source, "onnxruntime", "int8", tmp_path, reference=Reversed(), validation=other)
    assert not list(tmp_path.iterdir())


def test_with_a_fallback_fp32_is_taken_and_the_refusal_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = {**TOLERANCES, "int8": replace(TOLERANCES["int8"], min_agreement=2.0)}
    monkeypatch.setattr(variants, "TOLERANCES", never)
    with pytest.raises(ParityError):
        _made(source, "onnxruntime", "int8", tmp_path)
    made = _made(source, "onnxruntime", "int8", tmp_path, fallback=True)
    assert (made.file, made.precision, made.kept) == (source, "fp32", ())
    assert made.log[0]["what"] == "refused"
    assert "at least 2" in str(made.log[0]["reason"])


def test_bad_input_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"toy\.onnx: the calibration set is empty"):
        _made(source, "onnxruntime", "int8", tmp_path, calibration=[])
    with pytest.raises(ExportError, match="not finite"):
        _made(source, "onnxruntime", "int8", tmp_path, calibration=[np.full_like(VALIDATION[:4], np.nan)])
    with pytest.raises(ConfigError, match="there is no runtime 'onnxruntim'"):
        _made(source, "onnxruntim", "int8", tmp_path)
    with pytest.raises(BackendError, match=r"onnxruntime does not compute in bf16; .*choose openvino, or fp16"):
        _made(source, "onnxruntime", "bf16", tmp_path)
    with pytest.raises(BackendError, match="torch runs what"):
        _made(source, "torch", "fp32", tmp_path)
    (tmp_path / "damaged.onnx").write_bytes(source.read_bytes()[:-200])
    for precision in ("fp32", "fp16", "int8"):
        with pytest.raises(ArtifactError, match=r"damaged\.onnx"):
            _made(tmp_path / "damaged.onnx", "onnxruntime", precision, tmp_path, reference=_classifier(source))
    assert [each.name for each in tmp_path.iterdir()] == ["damaged.onnx"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_logits_that_are_not_finite_are_refused(precision: Any, source: Path, tmp_path: Path) -> None:
    broken = toy_classifier(tmp_path / "nan.onnx", bias=np.nan)
    with pytest.raises(ExportError, match="not finite"):
        _made(broken, "onnxruntime", precision, tmp_path / "out", reference=_classifier(source))
    assert not (tmp_path / "out").exists()


def _photos(n: int) -> list[Pixels]:
    rng = np.random.default_rng(0)
    photos = []
    for i in range(n):
        photo = make_uniform((10, 10, 10)) if i % 5 == 4 else make_photo((250, 250, 250))
        photo = np.roll(photo, rng.integers(-20, 20, 2), axis=(0, 1))
        photos.append(np.clip(photo + rng.integers(0, 6, photo.shape), 0, 255).astype(np.uint8))
    return photos


def _localized(source: Path, runtime: str, precision: Any, folder: Path, **changes: Any) -> Variant:
    given = {
        "settings": SETTINGS,
        "size_px": SETTINGS.size_px,
        "reference": SaliencyLocalizer(OnnxRuntimeSession(source), SETTINGS, "0" * 12, input_name="images"),
        "calibration": _photos(8),
        "validation": _photos(20),
        "threads": 1,
    }
    return localizer_variant(source, runtime, precision, folder, **{**given, **changes})


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("size_px", [288, 256])
def test_a_localizer_finds_the_same_in_int8_and_at_a_smaller_size(
    runtime: str, size_px: int, saliency: Path, tmp_path: Path
) -> None:
    made = _localized(saliency, runtime, "int8", tmp_path, size_px=size_px)
    assert made.figures["n"] == 20.0
    assert made.figures["mean_iou"] >= 0.95
    session = open_session(made.file, runtime, precision="int8")
    smaller = SETTINGS.model_copy(update={"size_px": size_px})
    found = SaliencyLocalizer(session, smaller, "0" * 12, input_name="images").locate(_photos(20)[:3])
    assert all(region is not None for region in found)


def test_a_localizer_on_another_runtime_at_its_own_size_is_the_same(saliency: Path, tmp_path: Path) -> None:
    made = _localized(saliency, "onnxruntime", "fp32", tmp_path)
    assert (made.file, made.figures["mean_iou"], made.figures["found_agreement"]) == (saliency, 1.0, 1.0)


def test_bad_input_of_a_localizer_is_named(saliency: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the calibration set is empty"):
        _localized(saliency, "onnxruntime", "int8", tmp_path, calibration=[])
    with pytest.raises(ConfigError, match=r"localizer u2netp at 100 px: .*choose another size"):
        _localized(saliency, "onnxruntime", "fp32", tmp_path, size_px=100)
    broken = onnx.load(str(saliency))
    bias = next(weight for weight in broken.graph.initializer if weight.name == "mix.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan], np.float32), "mix.bias"))
    onnx.save(broken, str(tmp_path / "nan.onnx"))
    reference = SaliencyLocalizer(OnnxRuntimeSession(saliency), SETTINGS, "0" * 12, input_name="images")
    with pytest.raises(ParityError, match=r"nan\.onnx: saliency that is not finite"):
        _localized(tmp_path / "nan.onnx", "onnxruntime", "fp32", tmp_path, reference=reference)


def test_a_size_that_is_too_small_is_refused_before_any_search(
    saliency: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(variants, "search", never)
    shifted = [np.roll(photo, 30, axis=1) for photo in _photos(20)]

    class Elsewhere(SaliencyLocalizer):
        def locate(self, photos: Any) -> Any:
            return super().locate([shifted[self.asked(photo)] for photo in photos])

        def asked(self, photo: Pixels) -> int:
            return next(i for i, each in enumerate(_photos(20)) if np.array_equal(each, photo))

    reference = Elsewhere(OnnxRuntimeSession(saliency), SETTINGS, "0" * 12, input_name="images")
    with pytest.raises(ParityError, match=r"localizer in fp32 on onnxruntime answers .*mean_iou \S+, at least 0\.95"):
        _localized(saliency, "onnxruntime", "int8", tmp_path, size_px=256, reference=reference)
