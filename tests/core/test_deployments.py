"""Several deployments in one bundle: which one serves, what each reads, what is refused, and older schemas."""

import json
import shutil

import numpy as np
import pytest

from l2r2.bundle import add_deployment, load_bundle
from l2r2.errors import ArtifactError, ConfigError
from l2r2.manifest import Deployment, Model
from l2r2.types import Stage
from tests.tiny import make_photo, make_tiny_bundle, save_classifier, save_localizer

DECISIONS = {"answer_agreement": 1.0, "n": 3.0}


@pytest.fixture
def bundle(tmp_path):
    return make_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def quicker(tmp_path):
    """A model that is told apart by its logits."""
    return save_classifier(tmp_path / "quicker.onnx", 32, gain=3.0)


def describe(bundle, **changes):
    models = dict(bundle.manifest.reference.models)
    models["FG"] = Model(file="models/fg.int8.onnxruntime.onnx", precision="int8", kept=("head",), parity={"kl": 0.1})
    values = {"runtime": "onnxruntime", "precision": "int8", "models": models, "decisions": DECISIONS}
    return Deployment(**{**values, **changes})


def add(bundle, quicker, *, serving=False, **changes):
    return add_deployment(
        bundle, describe(bundle, **changes), {"models/fg.int8.onnxruntime.onnx": quicker}, serving=serving
    )


def gain(recognizer):
    image = np.full((1, 3, 32, 32), 0.5, np.float32)
    return float(recognizer.classifiers[Stage.FG].logits(image)[0, 0]) / 0.5


def test_the_reference_serves_until_another_is_told_to(bundle, quicker):
    both = add(bundle, quicker)
    assert [each.name for each in both.manifest.deployments] == ["onnxruntime/fp32", "onnxruntime/int8"]
    assert both.deployment() == both.manifest.reference
    assert gain(both.recognizer()) == pytest.approx(2.0)
    assert gain(both.recognizer(precision="int8")) == pytest.approx(3.0)
    assert both.version != bundle.version
    serving = add(both, quicker, serving=True, threads=2)
    assert serving.deployment().name == "onnxruntime/int8"
    assert serving.deployment().threads == 2
    assert gain(serving.recognizer()) == pytest.approx(3.0)
    assert gain(serving.recognizer(precision="fp32")) == pytest.approx(2.0)
    assert len(serving.manifest.deployments) == 2


def test_files_that_no_deployment_names_go(bundle, quicker):
    one = add(bundle, quicker)
    models = {**one.manifest.reference.models, "FG": Model(file="models/fg.int8.openvino.xml", precision="int8")}
    files = {"models/fg.int8.openvino.xml": quicker, "models/fg.int8.openvino.bin": quicker}
    two = add_deployment(one, describe(bundle, models=models, runtime="onnxruntime"), files)
    assert sorted(name for name in two.manifest.files if "int8" in name) == sorted(files)
    three = add_deployment(two, describe(bundle, models=dict(bundle.manifest.reference.models), runtime="openvino"), {})
    assert set(files) < set(three.manifest.files)


def test_a_model_that_is_nowhere(bundle):
    with pytest.raises(ArtifactError, match=r"^deployment onnxruntime/int8 names models/fg\.int8\S+, which is not"):
        add_deployment(bundle, describe(bundle), {})
    assert load_bundle(bundle.folder).version == bundle.version
    assert not list(bundle.folder.parent.glob(".*.tmp"))


def test_the_reference_cannot_be_replaced(bundle, quicker):
    with pytest.raises(ArtifactError, match=r"^onnxruntime/fp32 is what all others are compared with"):
        add(bundle, quicker, precision="fp32")


def test_what_was_never_compared_is_refused_unless_asked_for(bundle, quicker):
    found = add(bundle, quicker, decisions={})
    with pytest.raises(ConfigError, match=r"onnxruntime/int8 of \S+ was never compared with onnxruntime/fp32; compare"):
        found.recognizer(precision="int8")
    assert gain(found.recognizer(precision="int8", uncertified=True)) == pytest.approx(3.0)
    with pytest.raises(ConfigError, match="it has onnxruntime/fp32, onnxruntime/int8; add it: l2r2 export"):
        found.deployment("openvino")


def test_eight_bits_need_the_processor_that_they_were_made_on(bundle, quicker, monkeypatch):
    found = add(bundle, quicker, eight_bits=True)
    monkeypatch.setattr("l2r2.bundle.saturates", lambda: False)
    found.recognizer(precision="int8")
    monkeypatch.setattr("l2r2.bundle.saturates", lambda: True)
    with pytest.raises(ConfigError, match="compared on a processor with VNNI, which this one lacks, and would "):
        found.recognizer(precision="int8")
    found.recognizer()
    add(bundle, quicker).recognizer(precision="int8")


@pytest.mark.parametrize(
    ("runtime", "precision", "there"),
    [
        ("openvino", None, True),
        ("openvino", "bf16", True),
        ("openvino", "int8", False),
        ("onnxruntime-cuda", None, True),
        ("onnxruntime-cuda", "fp16", False),
        ("onnxruntime-tensorrt", "fp16", True),
        ("tensorrt", None, False),
    ],
)
def test_the_references_files_serve_runtimes_that_read_them(bundle, runtime, precision, there):
    if not there:
        with pytest.raises(ConfigError, match="has no deployment"):
            bundle.deployment(runtime, precision, uncertified=True)
        return
    found = bundle.deployment(runtime, precision, uncertified=True)
    assert (found.name, found.parity) == (f"{runtime}/{precision or 'fp32'}", {})
    assert found.files == bundle.manifest.reference.files
    with pytest.raises(ConfigError, match="has no deployment"):
        bundle.deployment(runtime, precision)


def test_a_localizer_of_another_size(bundle, tmp_path):
    reference = bundle.manifest.reference
    models = {**reference.models, "localizer": Model(file="models/localizer.any.onnx")}
    changes = {"precision": "fp16", "models": models, "size_px": 288, "decisions": DECISIONS}
    free = save_localizer(tmp_path / "free.onnx", None)
    found = add_deployment(bundle, reference.model_copy(update=changes), {"models/localizer.any.onnx": free})
    assert found.recognizer().localizer.side_px == bundle.manifest.localizer.size_px
    assert found.recognizer(precision="fp16").localizer.side_px == 288


def test_schema_two_is_read(bundle, tmp_path):
    folder = shutil.copytree(bundle.folder, tmp_path / "older")
    values = json.loads((folder / "manifest.json").read_text())
    reference = values.pop("deployments")[0]
    values.pop("serving")
    values["schema_version"] = 2
    values["models"] = {stage: {"onnxruntime": model["file"]} for stage, model in reference["models"].items()}
    values["parity"] = {"FG": {"max_abs": 1e-6, "n": 3.0}, "decisions": DECISIONS}
    (folder / "manifest.json").write_text(json.dumps(values))
    older = load_bundle(folder)
    assert older.manifest.reference.parity == values["parity"]
    expected, got = (each.recognizer().recognize([make_photo()])[0] for each in (bundle, older))
    assert (got.answer, got.stages) == (expected.answer, expected.stages)


def change(folder, how):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    how(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda v: v.update(serving="openvino/int8"), "serves 'openvino/int8' of the deployments onnxruntime/fp32;"),
        (lambda v: v["deployments"].append(v["deployments"][0]), "each once; export the bundle again"),
        (lambda v: v["deployments"][0].update(precision="int8"), "does not begin with a deployment onnxruntime/fp32"),
        (lambda v: v.update(deployments=[]), "does not begin with a deployment onnxruntime/fp32"),
        (lambda v: v["deployments"][0]["models"]["FG"].update(file="models/x.onnx"), "no checksum for models/x.onnx"),
        (lambda v: v["deployments"][0]["models"]["FG"].update(precision="fp4"), "precision: Input should be"),
    ],
)
def test_a_manifest_that_contradicts_itself(bundle, how, message):
    change(bundle.folder, how)
    with pytest.raises(ArtifactError, match=message):
        load_bundle(bundle.folder)
