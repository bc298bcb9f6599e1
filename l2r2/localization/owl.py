"""OWLv2 and OWL-ViT (Minderer et al. 2022, 2023) through transformers, prompted by text."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from l2r2.config import DetectorSettings
from l2r2.localization.boxes import from_image, from_padded_square, select
from l2r2.localization.hub import Checkpoint
from l2r2.types import Pixels, Region

if TYPE_CHECKING:
    import torch


class OwlDetector:
    """Boxes of what a text says, surest first. Fulfils `Detector`.

    Several texts are one query: the mean of their normalised embeddings, which the class head normalises again (the
    paper's "average of the embeddings", section 3.1). A text is encoded once and kept, cut where the text tower ends
    (16 tokens); the photograph passes through the image tower once, whatever the number of prompts. Threads may share
    it; they take turns, which bounds the memory.
    """

    def __init__(self, checkpoint: Checkpoint, settings: DetectorSettings) -> None:
        self._model, self._processor = checkpoint.model, checkpoint.processor
        self._device = checkpoint.device
        self._settings = settings
        self._to_pixels = from_padded_square if settings.name == "owlv2" else from_image
        self._queries: dict[tuple[str, ...], torch.Tensor] = {}
        self._turn = Lock()
        self.key = checkpoint.key

    def detect(self, photo: Pixels, prompts: Sequence[Sequence[str]]) -> list[list[Region]]:
        """Regions of each prompt; a prompt is one text, or several that are averaged."""
        import torch

        if not prompts:
            return []
        height, width = photo.shape[:2]
        pixels = self._processor.image_processor(images=Image.fromarray(photo), return_tensors="pt")["pixel_values"]
        with self._turn, torch.inference_mode():
            queries = torch.stack([self.query(tuple(prompt)) for prompt in prompts])
            scores, boxes = self.scores_and_boxes(pixels.to(self._device), queries)
            by_prompt: np.ndarray = scores[0].T.cpu().numpy()
            shares: np.ndarray = boxes[0].cpu().numpy()
        boxes_px = self._to_pixels(shares, width, height)
        return [select(boxes_px, row, width, height, self._settings) for row in by_prompt]

    def scores_and_boxes(self, pixels: torch.Tensor, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network says without its text tower: scores "n patches q" in [0, 1], boxes "n patches 4" cxcywh.

        Args:
            pixels: "n 3 h w", as the processor makes them.
            queries: "q d", embeddings of the text tower's projection.
        """
        features, _ = self._model.image_embedder(pixels)
        flat = features.flatten(1, 2)
        flat_queries = queries[None].expand(flat.shape[0], -1, -1)  # len() would fix the batch of an export
        logits, _ = self._model.class_predictor(flat, flat_queries)
        return logits.sigmoid(), self._model.box_predictor(flat, features)

    def query(self, texts: tuple[str, ...]) -> torch.Tensor:
        """The embedding "d" of what texts say together; read once and kept."""
        known = self._queries.get(texts)
        if known is None:
            longest = self._model.config.text_config.max_position_embeddings
            tokens = self._processor(text=[list(texts)], return_tensors="pt", truncation=True, max_length=longest)
            known = self._queries[texts] = mean_direction(_text_features(self._model, tokens.to(self._device)))
        return known


def mean_direction(embeddings: torch.Tensor) -> torch.Tensor:
    """The normalised mean "d" of normalised embeddings "n d"."""
    from torch.nn.functional import normalize

    return normalize(normalize(embeddings, dim=-1).mean(dim=0), dim=-1)


def _text_features(model: Any, tokens: Any) -> torch.Tensor:
    base = getattr(model, model.base_model_prefix)
    features = base.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    pooled: torch.Tensor = getattr(features, "pooler_output", features)
    return pooled
