"""OWLv2 and OWL-ViT with their query frozen → ONNX: image tower, class head and box head, no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from l2r2.config import DetectorSettings
from l2r2.localization.frozen import BOXES, PIXELS, SCORES, FrozenPrompt, freeze_prompt
from l2r2.localization.hub import Checkpoint
from l2r2.localization.owl import OwlDetector
from l2r2_export.graphs import OPSET, save_checked
from l2r2_export.tracing import require_room, trace


class FrozenOwl(nn.Module):
    """The network of a photograph alone; the query is a constant."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[str]) -> None:
        super().__init__()
        self.detector = _detector(checkpoint)
        self.model = checkpoint.model  # so that its weights are found
        with torch.no_grad():
            self.query = nn.Buffer(self.detector.query(tuple(texts)))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores "n patches" in [0, 1] and boxes "n patches 4" of pixels "n 3 s s"."""
        scores, boxes = self.detector.scores_and_boxes(pixels, self.query[None])
        return scores[..., 0], boxes


class OwlReference:
    """The whole model in torch, as a session: what an export is held against."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[str]) -> None:
        self._detector, self._texts = _detector(checkpoint), tuple(texts)

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the exported graph."""
        with torch.inference_mode():
            query = self._detector.query(self._texts)[None]
            scores, boxes = self._detector.scores_and_boxes(torch.from_numpy(feed[PIXELS]), query)
        return {SCORES: scores[..., 0].numpy(), BOXES: boxes.numpy()}


def export_owl(checkpoint: Checkpoint, texts: Sequence[str], path: Path, opset: int = OPSET) -> FrozenPrompt:
    """Write OWLv2 or OWL-ViT as one ONNX file, its text tower left out.

    The graph takes `pixels`, "batch 3 s s" float32 with s the checkpoint's own image size (its position embeddings are
    of that grid), and gives `scores`, "batch patches" in [0, 1], and `boxes`, "batch patches 4", centre and size as
    shares.

    Args:
        checkpoint: Is moved to the CPU.
        texts: Averaged, as `OwlDetector` does.
        opset: At least 17.
    Raises:
        BackendMissing: onnx or onnxscript is not installed.
        InputError: there is no text, or one is blank.
        ExportError: the exporter or the checker refuses the model, or it is too large; nothing was written.
        ArtifactError: the place cannot be written.
    """
    what = f"detector {checkpoint.kind}"
    prompt = freeze_prompt(texts, checkpoint.key)
    model = checkpoint.model
    base = getattr(model, model.base_model_prefix)
    require_room([base.vision_model, model.layer_norm, model.class_head, model.box_head], what)
    size = model.config.vision_config.image_size
    graph = trace(
        FrozenOwl(checkpoint, texts),
        {PIXELS: torch.zeros(2, 3, size, size)},
        {PIXELS: {0: "batch"}},
        [SCORES, BOXES],
        what,
        opset,
    )
    save_checked(graph, path, what)
    return prompt


def _detector(checkpoint: Checkpoint) -> OwlDetector:
    checkpoint.model.cpu()
    settings = DetectorSettings(name="owlv2" if checkpoint.kind == "owlv2" else "owlvit", model=checkpoint.key)
    return OwlDetector(replace(checkpoint, device="cpu"), settings)
