"""Layers of small models: which ran, how long, and what they were fed. Where a GPU is, TensorRT's too."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from l2r2.bundle import Bundle
from l2r2.errors import BackendError, ConfigError
from l2r2.images import Photograph
from l2r2.runtimes import ShapeProfile, build_ahead, open_session, why_not
from l2r2.runtimes.open_vino import openvino_core
from l2r2.runtimes.tensorrt_session import profiler_of
from l2r2.types import Stage
from l2r2.views import normalize, render
from l2r2_export.layers import TOP, _stage, _timer, layers_csv, layers_text, profile_layers, record_feeds
from tests.core.convnet import save_convnet
from tests.tiny import MUDDY, encode, make_photo, make_tiny_bundle, make_uniform

CONVNET = {"channels": 32, "depth": 3, "size": 48}
FEED = {"view": np.random.default_rng(0).standard_normal((1, 3, 48, 48)).astype(np.float32)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_convnet(tmp_path_factory.mktemp("models") / "convnet.onnx", **CONVNET)


def test_onnx_runtime_tells_of_each_node_of_the_graph_that_it_made(convnet: Path, tmp_path: Path) -> None:
    """Against the graph as ONNX Runtime writes it after fusing."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file suits this processor only
    onnxruntime.InferenceSession(str(convnet), options, providers=["CPUExecutionProvider"])
    nodes = {(node.name, node.op_type) for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    times = _timer("onnxruntime")(None, convnet, FEED, "fp32", 1, 3)
    assert set(times) == nodes
    assert all(ms >= 0 for ms in times.values())  # whole microseconds: the smallest may have none
    assert all(ms > 0 for (_, operator), ms in times.items() if "Conv" in operator)


def test_openvino_tells_of_layers_of_the_model_that_it_runs(convnet: Path) -> None:
    """Against the runtime model that OpenVINO shows: its nodes list the layers that were fused into them."""
    compiled = openvino_core().compile_model(str(convnet), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = {node.get_friendly_name() for node in compiled.get_runtime_model().get_ops()}
    times = _timer("openvino")(None, convnet, FEED, "fp32", 1, 3)
    assert {name for name, _ in times} <= ran
    assert sum(operator.startswith("Convolution ") for _, operator in times) == CONVNET["depth"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_convolutions_are_what_a_convnet_spends_its_time_in(convnet: Path, runtime: str) -> None:
    times = _timer(runtime)(None, convnet, FEED, "fp32", 1, 20)
    convolutions = sum(ms for (_, operator), ms in times.items() if "Conv" in operator)
    assert convolutions > 0.5 * sum(times.values())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_model_of_a_bundle_is_profiled_in_the_order_of_the_cascade(bundle: Bundle, runtime: str) -> None:
    photograph = encode(make_photo(MUDDY), "JPEG")
    found = profile_layers(bundle, bundle.deployment(runtime, uncertified=True), photograph, runs=2)
    assert [stage.stage for stage in found] == ["localizer", "FG", "FULL"]
    for stage in found:
        assert stage.runs == 2
        assert stage.count == len(stage.layers) > 0
        assert sum(layer.share for layer in stage.layers) == pytest.approx(1)
        assert sum(layer.ms for layer in stage.layers) == pytest.approx(stage.ms)


def test_models_are_fed_what_the_cascade_feeds_them(bundle: Bundle) -> None:
    photograph = encode(make_photo(MUDDY), "PNG")
    recognizer = bundle.recognizer()
    feeds = {stage: feed for stage, _, feed in record_feeds(bundle.recognizer(), photograph, bundle)}
    assert list(feeds) == ["localizer", "FG", "FULL"]
    pixels = Photograph(photograph, bundle.manifest.images).at(1.0)
    (region,) = recognizer.localizer.locate([pixels])
    for stage in Stage:
        square = render(pixels, region, recognizer.views[stage], recognizer.view_settings)
        np.testing.assert_array_equal(feeds[stage]["view"], normalize([square], recognizer.view_settings))


def test_where_nothing_is_found_fg_does_not_run(bundle: Bundle) -> None:
    feeds = record_feeds(bundle.recognizer(), encode(make_uniform(), "PNG"), bundle)
    assert [stage for stage, _, _ in feeds] == ["localizer", "FULL"]


def test_only_the_dearest_layers_are_kept() -> None:
    """300 ms in 25 layers of 0 … 24 ms: the 20 dearest are those of 24 … 5 ms."""
    found = _stage("FG", {(f"l{i}", "Conv"): float(i) for i in range(25)}, 1)
    assert (found.ms, found.count, len(found.layers)) == (300, 25, TOP)
    assert [layer.ms for layer in found.layers] == list(range(24, 4, -1))
    assert found.layers[0].share == pytest.approx(24 / 300)


def test_the_table_has_a_row_a_layer() -> None:
    stage = _stage("FG", {("a, b", "Conv"): 3.0, ("c" * 90, ""): 1.0}, 1)
    rows = list(csv.DictReader(io.StringIO(layers_csv([stage]))))
    assert [(row["stage"], row["rank"], row["layer"], row["ms"], row["share"]) for row in rows] == [
        ("FG", "1", "a, b", "3.0000", "0.7500"),
        ("FG", "2", "c" * 90, "1.0000", "0.2500"),
    ]
    text = layers_text([stage])
    assert "FG: 2 layers, 4.00 ms" in text
    assert " 75.0%  a, b (Conv)" in text
    assert max(map(len, text.splitlines())) < 120


def test_a_runtime_that_tells_nothing(bundle: Bundle) -> None:
    deployment = bundle.manifest.reference.model_copy(update={"runtime": "torch"})
    with pytest.raises(ConfigError, match=r"^runtime torch tells nothing of its layers; expected one of onnxruntime, "):
        profile_layers(bundle, deployment, b"")


class _Engine:
    """What a session of TensorRT has to have, with times that are known."""

    def __init__(self) -> None:
        self.inferred = 0

    def infer(self, feed: Any) -> dict[str, np.ndarray]:
        self.inferred += 1
        return {}

    def layer_times(self, feed: Any, runs: int) -> dict[str, float]:
        return {"conv0 + relu0": 2.0, "pool": 1.0}


def test_a_tensorrt_session_is_warmed_up_and_asked(convnet: Path) -> None:
    engine = _Engine()
    assert _timer("tensorrt")(engine, convnet, FEED, "fp16", 1, 5) == {("conv0 + relu0", ""): 2, ("pool", ""): 1}
    assert engine.inferred > 0
    with pytest.raises(BackendError, match="OnnxRuntimeSession does not time its layers"):
        _timer("tensorrt-rtx")(open_session(convnet), convnet, FEED, "fp32", 1, 5)


def test_tensorrts_profiler_adds_up_what_it_is_told() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    profiler = profiler_of(rtx)
    for ms in (1.0, 2.5):
        profiler.report_layer_time("conv", ms)
        profiler.report_layer_time("pool", 0.5)
    assert isinstance(profiler, rtx.IProfiler)
    assert profiler.ms == {"conv": 3.5, "pool": 1.0}
    assert {"profiler", "enqueue_emits_profile", "report_to_profiler"} <= set(dir(rtx.IExecutionContext))


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_on_a_gpu_an_engine_tells_of_its_layers(convnet: Path, tmp_path: Path, runtime: str) -> None:
    reason = why_not(runtime)
    if reason is not None:
        pytest.skip(reason)
    from l2r2.runtimes.cuda_device import Cuda

    profile = ShapeProfile.of_batches({"view": ["n", 3, 48, 48]}, 1, 1, 2)
    named = [] if runtime == "tensorrt" else [Cuda().architecture]
    build_ahead(convnet, runtime, tmp_path, architectures=named, profile=profile)
    session = open_session(convnet, runtime, cache=tmp_path, profile=profile)
    before = session.infer(FEED)["logits"]
    times = _timer(runtime)(session, convnet, FEED, "fp32", 1, 10)
    assert sum(times.values()) > 0
    assert any("conv" in name.lower() for name, _ in times)
    np.testing.assert_array_equal(session.infer(FEED)["logits"], before)


def test_profiling_leaves_the_bundle_as_it_was(bundle: Bundle) -> None:
    files = {path: path.stat().st_mtime_ns for path in bundle.folder.rglob("*")}
    here = set(Path.cwd().iterdir())
    profile_layers(bundle, replace(bundle).deployment(), encode(make_photo(MUDDY), "JPEG"), runs=1)
    assert {path: path.stat().st_mtime_ns for path in bundle.folder.rglob("*")} == files
    assert set(Path.cwd().iterdir()) == here
