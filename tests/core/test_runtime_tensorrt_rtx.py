"""TensorRT-RTX engines are built here for real, for GPUs that are elsewhere; to run them needs one."""

import re
import sys

import numpy as np
import onnx
import pytest

from l2r2.errors import ArtifactError, BackendError, BackendMissing, ConfigError
from l2r2.runtimes import EngineCache, EngineKey, OnnxRuntimeSession, ShapeProfile, build_ahead, open_session, why_not
from l2r2.runtimes.cuda_device import Cuda
from l2r2.runtimes.engine_cache import check_engine
from l2r2.runtimes.tensorrt_rtx_engine import build_engine, known_capabilities
from tests.core.convnet import save_convnet

trt = pytest.importorskip("tensorrt_rtx")

INPUTS = {"view": ["n", 3, 16, 16]}
PROFILE = ShapeProfile.of_batches(INPUTS, 1, 2, 4)
WITHOUT_GPU = why_not("tensorrt-rtx")
without_gpu = pytest.mark.skipif(WITHOUT_GPU is None, reason="there is a GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_convnet(tmp_path_factory.mktemp("models") / "convnet.onnx")


@pytest.fixture(scope="module")
def engine(model):
    build_engine(model, model.with_name("sm80.engine"), ["SM80"], PROFILE)
    return model.with_name("sm80.engine")


def test_the_known_architectures():
    assert set(known_capabilities()) >= {"SM75", "SM80", "SM86", "SM89", "SM120", "SM121"}
    assert "CURRENT" not in known_capabilities()


@pytest.mark.parametrize("capability", ["SM75", "SM86", "SM89", "SM120", "SM121"])
def test_an_engine_an_architecture(model, engine, tmp_path, capability):
    build_engine(model, tmp_path / "engine", [capability], PROFILE)
    assert len((tmp_path / "engine").read_bytes()) > 1000
    assert (tmp_path / "engine").read_bytes() != engine.read_bytes()


def test_the_same_build_gives_the_same_engine(model, engine, tmp_path):
    build_engine(model, tmp_path / "engine", ["SM80"], PROFILE)
    assert (tmp_path / "engine").read_bytes() == engine.read_bytes()


def test_one_engine_for_several_architectures(model, engine, tmp_path):
    build_engine(model, tmp_path / "engine", ["SM80", "SM89"], PROFILE)
    assert (tmp_path / "engine").read_bytes() != engine.read_bytes()


def test_the_shapes_are_part_of_the_engine(model, engine, tmp_path):
    build_engine(model, tmp_path / "engine", ["SM80"], ShapeProfile.of_batches(INPUTS, 1, 2, 64))
    assert (tmp_path / "engine").read_bytes() != engine.read_bytes()


def test_progress_only_grows_and_names_what_is_done(model, tmp_path):
    told = []
    build_engine(model, tmp_path / "engine", ["SM80"], PROFILE, lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.8 < shares[-1] <= 1.0
    assert len(set(shares)) > 10
    assert "Building engine" in {what for what, _ in told}


@pytest.mark.parametrize("error", [RuntimeError("enough"), KeyboardInterrupt()])
def test_what_progress_raises_ends_the_build(model, tmp_path, error):
    def progress(what, share):
        if share > 0.2:
            raise error

    with pytest.raises(type(error)):
        build_engine(model, tmp_path / "engine", ["SM80"], PROFILE, progress)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    message = r"^TensorRT-RTX cannot read .*bad\.onnx: MODEL_DESERIALIZE_FAILED: .*Failed to parse the ONNX model\.$"
    with pytest.raises(BackendError, match=message):
        build_engine(tmp_path / "bad.onnx", tmp_path / "engine", ["SM80"])
    assert not (tmp_path / "engine").exists()


def test_a_truncated_model(model, tmp_path):
    (tmp_path / "half.onnx").write_bytes(model.read_bytes()[:-500])
    with pytest.raises(BackendError, match=r"^TensorRT-RTX cannot read .*half\.onnx: MODEL_DESERIALIZE_FAILED: "):
        build_engine(tmp_path / "half.onnx", tmp_path / "engine", ["SM80"], PROFILE)


def test_a_missing_model(tmp_path):
    with pytest.raises(BackendError, match=r"^TensorRT-RTX cannot read .*none\.onnx: INVALID_VALUE: .*cannot be found"):
        build_engine(tmp_path / "none.onnx", tmp_path / "engine", ["SM80"])


def test_an_operator_that_it_lacks_is_named(model, tmp_path):
    changed = onnx.load(model)
    changed.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(changed, tmp_path / "odd.onnx")
    with pytest.raises(BackendError, match=r"odd\.onnx: node 1 \(NoSuchOperator\) INVALID_NODE: ") as caught:
        build_engine(tmp_path / "odd.onnx", tmp_path / "engine", ["SM80"], PROFILE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("capabilities", [["SM90"], ["CURRENT"], ["sm80"]])
def test_an_unknown_architecture(model, tmp_path, capabilities):
    with pytest.raises(ConfigError, match=rf"builds for no '{capabilities[0]}'; expected some of SM120, "):
        build_engine(model, tmp_path / "engine", capabilities, PROFILE)


@pytest.mark.parametrize("capabilities", [[], ["SM80", "SM80"]])
def test_no_architecture_or_one_twice(model, tmp_path, capabilities):
    with pytest.raises(ConfigError, match=r"expected one or more of SM120, "):
        build_engine(model, tmp_path / "engine", capabilities, PROFILE)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (None, r"names \[\], the model's inputs are {'view': \(-1, 3, 16, 16\)} \(-1 is free\)"),
        (ShapeProfile.of_batches({"image": ["n", 3, 16, 16]}), r"names \['image'\]"),
        (ShapeProfile.of_batches({"view": ["n", 3, 32, 32]}), r"for view; expected shapes that fit \(-1, 3, 16, 16\)$"),
        (ShapeProfile.of_batches({"view": ["n", 3]}), r"for view; expected shapes that fit"),
    ],
)
def test_a_profile_that_does_not_fit(model, tmp_path, profile, message):
    with pytest.raises(ConfigError, match=message):
        build_engine(model, tmp_path / "engine", ["SM80"], profile)


def test_a_full_disk(model, tmp_path, monkeypatch):
    monkeypatch.setattr("l2r2.files._beside", lambda path: full)
    full = tmp_path / "beside"
    full.symlink_to("/dev/full")  # where every write fails as on a full disk
    with pytest.raises(ArtifactError, match=r"^cannot write .*engine: No space left on device"):
        build_engine(model, tmp_path / "engine", ["SM80"], PROFILE)
    assert list(tmp_path.iterdir()) == []


def test_engines_of_several_architectures_built_ahead_into_a_cache(model, tmp_path):
    told = []
    options = {"architectures": ["SM80", "SM89"], "profile": PROFILE}
    engines = build_ahead(model, "tensorrt-rtx", tmp_path, **options, progress=lambda *step: told.append(step))
    assert len(set(engines)) == 2
    keys = [check_engine(engine) for engine in engines]
    assert [key.architecture for key in keys] == ["SM80", "SM89"]
    assert {key.version for key in keys} == {trt.__version__}
    assert EngineCache(tmp_path).find(keys[0]) == engines[0]
    assert keys[0] == EngineKey.of(model, "tensorrt-rtx", trt.__version__, "SM80", profile=PROFILE)
    assert told
    told.clear()
    assert build_ahead(model, "tensorrt-rtx", tmp_path, **options) == engines
    assert told == [], "built again"


def test_a_model_that_cannot_be_built_leaves_the_cache_as_it_was(model, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match=r"cannot read"):
        build_ahead(tmp_path / "bad.onnx", "tensorrt-rtx", tmp_path / "cache", architectures=["SM80"])
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("runtime", "architectures", "message"),
    [
        ("tensorrt-rtx", [], r"^TensorRT-RTX builds for named GPU architectures; expected one or more of SM120, "),
        ("openvino", [], r"^runtime openvino has no engines to build; expected one of tensorrt, tensorrt-rtx$"),
        ("tensor", [], r"^there is no runtime 'tensor'; did you mean tensorrt\? expected one of onnxruntime, "),
    ],
)
def test_what_cannot_be_built_ahead(model, tmp_path, runtime, architectures, message):
    with pytest.raises(ConfigError, match=message):
        build_ahead(model, runtime, tmp_path, architectures=architectures)


@without_gpu
def test_without_a_gpu_a_session_says_so_in_one_line(model, engine, tmp_path):
    message = r"^no NVIDIA GPU can be used here: .+; install NVIDIA's driver, or take a runtime for the CPU"
    for file in (model, engine):
        with pytest.raises(BackendError, match=message) as caught:
            open_session(file, "tensorrt-rtx", cache=tmp_path, profile=PROFILE)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "something was built"
    assert re.match(message, WITHOUT_GPU)


def test_without_the_package_the_message_has_the_command(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    message = r"^TensorRT-RTX is not installed; run: pip install 'l2r2\[tensorrt-rtx\]'$"
    with pytest.raises(BackendMissing, match=message):
        open_session(model, "tensorrt-rtx")
    with pytest.raises(BackendMissing, match=message):
        build_engine(model, tmp_path / "engine", ["SM80"])


@pytest.mark.gpu
@pytest.mark.skipif(WITHOUT_GPU is not None, reason=str(WITHOUT_GPU))
def test_on_a_gpu_it_answers_as_onnx_runtime(model, tmp_path):
    here = Cuda().architecture
    if here not in known_capabilities():
        pytest.skip(f"TensorRT-RTX builds for no {here}")
    with pytest.raises(BackendError, match=r"build it ahead: l2r2 export BUNDLE --runtime tensorrt-rtx"):
        open_session(model, "tensorrt-rtx", cache=tmp_path, profile=PROFILE)
    build_ahead(model, "tensorrt-rtx", tmp_path, architectures=[here], profile=PROFILE)
    session = open_session(model, "tensorrt-rtx", cache=tmp_path, profile=PROFILE)
    for n in (1, 4, 2):
        images = np.random.default_rng(n).standard_normal((n, 3, 16, 16)).astype(np.float32)
        expected = OnnxRuntimeSession(model).infer({"view": images})["logits"]
        np.testing.assert_allclose(session.infer({"view": images})["logits"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(BackendError, match=r"view is \[5, 3, 16, 16\]; the engine was built for \[1, 3, 16, 16\] to"):
        session.infer({"view": np.zeros((5, 3, 16, 16), np.float32)})
