"""Deployments of a small bundle of real networks: made, compared, served; or refused, with the bundle as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image
from typer.testing import CliRunner

from l2r2.bundle import Bundle, load_bundle, write_bundle
from l2r2.calibration import no_temperature
from l2r2.cascade import Policy
from l2r2.cli import build
from l2r2.config import SaliencySettings, ViewSettings
from l2r2.datasets import Dataset
from l2r2.datasets.user import from_folder
from l2r2.errors import ConfigError, DatasetError, ExportError, ParityError
from l2r2.experiments import Experiment
from l2r2.fusion import Threshold
from l2r2.images import Photograph
from l2r2.manifest import PolicyManifest, PriorManifest
from l2r2.priors import count_priors
from l2r2.runtimes import why_not
from l2r2.runtimes.cuda_device import Cuda
from l2r2.runtimes.processor import saturates
from l2r2.types import Stage
from l2r2_export import auto, deploy
from l2r2_export.auto import Goal, deploy_best
from l2r2_export.cascade_parity import CascadeTolerance
from l2r2_export.deploy import Choice
from l2r2_export.export import export_experiment, save_torch
from l2r2_export.yardstick import Yardstick, measure_reference
from tests.export.toy import save, toy_localizer
from tests.tiny import make_tiny_manifest

CLASSES = ("a red", "b green", "c blue")
SIDE = 32
GATE = 0.6
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
needs_builder = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None or why_not("tensorrt-rtx") is None, reason="needs TensorRT-RTX and no GPU"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A bright square on dark noise, of one of three colours: of each twelve to train, ten to validate, two to test."""
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        for i in range(24):
            photo = rng.integers(0, 60, (72, 96, 3))
            top, left = rng.integers(4, 28), rng.integers(4, 44)
            photo[top : top + 36, left : left + 40] += rng.integers(60, 110, 3)
            photo[top : top + 36, left : left + 40, k] += rng.integers(15, 120)
            place = folder / "photos" / ("train" if i < 12 else "val" if i < 22 else "test") / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(place / f"{i:02}.png")
    return from_folder(folder / "photos", folder / "set")


@pytest.fixture(scope="module")
def pristine(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small", small)


def make_bundle(folder: Path, dataset: Dataset) -> Bundle:
    scratch = folder.with_name("models")
    scratch.mkdir()
    classifier = colour_classifier(scratch / "classifier.onnx")
    models = {"localizer": toy_localizer(scratch / "localizer.onnx"), "FG": classifier, "FULL": classifier}
    manifest = make_tiny_manifest(
        class_names=dataset.class_names,
        localizer=SaliencySettings(size_px=256, min_score=0.0),
        view=ViewSettings(size_px=SIDE, mean=(0.3,) * 3, std=(0.2,) * 3),
        policy=PolicyManifest(temperatures=dict.fromkeys(Stage, (1.0,)), operator="R", threshold=GATE),
        prior=PriorManifest(alpha=1.0, strength=1.0, vocabularies={}),
        dataset=dataset.card.name,
        dataset_digest=dataset.digest,
        run_id="0" * 32,
    )
    policy = Policy(dict.fromkeys(Stage, no_temperature()), Threshold(GATE), GATE)
    priors = count_priors(dataset.split("train").labels(), {}, len(CLASSES))
    return write_bundle(folder, manifest, models, policy, priors)


def colour_classifier(path: Path) -> Path:
    """Logits grow with how much of each colour there is: a convolution and a matrix, so that INT8 has layers."""
    nodes = [
        helper.make_node("Conv", ["images", "mix"], ["mixed"], "mix"),
        helper.make_node("Relu", ["mixed"], ["positive"], "relu"),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["colour"], "flatten"),
        helper.make_node("MatMul", ["colour", "head"], ["logits"], "head"),
    ]
    weights = {"mix": np.eye(3).reshape(3, 3, 1, 1), "head": 4.0 * np.eye(3)}
    return save(path, nodes, weights, ("images", [3, SIDE, SIDE]), ("logits", [3]))


@pytest.fixture(scope="module")
def yardstick(pristine: Bundle, small: Dataset) -> Yardstick:
    return measure_reference(pristine, small)


@pytest.fixture
def bundle(pristine: Bundle, tmp_path: Path) -> Bundle:
    """A copy to change."""
    import shutil

    return load_bundle(shutil.copytree(pristine.folder, tmp_path / "small"))


def untouched(bundle: Bundle) -> bool:
    left = [path.name for path in bundle.folder.parent.iterdir() if path.name.endswith(".tmp")]
    return load_bundle(bundle.folder).version == bundle.version and not left


def test_the_yardstick(yardstick: Yardstick, small: Dataset) -> None:
    assert (len(yardstick.calibration_photos), len(yardstick.photos)) == (36, 30)
    assert yardstick.validation[Stage.FG].shape == (30, 3, SIDE, SIDE)
    assert sum(len(batch) for batch in yardstick.calibration[Stage.FULL]) == 36
    np.testing.assert_array_equal(yardstick.labels, small.split("val").labels())
    expected = yardstick.reference.recognize([Photograph(Path(p).read_bytes()) for p in small.split("val").paths()])
    assert [d.answer for d in yardstick.decisions] == [p.answer.index for p in expected]
    assert {d.stages for d in yardstick.decisions} > {(Stage.FG,)}  # both branches are compared
    assert len({d.answer for d in yardstick.decisions}) == 3


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_deployment_is_compared_and_serves(bundle: Bundle, yardstick: Yardstick, precision: str) -> None:
    added, lowered = deploy.deploy(bundle, yardstick, Choice("openvino", precision), serving=True)  # type: ignore[arg-type]
    found = added.deployment()
    assert found == lowered.deployment
    assert found.name == f"openvino/{precision}"
    assert set(found.parity) == {"localizer", "FG", "FULL", "decisions"}
    assert found.decisions["n"] == 30.0
    assert found.decisions["answer_agreement"] >= 0.97
    assert found.tolerance["max_accuracy_loss"] == 0.005
    quantized = {stage for stage, model in found.models.items() if model.precision == "int8"}
    assert found.eight_bits == (precision == "int8" and not saturates())
    assert quantized == (set(found.models) if precision == "int8" else set())
    assert (set(found.files) == set(added.manifest.reference.files)) == (precision == "fp32")
    opened = added.recognizer()
    answers = [opened.recognize([photo()])[0].answer.index for photo in yardstick.opened]
    agreeing = np.mean([a == d.answer for a, d in zip(answers, yardstick.decisions, strict=True)])
    assert agreeing == pytest.approx(found.decisions["answer_agreement"])


def test_another_size_of_the_localizer(bundle: Bundle, yardstick: Yardstick) -> None:
    added, _ = deploy.deploy(bundle, yardstick, Choice("onnxruntime", "int8", size_px=288))
    assert added.deployment(precision="int8").size_px == 288
    assert added.recognizer(precision="int8").localizer.side_px == 288  # type: ignore[attr-defined]
    assert added.manifest.serving == "onnxruntime/fp32"


def test_outside_its_tolerance(bundle: Bundle, yardstick: Yardstick, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = CascadeTolerance(min_answer_agreement=1.01, min_stage_agreement=0.0, max_accuracy_loss=1.0)
    monkeypatch.setattr(deploy, "CASCADE_TOLERANCES", {"int8": strict})
    with pytest.raises(ParityError, match=r"^the cascade of onnxruntime/int8 .*answer_agreement \S+, at least 1\.01"):
        deploy.deploy(bundle, yardstick, Choice("onnxruntime", "int8"))
    assert untouched(bundle)


def test_no_room_on_the_disk(bundle: Bundle, yardstick: Yardstick, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import shutil

    copy = shutil.copyfile

    def full(source: object, target: object, **options: object) -> object:
        if "int8" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, target, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("l2r2.bundle.shutil.copyfile", full)
    with pytest.raises(Exception, match=r"No space left on device; nothing was changed, make room and run it again$"):
        deploy.deploy(bundle, yardstick, Choice("onnxruntime", "int8"))
    monkeypatch.undo()
    assert untouched(bundle)


def test_what_cannot_be_asked_for(bundle: Bundle, yardstick: Yardstick) -> None:
    with pytest.raises(ConfigError, match=r"^onnxruntime/fp32 is what all others are compared with"):
        deploy.deploy(bundle, yardstick, Choice("onnxruntime", "fp32"))
    with pytest.raises(ExportError, match=r"^runtime torch needs the run that the bundle is of"):
        deploy.deploy(bundle, yardstick, Choice("torch", "fp32"))
    assert untouched(bundle)


def test_another_data_set(pristine: Bundle, dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"but \S+ was fitted on \S+ \w+; expected the same data set$"):
        measure_reference(pristine, dataset)


@pytest.mark.skipif(why_not("tensorrt") is None, reason="TensorRT is here")
def test_a_runtime_that_is_not_here(bundle: Bundle, yardstick: Yardstick) -> None:
    with pytest.raises(ExportError, match=r"^tensorrt does not run here: .*pip install 'l2r2\[tensorrt\]'"):
        deploy.deploy(bundle, yardstick, Choice("tensorrt", "fp16"))
    assert untouched(bundle)


@needs_builder
def test_engines_built_ahead_are_in_the_bundle_and_serve_only_when_compared(
    bundle: Bundle, yardstick: Yardstick
) -> None:
    choice = Choice("tensorrt-rtx", "fp16", build=True, architectures=("SM86", "SM89"))
    with pytest.raises(ConfigError, match=r"^tensorrt-rtx/fp16 cannot be compared here, so it cannot serve: "):
        deploy.deploy(bundle, yardstick, choice, serving=True)
    added, _ = deploy.deploy(bundle, yardstick, choice)
    found = added.deployment("tensorrt-rtx", uncertified=True)
    assert found.decisions == {}
    assert {model.compared_on for model in found.models.values()} == {"onnxruntime"}
    assert found.models["FG"].shapes["images"].max == (8, 3, SIDE, SIDE)
    assert found.models["localizer"].shapes["images"].opt == (1, 3, 256, 256)
    headers = [json.loads(path.read_text()) for path in added.folder.glob("engines/*/engine.json")]
    # FG and FULL are one file here
    assert sorted(header["key"]["architecture"] for header in headers) == ["SM86"] * 2 + ["SM89"] * 2
    assert all(f"engines/{p.parent.name}/engine" in added.manifest.files for p in added.folder.glob("engines/*/engine"))
    with pytest.raises(ConfigError, match="was never compared with onnxruntime/fp32; compare it where it runs: "):
        added.recognizer("tensorrt-rtx")
    engine = next(added.folder.glob("engines/*/engine"))
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(Exception, match=r"engine has changed since the bundle was written \(sha256 differs\); refused"):
        load_bundle(added.folder)


@needs_builder
def test_engines_need_a_named_gpu(bundle: Bundle, yardstick: Yardstick) -> None:
    with pytest.raises(ExportError, match=r"^tensorrt-rtx does not run here: .*; engines for other machines need "):
        deploy.deploy(bundle, yardstick, Choice("tensorrt-rtx", "fp16"))
    with pytest.raises(ConfigError, match="SM20"):
        deploy.deploy(bundle, yardstick, Choice("tensorrt-rtx", "fp16", build=True, architectures=("SM20",)))
    assert untouched(bundle)


def test_torch_runs_the_classifiers_of_the_run(experiment: Experiment, dataset: Dataset, tmp_path: Path) -> None:
    bundle = export_experiment(experiment, dataset, tmp_path / "bundle", slice_size=2)
    yardstick = measure_reference(bundle, dataset, validation_size=3, calibration_size=1)

    def torch_file(stage: Stage, path: Path) -> Path:
        return save_torch(experiment, stage, path)

    added, _ = deploy.deploy(bundle, yardstick, Choice("torch", "fp32"), torch_file=torch_file)
    found = added.deployment("torch")
    assert {stage: model.runtime for stage, model in found.models.items()} == {
        "localizer": "onnxruntime",
        "FG": None,
        "FULL": None,
    }
    assert found.models["FG"].parity["max_abs"] < 1e-4
    (answer,) = added.recognizer("torch").recognize([yardstick.photos[0]])
    assert answer.answer.index == yardstick.decisions[0].answer
    vlm = replace(experiment, recipe=experiment.recipe.model_copy(update={"vlm": None}))
    named = vlm.recipe.train.model_copy(update={"model": "torchvision:resnet50"})
    with pytest.raises(ExportError, match=r"^runtime torch runs timm models, and 'torchvision:resnet50' is none"):
        save_torch(replace(vlm, recipe=vlm.recipe.model_copy(update={"train": named})), Stage.FG, tmp_path / "x")


@needs_openvino
def test_the_best_is_searched_for(bundle: Bundle, yardstick: Yardstick) -> None:
    choices = [Choice("openvino", "fp32"), Choice("openvino", "int8"), Choice("tensorrt", "fp16")]
    added, found = deploy_best(bundle, yardstick, Goal(accuracy_drop=5.0), choices=choices, batches=(1, 4))
    assert {each.name for each in found.tried} == {"onnxruntime/fp32", "openvino/fp32", "openvino/int8"}
    assert {(each.threads, each.batch) for each in found.tried} >= {(1, 1), (1, 4)}
    assert set(found.refused) == {"tensorrt/fp16"}
    assert "does not run here" in found.refused["tensorrt/fp16"]
    assert found.picked.throughput == max(each.throughput for each in found.tried)
    serving = added.deployment()
    assert (serving.name, serving.threads, serving.batch) == (
        found.picked.name,
        found.picked.threads,
        found.picked.batch,
    )
    added.recognizer()


def test_a_goal_out_of_reach_changes_nothing(bundle: Bundle, yardstick: Yardstick) -> None:
    with pytest.raises(ExportError, match=r"^nothing reaches at most 0\.001 ms, at most 0\.5 points lost; "):
        deploy_best(bundle, yardstick, Goal(latency_ms=0.001), choices=[Choice("onnxruntime", "int8")], batches=(1,))
    assert untouched(bundle)


def test_the_reference_may_be_the_best(bundle: Bundle, yardstick: Yardstick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "pick", lambda tried, _goal: next(t for t in tried if t.name == "onnxruntime/fp32"))
    added, _ = deploy_best(bundle, yardstick, Goal(), choices=[], batches=(4,))
    assert (added.deployment().name, added.deployment().batch) == ("onnxruntime/fp32", 4)


@needs_openvino
def test_the_command(bundle: Bundle, small: Dataset, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = ["export", str(bundle.folder), "--data", str(small.folder), "--tracking-uri", uri, "--no-register"]
    asked = ["--runtime", "openvino", "--precision", "int8", "--validation", "12", "--serving", "--json"]
    done = CliRunner().invoke(build(), [*words, *asked], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert told["deployment"] == "openvino/int8"
    assert told["parity"]["openvino/int8"]["decisions"]["n"] == 12.0
    assert "the certificate is in the bundle alone" in done.stderr
    assert load_bundle(bundle.folder).deployment().name == "openvino/int8"
    best = CliRunner().invoke(
        build(),
        [*words, "--auto", "--runtime", "openvino", "--precision", "fp32", "--accuracy-drop", "5"],
        catch_exceptions=False,
    )
    assert "<- serves" in best.stderr
    assert "bundle " in best.stdout
    with pytest.raises(ConfigError, match=r"^--out \S+ is for a run; the bundle \S+ gets its deployment where it is$"):
        CliRunner().invoke(build(), [*words, "--out", str(tmp_path / "x")], catch_exceptions=False)


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"])
def test_on_a_gpu_a_deployment_is_compared_and_serves(bundle: Bundle, yardstick: Yardstick, runtime: str) -> None:
    reason = why_not(runtime)
    if reason is not None:
        pytest.skip(reason)
    architectures = (Cuda(0).architecture,) if runtime == "tensorrt-rtx" else ()
    choice = Choice(runtime, "fp16", build=runtime in {"tensorrt", "tensorrt-rtx"}, architectures=architectures)
    added, _ = deploy.deploy(bundle, yardstick, choice, serving=True)
    (answer,) = added.recognizer().recognize([yardstick.opened[0]()])
    assert added.deployment().decisions["answer_agreement"] >= 0.99
    assert answer.answer.index == yardstick.decisions[0].answer
