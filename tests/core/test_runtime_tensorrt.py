"""TensorRT cannot be installed everywhere: what it shares with TensorRT-RTX runs here, the rest where a GPU is."""

import ast
import inspect
import subprocess
import sys

import numpy as np
import pytest

from l2r2.errors import ArtifactError, BackendError, BackendMissing, ConfigError
from l2r2.runtimes import (
    EngineKey,
    OnnxRuntimeSession,
    ShapeProfile,
    build_ahead,
    cuda_device,
    open_session,
    tensorrt_building,
    tensorrt_engine,
    tensorrt_session,
    why_not,
)
from l2r2.runtimes.engine_cache import write_header
from l2r2.runtimes.tensorrt_engine import build_engine, set_precision, use_timing_cache
from tests.core.convnet import save_convnet

rtx = pytest.importorskip("tensorrt_rtx")

PROFILE = ShapeProfile.of_batches({"view": ["n", 3, 16, 16]}, 1, 2, 4)
WITHOUT = why_not("tensorrt")
no_ops = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")  # timing caches, which TensorRT keeps
on_a_gpu = pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))

ONLY_IN_10 = {"BuilderFlag.OBEY_PRECISION_CONSTRAINTS"}
"""TensorRT 11 and TensorRT-RTX took it away. Source: NVIDIA's guide from 10.x to 11.x, removed Python APIs."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_convnet(tmp_path_factory.mktemp("models") / "convnet.onnx")


@pytest.fixture
def network_and_config(model):
    log = tensorrt_building.logger_of(rtx)
    builder = rtx.Builder(log)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, log)
    assert parser.parse_from_file(str(model))
    config = builder.create_builder_config()
    yield network, config
    del config, parser, network, builder  # in this order: TensorRT frees what still is in use otherwise


def names_of(module, of: str) -> set[str]:
    """The dotted names that a module's source takes from a variable."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id == of:
            found.add(".".join(reversed(parts)))
    return found


def has(module, dotted: str) -> bool:
    for part in dotted.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


@pytest.mark.parametrize("module", [tensorrt_building, tensorrt_engine, tensorrt_session], ids=lambda m: m.__name__)
def test_every_name_taken_from_tensorrt_is_there(module):
    """In the package that shares its API; `trt.X.__init__` is Python's own."""
    names = names_of(module, "trt")
    assert names, "the check looks at nothing"
    assert {name for name in names if not has(rtx, name)} <= ONLY_IN_10


def test_every_method_called_on_tensorrts_objects_is_there():
    kinds = (rtx.IExecutionContext, rtx.ICudaEngine, rtx.Runtime, rtx.IBuilderConfig, rtx.Builder, rtx.ITimingCache)
    there = {name for kind in kinds for name in dir(kind)}
    used = names_of(tensorrt_engine, "config") | {
        name.split(".")[-1]
        for of in ("_context", "_engine", "_runtime")
        for name in names_of(tensorrt_session, "self")
        if name.startswith(f"{of}.")
    }
    assert {"set_timing_cache", "execute_async_v3", "deserialize_cuda_engine", "get_tensor_profile_shape"} <= used
    assert used <= there


def test_every_name_taken_from_cuda_is_there():
    api = pytest.importorskip("cuda.bindings.runtime")
    names = {name.removeprefix("_api.") for name in names_of(cuda_device, "self") if name.startswith("_api.")}
    assert len(names) >= 10
    assert {name for name in names if not has(api, name)} == set()
    assert {name for name in names_of(cuda_device, "attribute") if not has(api.cudaDeviceAttr, name)} == set()


@no_ops
def test_the_timing_cache_is_written_and_read(network_and_config, tmp_path):
    _, config = network_and_config
    use_timing_cache(config, tmp_path / "none")
    empty = bytes(config.get_timing_cache().serialize())
    assert len(empty) > 0
    (tmp_path / "timing").write_bytes(empty)
    use_timing_cache(config, tmp_path / "timing")
    assert bytes(config.get_timing_cache().serialize()) == empty


@no_ops
def test_a_timing_cache_that_is_none_is_not_used(network_and_config, tmp_path):
    _, config = network_and_config
    (tmp_path / "bad").write_bytes(b"no timing cache")
    use_timing_cache(config, tmp_path / "bad")
    assert config.get_timing_cache() is not None


def test_where_types_are_the_models_a_pin_is_refused(network_and_config):
    network, config = network_and_config
    for precision in ("fp32", "fp16", "int8"):
        set_precision(rtx, network, config, precision, ())
    with pytest.raises(BackendError, match=r"takes each layer's type from the model and cannot pin 'conv0'"):
        set_precision(rtx, network, config, "fp16", ["conv0"])


def test_a_pin_that_is_no_layer(network_and_config):
    network, config = network_and_config
    with pytest.raises(ConfigError, match=r"^the model has no layer 'conv7' to keep in float32; did you mean .*conv1"):
        set_precision(rtx, network, config, "fp16", ["conv7"])


def test_without_the_package_the_message_has_the_command(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = r"^TensorRT is not installed; run: pip install 'l2r2\[tensorrt\]'$"
    for attempt in (
        lambda: open_session(model, "tensorrt"),
        lambda: build_engine(model, tmp_path / "engine"),
        lambda: build_ahead(model, "tensorrt", tmp_path),
    ):
        with pytest.raises(BackendMissing, match=message):
            attempt()


def test_without_cuda_bindings_the_message_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendMissing, match=r"^cuda-bindings is not installed; run: pip install 'l2r2\[cuda\]'$"):
        cuda_device.Cuda()


def test_a_package_that_is_broken_is_told_from_one_that_is_missing(model, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    program = f"""
from pathlib import Path
from l2r2.runtimes import open_session
open_session(Path({str(model)!r}), "tensorrt")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "l2r2.errors.BackendError: TensorRT is installed but cannot be loaded: libnvinfer.so.11: cannot open shared "
        "object file; install it again"
    )


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT 10 calls its own precision flags so
@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_it_answers_as_onnx_runtime(model, tmp_path, precision):
    options = {"precision": precision, "profile": PROFILE}
    if precision == "fp16" and tensorrt_building.weakly_typed(tensorrt_engine.load_tensorrt()):
        options["pins"] = ["conv1"]
    with pytest.raises(BackendError, match=r"build it ahead: l2r2 export BUNDLE --runtime tensorrt"):
        open_session(model, "tensorrt", cache=tmp_path, **options)
    told = []
    build_ahead(model, "tensorrt", tmp_path, **options, progress=lambda *step: told.append(step))
    assert told
    assert list(tmp_path.glob("timing-*")), "no timing cache"
    session = open_session(model, "tensorrt", cache=tmp_path, **options)
    assert session.inputs == {"view": ["?", 3, 16, 16]}
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for n in (1, 4, 2):
        images = np.random.default_rng(n).standard_normal((n, 3, 16, 16)).astype(np.float32)
        expected = OnnxRuntimeSession(model).infer({"view": images})["logits"]
        np.testing.assert_allclose(session.infer({"view": images})["logits"], expected, atol=tolerance, rtol=tolerance)
    with pytest.raises(BackendError, match=r"the engine was built for \[1, 3, 16, 16\] to \[4, 3, 16, 16\]"):
        session.infer({"view": np.zeros((5, 3, 16, 16), np.float32)})


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT 10 calls its own precision flags so
@on_a_gpu
def test_an_engine_that_is_none(tmp_path):
    version, here = tensorrt_engine.load_tensorrt().__version__, cuda_device.Cuda().architecture
    (tmp_path / "bad.engine").write_bytes(b"no engine")
    write_header(tmp_path / "bad.engine", EngineKey("0" * 64, "tensorrt", version, here))
    with pytest.raises(ArtifactError, match=r"bad\.engine cannot be loaded by TensorRT "):
        open_session(tmp_path / "bad.engine", "tensorrt")
