"""Detectors with their prompt frozen: the same boxes as in torch on any runtime, and no text left in the file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from l2r2.config import DetectorSettings
from l2r2.errors import BackendError, ExportError, InputError, ParityError
from l2r2.localization.detecting import DetectingLocalizer
from l2r2.localization.frozen import FrozenDetector, FrozenDetectorLocalizer, FrozenPrompt
from l2r2.localization.grounding_dino import GroundingDinoDetector
from l2r2.localization.hub import Checkpoint, load_checkpoint
from l2r2.localization.owl import OwlDetector
from l2r2.localization.preprocessing import Preprocessing
from l2r2.runtimes import OnnxRuntimeSession, open_session
from l2r2_export.detector_parity import OUTPUT_TOLERANCE, check_detector, check_outputs
from l2r2_export.detectors import detector_reference, export_detector, read_preprocessing
from l2r2_export.graphs import MIN_OPSET, opset_of
from l2r2_export.grounding_dino import example_size, grids_of
from l2r2_export.tracing import require_room, trace
from tests.core.checkpoints import save_grounding_dino, save_owl, shake
from tests.tiny import save_classifier

PARAMS = ["owlv2", "owlvit", pytest.param("grounding_dino", marks=pytest.mark.slow)]
"""Tracing Grounding DINO takes half a minute, however small it is."""

TEXTS = {"owlv2": ("dog", "cat"), "owlvit": ("dog", "cat"), "grounding_dino": ("full dog", "cat")}


class Frozen(NamedTuple):
    name: str
    checkpoint: Checkpoint
    file: Path
    prompt: FrozenPrompt
    preprocessing: Preprocessing
    parameters: int
    """Of the checkpoint before its export."""

    @property
    def session(self) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(self.file, threads=2)

    def settings(self, **changes: object) -> DetectorSettings:
        given = {"name": self.name, "model": "m", "texts": TEXTS[self.name], "box_threshold": 0.0}
        return DetectorSettings(**{**given, "min_side": 0.02, "nms_iou": 1.0, "max_detections": 1000, **changes})

    def localizer(self, session: object = None, **changes: object) -> FrozenDetectorLocalizer:
        settings = self.settings(**changes)
        described = FrozenDetector(settings=settings, prompt=self.prompt, preprocessing=self.preprocessing)
        return FrozenDetectorLocalizer(session or self.session, described, "0" * 64)

    def in_torch(self, **changes: object) -> DetectingLocalizer:
        kind = GroundingDinoDetector if self.name == "grounding_dino" else OwlDetector
        settings = self.settings(**changes)
        return DetectingLocalizer(kind(self.checkpoint, settings), None, settings)

    def feed(self, *size: int, n: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
        side = () if self.name == "grounding_dino" else (48, 48)
        return {"pixels": np.random.default_rng(seed).standard_normal((n, 3, *(side or size)), dtype=np.float32)}


def save_shifting_dino(folder: Path) -> Path:
    """As `save_grounding_dino`, with shifted windows, and one stage less to trace."""
    from transformers import GroundingDinoForObjectDetection, SwinConfig

    save_grounding_dino(folder)
    config = load_checkpoint(str(folder)).model.config
    config.backbone_config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[2, 1, 1], num_heads=[1, 1, 2], window_size=4,
        out_features=["stage2", "stage3"],
    )  # fmt: skip
    config.num_feature_levels, config.num_queries = 3, 40
    torch.manual_seed(0)
    shake(GroundingDinoForObjectDetection(config), 0.1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def all_frozen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Frozen]:
    place = tmp_path_factory.mktemp("frozen")
    makers = {
        "owlv2": lambda folder: save_owl(folder, 2),
        "owlvit": lambda folder: save_owl(folder, 1),
        "grounding_dino": save_shifting_dino,
    }
    known: dict[str, Frozen] = {}

    def get(name: str) -> Frozen:
        if name not in known:
            checkpoint = load_checkpoint(str(makers[name](place / name)))
            if name == "grounding_dino":
                checkpoint.processor.image_processor.size = {"shortest_edge": 96, "longest_edge": 280}
            count = sum(parameter.numel() for parameter in checkpoint.model.parameters())
            file = place / f"{name}.onnx"
            known[name] = Frozen(name, checkpoint, file, *export_detector(checkpoint, TEXTS[name], file), count)
        return known[name]

    return get


@pytest.fixture(params=PARAMS)
def frozen(request: pytest.FixtureRequest, all_frozen: Callable[[str], Frozen]) -> Frozen:
    return all_frozen(request.param)


def photograph(height: int, width: int) -> np.ndarray:
    return np.array(Image.effect_noise((width, height), 90).convert("RGB"))


PHOTOS = [photograph(*size) for size in ((60, 150), (150, 60), (150, 60), (211, 333))]

SIZES = ((203, 170), (96, 400), (400, 67))
"""Grids of 50 cells among them (400 pixels), whose border decides what a query is."""


def test_raw_outputs_are_those_of_the_whole_model(frozen: Frozen) -> None:
    feeds = [frozen.feed(*size, seed=i) for i, size in enumerate(SIZES)]
    figures = check_outputs(detector_reference(frozen.checkpoint, TEXTS[frozen.name]), frozen.session, feeds)
    assert figures["n"] == 2 * len(SIZES)
    assert figures["max_abs"] < OUTPUT_TOLERANCE / 5
    assert figures["batch_max_abs"] < OUTPUT_TOLERANCE / 5
    assert figures["same_rows"] == 1.0
    outputs = frozen.session.infer(feeds[0])
    assert len(np.unique(outputs["scores"][0].round(4))) > 10  # constant heads would prove nothing
    assert len(np.unique(outputs["boxes"][0].round(4), axis=0)) > 10


def test_regions_are_those_of_the_torch_detector(frozen: Frozen) -> None:
    figures = check_detector(frozen.in_torch(), frozen.localizer(), PHOTOS)
    assert figures["n"] == len(PHOTOS)
    assert figures["instances"] >= 4 * len(PHOTOS)
    assert figures["min_iou"] > 0.999
    assert figures["max_abs_score"] < 1e-4


def test_usual_settings_choose_the_same_region(frozen: Frozen) -> None:
    scores = sorted(region.score for region in frozen.in_torch().instances(PHOTOS[:1])[0])
    changes = {"box_threshold": scores[len(scores) // 2] - 1e-4, "nms_iou": 0.7, "max_detections": 5}
    few = PHOTOS[:3]
    for wanted, got in zip(
        frozen.in_torch(**changes).locate(few), frozen.localizer(**changes).locate(few), strict=True
    ):
        assert (wanted is None) == (got is None)
        if wanted is not None:
            np.testing.assert_allclose(got.box_xyxy_px, wanted.box_xyxy_px, atol=0.01)
            assert got.score == pytest.approx(wanted.score, abs=1e-4)


def test_no_text_is_left(frozen: Frozen) -> None:
    model = frozen.checkpoint.model
    base = model.model if frozen.name == "grounding_dino" else getattr(model, model.base_model_prefix)
    text = base.text_backbone if frozen.name == "grounding_dino" else base.text_model
    weights = sum(math.prod(weight.dims) for weight in onnx.load(str(frozen.file)).graph.initializer)
    reading = sum(parameter.numel() for parameter in text.parameters())
    assert reading > 0.05 * frozen.parameters
    # Buffers (queries or text features, indices of positions) come on top of the parameters that are left.
    assert 0.2 * (frozen.parameters - reading) < weights < frozen.parameters - 0.75 * reading
    vocabulary = model.config.text_config.vocab_size
    assert all(vocabulary not in weight.dims for weight in onnx.load(str(frozen.file)).graph.initializer)


def test_the_file_is_valid_recent_whole_and_free_where_it_may_be(frozen: Frozen) -> None:
    model = onnx.load(str(frozen.file))
    onnx.checker.check_model(model, full_check=True)
    assert opset_of(model) >= MIN_OPSET
    (pixels,) = model.graph.input
    sides = ["height", "width"] if frozen.name == "grounding_dino" else [48, 48]
    assert [axis.dim_param or axis.dim_value for axis in pixels.type.tensor_type.shape.dim] == ["batch", 3, *sides]
    rows = [40] if frozen.name == "grounding_dino" else [36]
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.output
    }
    assert shapes == {"scores": ["batch", *rows], "boxes": ["batch", rows[0], 4]}
    assert {node.op_type for node in model.graph.node} & {"SplitToSequence", "SequenceAt", "Loop", "If"} == set()
    data = frozen.file.read_bytes()
    assert b"site-packages" not in data
    assert str(Path(__file__).parents[2]).encode() not in data


def test_the_prompt_comes_back_for_the_manifest(frozen: Frozen) -> None:
    assert frozen.prompt.texts == TEXTS[frozen.name]
    assert frozen.prompt.model_key == frozen.checkpoint.key
    assert len(frozen.prompt.digest) == 64


def test_the_model_is_left_as_it_was(frozen: Frozen) -> None:
    folder = frozen.file.parent / frozen.name
    feed = frozen.feed(100, 120)
    before = detector_reference(load_checkpoint(str(folder)), TEXTS[frozen.name]).infer(feed)
    after = detector_reference(frozen.checkpoint, TEXTS[frozen.name]).infer(feed)
    np.testing.assert_array_equal(after["scores"], before["scores"])
    other = detector_reference(frozen.checkpoint, ["bird"]).infer(feed)
    assert not np.allclose(other["scores"], before["scores"], atol=1e-3)  # it still reads
    if frozen.name == "grounding_dino":
        from transformers.models.grounding_dino import modeling_grounding_dino as module

        assert module.generate_masks_with_special_tokens_and_transfer_map.__module__ == module.__name__
        assert "generate_encoder_output_proposals" not in vars(frozen.checkpoint.model.model)


def test_openvino_reads_the_same_file_and_keeps_the_order(frozen: Frozen) -> None:
    pytest.importorskip("openvino")
    feeds = [frozen.feed(*size, seed=i) for i, size in enumerate(SIZES)]
    figures = check_outputs(frozen.session, open_session(frozen.file, "openvino", threads=2), feeds)
    assert figures["same_rows"] == 1.0


@pytest.mark.parametrize("name", PARAMS)
def test_what_cannot_be_frozen_is_refused(name: str, all_frozen: Callable[[str], Frozen], tmp_path: Path) -> None:
    checkpoint = all_frozen(name).checkpoint
    with pytest.raises(ExportError, match="opset is 11; expected at least 17"):
        export_detector(checkpoint, TEXTS[name], tmp_path / "m.onnx", opset=11)
    for texts in ([], ["dog", " "]):
        with pytest.raises(InputError, match="has an empty part"):
            export_detector(checkpoint, texts, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_prompts_that_grounding_dino_cannot_read_are_refused(
    all_frozen: Callable[[str], Frozen], tmp_path: Path
) -> None:
    checkpoint = all_frozen("grounding_dino").checkpoint
    with pytest.raises(ExportError, match="the prompt has 42 tokens; expected at most 32, shorten it"):
        export_detector(checkpoint, ["dog"] * 20, tmp_path / "m.onnx")


@pytest.mark.slow
def test_another_backbone_is_refused(
    all_frozen: Callable[[str], Frozen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = all_frozen("grounding_dino").checkpoint
    monkeypatch.setattr(checkpoint.model.config.backbone_config, "use_absolute_embeddings", True)
    with pytest.raises(ExportError, match="has a backbone of kind 'swin'; expected swin without absolute positions"):
        export_detector(checkpoint, ["dog"], tmp_path / "m.onnx")


def test_processors_that_do_something_else_are_refused(all_frozen: Callable[[str], Frozen]) -> None:
    from transformers import OwlViTImageProcessor

    size = {"height": 48, "width": 48}
    with pytest.raises(ExportError, match="a detector of kind 'yolo' cannot be frozen; expected owlv2, owlvit"):
        read_preprocessing(OwlViTImageProcessor(size=size), "yolo")
    cropping = OwlViTImageProcessor(size=size, do_center_crop=True, crop_size={"height": 40, "width": 40})
    with pytest.raises(ExportError, match=r"gives \(3, 40, 40\) for a photograph of 149 × 61, ours \(3, 48, 48\)"):
        read_preprocessing(cropping, "owlvit")
    with pytest.raises(ExportError, match=r"cannot be had without transformers: .*resample"):
        read_preprocessing(OwlViTImageProcessor(size=size, resample=Image.Resampling.LANCZOS), "owlvit")
    with pytest.raises(ExportError, match="with a largest difference of"):  # padded otherwise than it says
        read_preprocessing(OwlViTImageProcessor(size=size, resample=Image.Resampling.BILINEAR), "owlv2")
    plain = read_preprocessing(OwlViTImageProcessor(size=size, do_normalize=False, do_rescale=False), "owlvit")
    assert (plain.mean, plain.std, plain.rescale) == ((0, 0, 0), (1, 1, 1), 1.0)


def test_a_model_that_no_file_holds_is_refused_at_once() -> None:
    large = torch.nn.Linear(2**15, 2**14, device="meta")  # 2.1 GB, none of it in memory
    with pytest.raises(
        ExportError, match=r"^m has 2\.1 GB of weights; expected at most 2\.1 GB, which is all that one"
    ):
        require_room([large], "m")
    require_room([torch.nn.Linear(2, 2)], "m")


def test_an_axis_that_cannot_be_free_is_an_error_not_a_fixed_one() -> None:
    class Fixing(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels * int(pixels.shape[0])

    with pytest.raises(ExportError, match="m cannot be exported: Constraints violated") as caught:
        trace(Fixing(), {"pixels": torch.zeros(2, 3)}, {"pixels": {0: "batch"}}, ["y"], "m")
    assert "\n" not in str(caught.value)


def edited(frozen: Frozen, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> OnnxRuntimeSession:
    """The file with its largest weights changed."""
    model = onnx.load(str(shutil.copy(frozen.file, folder / "edited.onnx")))
    weight = max(model.graph.initializer, key=lambda each: math.prod(each.dims) * (each.data_type == 1))
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(change(values).astype(np.float32), weight.name))
    onnx.save(model, str(folder / "edited.onnx"))
    return OnnxRuntimeSession(folder / "edited.onnx")


def test_other_weights_are_caught_with_the_figures(all_frozen: Callable[[str], Frozen], tmp_path: Path) -> None:
    owl = all_frozen("owlv2")
    other = edited(owl, tmp_path, lambda values: values * 1.5)
    with pytest.raises(ParityError, match=r"^detector: .* expected max_abs \S+, at most 0\.0001 .*same_rows"):
        check_outputs(detector_reference(owl.checkpoint, TEXTS["owlv2"]), other, [owl.feed()])
    with pytest.raises(ParityError, match=r"^detector: .* expected .*min_iou \S+, at least 0\.99.*instances"):
        check_detector(owl.in_torch(), owl.localizer(other), PHOTOS[:2])


def test_outputs_that_are_not_finite_are_caught(all_frozen: Callable[[str], Frozen], tmp_path: Path) -> None:
    owl = all_frozen("owlv2")
    broken = edited(owl, tmp_path, lambda values: values * np.nan)
    with pytest.raises(BackendError, match="the detector gave scores that are not finite"):
        owl.localizer(broken).locate(PHOTOS[:1])
    with pytest.raises(ParityError, match="the exported model failed: the detector gave scores that are not finite"):
        check_detector(owl.in_torch(), owl.localizer(broken), PHOTOS[:1])
    with pytest.raises(ParityError, match="expected max_abs nan"):
        check_outputs(detector_reference(owl.checkpoint, TEXTS["owlv2"]), broken, [owl.feed()])


def test_a_session_of_another_model_is_caught(all_frozen: Callable[[str], Frozen], tmp_path: Path) -> None:
    owl = all_frozen("owlv2")
    other = OnnxRuntimeSession(save_classifier(tmp_path / "classifier.onnx", 48, gain=1.0))
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        owl.localizer(other).locate(PHOTOS[:1])
    with pytest.raises(ParityError, match="the exported model failed on 2 photographs"):
        check_outputs(owl.session, other, [owl.feed()])


def test_grids_and_the_tracers_example_worked_by_hand() -> None:
    # 203 / 4 = 50.75 → 51 cells, 51 / 7 → 8 windows; 26, 4; 13, 2; 7, 1. 170 / 4 → 43, 7; 22, 4; 11, 2; 6, 1.
    assert grids_of(203, 170, 4, 7, 4) == [(51, 43, 8, 7), (26, 22, 4, 4), (13, 11, 2, 2), (7, 6, 1, 1)]
    for patch, window, stages in ((4, 7, 4), (4, 12, 4), (4, 4, 3)):
        height, width = example_size(patch, window, stages)
        grids = np.array(grids_of(height, width, patch, window, stages))
        assert set(grids[:, [0, 2]].flat) & set(grids[:, [1, 3]].flat) == set()
        assert (grids[:, :2] % window > 0).all()
        assert (grids[:-1, :2] % 2 == 1).all()
        assert height % patch > 0 < width % patch


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    processor = SimpleNamespace(image_processor=SimpleNamespace(to_dict=dict))
    with pytest.raises(ExportError, match="a detector of kind 'detr' cannot be frozen"):
        export_detector(Checkpoint(None, processor, "detr", "cpu", "k"), ["dog"], tmp_path / "m.onnx")
