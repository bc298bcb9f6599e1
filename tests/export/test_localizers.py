"""A recipe's localizer exported, opened on several runtimes and compared with what it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.torch import save_file

from l2r2.bundle import load_bundle, write_bundle
from l2r2.calibration import no_temperature
from l2r2.cascade import Policy
from l2r2.config import DetectorSettings, SaliencySettings, TruthSettings, ViewSettings
from l2r2.datasets import Dataset
from l2r2.errors import ArtifactError, BackendError, ConfigError, ExportError, InputError, ParityError
from l2r2.fusion import MaxScaledConfidence
from l2r2.localization import SaliencyLocalizer
from l2r2.localization.detecting import DetectingLocalizer
from l2r2.localization.frozen import FrozenDetector
from l2r2.manifest import PriorManifest
from l2r2.priors import count_priors
from l2r2.types import Localizer, Stage
from l2r2_export.deploy import Choice, deploy
from l2r2_export.graphs import MIN_OPSET, opset_of
from l2r2_export.localizers import ExportedLocalizer, compare_localizer, export_localizer, reference_localizer
from l2r2_export.yardstick import measure_reference
from tests.core.checkpoints import save_owl, small_sam
from tests.tiny import make_tiny_manifest, save_localizer

RUNTIMES = ("onnxruntime", "openvino")


def photograph(height: int, width: int) -> np.ndarray:
    return np.array(Image.effect_noise((width, height), 90).convert("RGB"))


PHOTOS = [photograph(60, 150), photograph(150, 60)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """OWLv2 and a SAM of a few thousand weights, which passes for ViT-B here."""
    from segment_anything import sam_model_registry

    place = tmp_path_factory.mktemp("localizers")
    save_owl(place / "owl", 2)
    save_file(small_sam().state_dict(), place / "sam.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sam_model_registry, "vit_b", small_sam)
        yield place


def settings(place: Path, *, sam: bool = True, **changes: object) -> DetectorSettings:
    segmenter = {"model": "vit_b", "checkpoint": place / "sam.safetensors"} if sam else None
    values = {"name": "owlv2", "model": str(place / "owl"), "texts": ("dog", "cat"), "box_threshold": 0.3}
    return DetectorSettings.model_validate({**values, "max_detections": 3, "segmenter": segmenter, **changes})


@pytest.fixture(scope="module")
def exported(place: Path) -> ExportedLocalizer:
    folder = place / "models"
    folder.mkdir()
    return export_localizer(settings(place), folder)


@pytest.fixture(scope="module")
def reference(place: Path) -> Localizer:
    return reference_localizer(settings(place), masks=True)


def test_files_and_words_are_whole_and_name_no_place(place: Path, exported: ExportedLocalizer) -> None:
    assert {stage: file.name for stage, file in exported.models.items()} == {
        "localizer": "localizer.onnx",
        "encoder": "encoder.onnx",
        "decoder": "decoder.onnx",
    }
    for file in exported.models.values():
        model = onnx.load(str(file))
        onnx.checker.check_model(model, full_check=True)
        assert opset_of(model) >= MIN_OPSET
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        assert str(place).encode() not in file.read_bytes()
    described = exported.described
    assert isinstance(described, FrozenDetector)
    text = described.model_dump_json()
    assert str(place) not in text
    assert FrozenDetector.model_validate_json(text) == described
    assert described.settings.model == "owl"
    assert described.prompt.texts == ("dog", "cat")
    values = json.loads(text)
    values["prompt"]["texts"] = values["settings"]["texts"] = ["wolf"]
    with pytest.raises(ValueError, match=r"the prompt's digest is .*: one of them was changed, export again"):
        FrozenDetector.model_validate(values)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_answers_as_the_one_it_came_from(runtime: str, exported: ExportedLocalizer, reference: Localizer) -> None:
    pytest.importorskip(runtime)
    opened = exported.open(runtime, masks=True)
    figures = compare_localizer(reference, opened, PHOTOS)
    assert figures["n"] == len(PHOTOS)
    assert figures["instances"] >= len(PHOTOS)  # of none nothing would be proved
    assert figures["found_agreement"] == 1.0
    assert figures["min_iou"] > 0.99
    assert figures["mask_iou"] > 0.98
    for wanted, got in zip(reference.locate(PHOTOS), opened.locate(PHOTOS), strict=True):
        assert wanted is not None
        assert got is not None
        assert got.mask is not None
        np.testing.assert_allclose(got.box_xyxy_px, wanted.box_xyxy_px, atol=2)
    assert len(opened.key) <= 64


def test_another_model_in_its_place_is_caught(
    exported: ExportedLocalizer, reference: Localizer, tmp_path: Path
) -> None:
    for stage, message in (("localizer", "^localizer: .*max_abs_score"), ("decoder", "^segmenter: .*min_iou")):
        model = onnx.load(str(exported.models[stage]))
        for weight in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weight)
            if values.dtype == np.float32 and values.ndim == 2:
                weight.CopyFrom(onnx.numpy_helper.from_array(-values, weight.name))
        onnx.save(model, str(tmp_path / f"{stage}.onnx"))
        other = ExportedLocalizer(exported.models | {stage: tmp_path / f"{stage}.onnx"}, exported.described)
        with pytest.raises(ParityError, match=message):
            compare_localizer(reference, other.open(masks=True), PHOTOS)


def test_the_reference_finds_nothing_twice(reference: Localizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(reference, DetectingLocalizer)
    before = reference.instances(PHOTOS)
    inner = reference.detector._detector  # type: ignore[attr-defined]
    monkeypatch.setattr(inner, "detect", lambda *_: pytest.fail("asked again"))
    assert reference.instances(PHOTOS) == before
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        reference.instances([PHOTOS[0][::-1]])


@pytest.mark.parametrize(
    ("localizer", "message"),
    [
        (TruthSettings(), "^localizer gt by ground truth knows more than the photograph, so nothing can be deployed"),
        ({"prompt": "oracle", "texts": ()}, "^localizer owlv2 by prompt 'oracle' knows more .*expected u2netp, or a"),
        ({"prompt": "candidates", "texts": ()}, "^localizer owlv2 by prompt 'candidates' knows more than the photo"),
    ],
)
def test_what_knows_more_than_the_pixels_is_refused(
    localizer: TruthSettings | dict[str, object], message: str, tmp_path: Path
) -> None:
    found = localizer if isinstance(localizer, TruthSettings) else settings(tmp_path, **localizer)
    for refusing in (lambda: export_localizer(found, tmp_path), lambda: reference_localizer(found, masks=False)):
        with pytest.raises(ExportError, match=message) as caught:
            refusing()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_and_masks_that_are_missing_are_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"detector '.*none' cannot be had"):
        export_localizer(settings(place, sam=False, model=str(place / "none")), tmp_path)
    without = settings(place, sam=False)
    with pytest.raises(ConfigError, match=r"FG_M and BG_S need masks.*set localizer\.segmenter"):
        reference_localizer(without, masks=True)
    assert list(tmp_path.iterdir()) == []


def test_the_packaged_saliency_is_compared_with_its_rewritten_file(u2netp: Path, tmp_path: Path) -> None:
    found = SaliencySettings()
    exported = export_localizer(found, tmp_path)
    assert exported.described == found
    assert list(exported.models) == ["localizer"]
    reference = reference_localizer(found, masks=True)
    assert isinstance(reference, SaliencyLocalizer)
    figures = compare_localizer(reference, exported.open(masks=True), PHOTOS[:1])
    assert figures["found_agreement"] == 1.0
    assert figures["max_abs"] < 1e-4
    with pytest.raises(InputError, match="no photographs to compare on"):
        compare_localizer(reference, reference, [])


def test_two_kinds_are_not_compared(reference: Localizer, tmp_path: Path) -> None:
    file = save_localizer(tmp_path / "localizer.onnx", 320)
    saliency = ExportedLocalizer({"localizer": file}, SaliencySettings()).open(masks=False)
    with pytest.raises(ExportError, match="a SaliencyLocalizer cannot be compared with a DetectingLocalizer"):
        compare_localizer(reference, saliency, PHOTOS)


def test_a_bundle_with_a_detector_is_written_opened_and_deployed_elsewhere(
    exported: ExportedLocalizer, dataset: Dataset, lite0_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    manifest = make_tiny_manifest(
        class_names=dataset.class_names,
        localizer=exported.described,
        localizer_masks=True,
        view=ViewSettings(),
        prior=PriorManifest(alpha=1.0, strength=1.0, vocabularies={}),
        dataset=dataset.card.name,
        dataset_digest=dataset.digest,
    )
    policy = Policy(dict.fromkeys(Stage, no_temperature()), MaxScaledConfidence(), 0.8)
    priors = count_priors(dataset.split("train").labels(), {}, 2)
    models = {**exported.models, "FG": lite0_file, "FULL": lite0_file}
    bundle = write_bundle(tmp_path / "bundle", manifest, models, policy, priors)
    assert set(bundle.manifest.reference.models) == {"localizer", "encoder", "decoder", "FG", "FULL"}
    yardstick = measure_reference(bundle, dataset, calibration_size=1, validation_size=3)
    added, _ = deploy(bundle, yardstick, Choice("openvino", "fp32"), serving=True)
    found = added.deployment()
    assert {model.precision for model in found.models.values()} == {"fp32"}
    assert found.models["localizer"].parity["found_agreement"] == 1.0
    assert found.decisions["answer_agreement"] == 1.0
    (answer,) = added.recognizer().recognize([yardstick.photos[0]])
    assert answer.answer.index == yardstick.decisions[0].answer
    with pytest.raises(ConfigError, match=r"^--size-px 288 is for u2netp; this bundle has a detector$"):
        deploy(bundle, yardstick, Choice("openvino", "fp32", size_px=288))
    changed = added.folder / "manifest.json"
    changed.write_text(changed.read_text().replace('"dog"', '"wolf"'))
    with pytest.raises(ArtifactError, match=r"the prompt's digest is .*: one of them was changed, export again"):
        load_bundle(added.folder)
