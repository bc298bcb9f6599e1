"""SAM's encoder and decoder exported: the same masks as the predictor's, the photograph encoded once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from l2r2.errors import BackendError, ExportError, ParityError
from l2r2.localization.frozen import SessionSegmenter
from l2r2.localization.preprocessing import Preprocessing
from l2r2.localization.sam import Segmenter
from l2r2.runtimes import OnnxRuntimeSession
from l2r2.types import Region
from l2r2_export.detector_parity import OUTPUT_TOLERANCE, check_outputs, check_segmenter
from l2r2_export.graphs import MIN_OPSET, opset_of
from l2r2_export.sam import DecoderReference, EncoderReference, export_segmenter
from tests.core.checkpoints import small_sam


class Exported(NamedTuple):
    sam: Any
    encoder: Path
    decoder: Path
    preprocessing: Preprocessing

    def segmenter(self, decoder: Path | None = None) -> SessionSegmenter:
        sessions = [OnnxRuntimeSession(file, threads=2) for file in (self.encoder, decoder or self.decoder)]
        return SessionSegmenter(*sessions, self.preprocessing, "0" * 64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    sam, place = small_sam(), tmp_path_factory.mktemp("sam")
    encoder, decoder = place / "encoder.onnx", place / "decoder.onnx"
    return Exported(sam, encoder, decoder, export_segmenter(sam, encoder, decoder))


def photograph(height: int, width: int) -> np.ndarray:
    return np.array(Image.effect_noise((width, height), 90).convert("RGB"))


def regions(photo: np.ndarray, count: int) -> list[Region]:
    rng = np.random.default_rng(0)
    height, width = photo.shape[:2]
    low = rng.random((count, 2)) * [width * 0.5, height * 0.5]
    high = low + 5 + rng.random((count, 2)) * [width * 0.4, height * 0.4]
    return [Region((*a.tolist(), *b.tolist()), 0.9) for a, b in zip(low, high, strict=True)]


PHOTOS = [photograph(*size) for size in ((60, 150), (120, 50), (777, 1333))]


def test_the_encoder_answers_as_in_torch(exported: Exported) -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 1024, 1024), dtype=np.float32)
    session = OnnxRuntimeSession(exported.encoder, threads=2)
    figures = check_outputs(EncoderReference(exported.sam), session, [{"pixels": pixels}])
    assert figures["max_abs"] < OUTPUT_TOLERANCE


def feed(exported: Exported, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    boxes = np.sort(rng.random((n, 2, 2), dtype=np.float32) * 1024, axis=1).reshape(n, 4)
    pixels = rng.standard_normal((n, 3, 1024, 1024), dtype=np.float32)
    return {**EncoderReference(exported.sam).infer({"pixels": pixels}), "boxes": boxes}


def test_the_decoder_gives_the_single_mask_of_each_box(exported: Exported) -> None:
    session = OnnxRuntimeSession(exported.decoder, threads=2)
    figures = check_outputs(DecoderReference(exported.sam), session, [feed(exported, 1), feed(exported, 3)])
    assert figures["n"] == 4
    assert figures["max_abs"] < OUTPUT_TOLERANCE
    given = feed(exported, 1)
    (mask,) = session.infer(given)["masks"]
    with torch.inference_mode():  # the trap: a box has two tokens, by which SAM's own export takes one of these
        sparse, dense = exported.sam.prompt_encoder(points=None, boxes=torch.from_numpy(given["boxes"]), masks=None)
        several, _ = exported.sam.mask_decoder(
            torch.from_numpy(given["embedding"]), exported.sam.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
    assert all(np.abs(other - mask[0]).max() > 0.1 for other in several[0].numpy())


def test_masks_are_those_of_the_torch_segmenter(exported: Exported) -> None:
    boxes = [regions(photo, 3) for photo in PHOTOS]
    reference = Segmenter(exported.sam, "k")
    figures = check_segmenter(reference, exported.segmenter(), PHOTOS, boxes)
    assert figures["regions"] == 9
    assert figures["min_iou"] > 0.999
    masks = [mask for photo, each in zip(PHOTOS, boxes, strict=True) for mask in reference.masks(photo, each)]
    assert sum(0 < mask.mean() < 1 for mask in masks) > 3  # all or nothing would prove nothing


def test_files_are_valid_recent_and_hold_their_own_part(exported: Exported) -> None:
    sam = exported.sam
    parts = {exported.encoder: [sam.image_encoder], exported.decoder: [sam.prompt_encoder, sam.mask_decoder]}
    shapes = []
    for file, modules in parts.items():
        model = onnx.load(str(file))
        onnx.checker.check_model(model, full_check=True)
        assert opset_of(model) >= MIN_OPSET
        weights = sum(math.prod(weight.dims) for weight in model.graph.initializer)
        whole = sum(parameter.numel() for module in modules for parameter in module.parameters())
        # The prompts' masks and three of the four masks' heads are not needed; position tables are added.
        assert 0.1 * whole < weights < whole + 16**3 + 100
        for value in [*model.graph.input, *model.graph.output]:
            shapes.append([axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim])  # noqa: PERF401
        assert b"site-packages" not in file.read_bytes()
    assert shapes == [
        ["batch", 3, 1024, 1024], ["batch", 16, 16, 16], ["batch", 16, 16, 16], ["batch", 4], ["batch", 1, 64, 64],
    ]  # fmt: skip


def test_what_the_encoder_is_fed_is_read_from_the_model(exported: Exported) -> None:
    assert exported.preprocessing.size_px == (1024, 1024)
    np.testing.assert_allclose(exported.preprocessing.mean, (123.675, 116.28, 103.53), rtol=1e-6)
    np.testing.assert_allclose(exported.preprocessing.std, (58.395, 57.12, 57.375), rtol=1e-6)


def test_an_old_opset_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="SAM's encoder: opset is 16; expected at least 17"):
        export_segmenter(exported.sam, tmp_path / "e.onnx", tmp_path / "d.onnx", opset=16)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_no_file_holds_is_refused_at_once(tmp_path: Path) -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        huge = sam_model_registry["vit_h"]()
    with pytest.raises(
        ExportError, match=r"SAM's encoder has 2\.5 GB of weights; expected at most 2\.1 GB.*take vit_l or vit_b"
    ):
        export_segmenter(huge, tmp_path / "e.onnx", tmp_path / "d.onnx")
    assert list(tmp_path.iterdir()) == []


def test_other_weights_and_other_files_are_caught(exported: Exported, tmp_path: Path) -> None:
    boxes = [regions(PHOTOS[2], 2)]
    model = onnx.load(str(exported.decoder))
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim > 1:
            weight.CopyFrom(onnx.numpy_helper.from_array(-values, weight.name))
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(ParityError, match=r"^segmenter: .* expected min_iou \S+, at least 0\.98"):
        check_segmenter(Segmenter(exported.sam, "k"), exported.segmenter(tmp_path / "other.onnx"), PHOTOS[2:], boxes)
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        exported.segmenter(exported.encoder).masks(PHOTOS[2], boxes[0])
