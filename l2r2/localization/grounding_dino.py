"""Grounding DINO (Liu et al. 2023) through transformers, prompted by text."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from l2r2.config import DetectorSettings
from l2r2.localization.boxes import from_image, select
from l2r2.localization.hub import Checkpoint
from l2r2.types import Pixels, Region


class GroundingDinoDetector:
    """Boxes of what a text says, surest first. Fulfils `Detector`.

    A box's score is its surest token's. Several texts are one caption, "animal. bird. insect. reptile.": here text and
    image attend to each other, so that there is no text embedding of its own to average; the union of the prompts, the
    surest token deciding, is what the model was trained to read, and as class-agnostic as an average. A prompt is a
    pass of the whole network, as the caption changes the image's features too.
    """

    def __init__(self, checkpoint: Checkpoint, settings: DetectorSettings) -> None:
        self._model, self._processor = checkpoint.model, checkpoint.processor
        self._device = checkpoint.device
        self._settings = settings
        self.key = checkpoint.key

    def detect(self, photo: Pixels, prompts: Sequence[Sequence[str]]) -> list[list[Region]]:
        """Regions of each prompt; a prompt is one text, or several that are united."""
        return [self._detect(photo, caption(prompt)) for prompt in prompts]

    def _detect(self, photo: Pixels, text: str) -> list[Region]:
        import torch

        height, width = photo.shape[:2]
        with torch.inference_mode():
            inputs = self._processor(images=Image.fromarray(photo), text=text, return_tensors="pt").to(self._device)
            output = self._model(**inputs)
        scores = output.logits[0].sigmoid().amax(dim=-1).float().cpu().numpy()
        boxes = from_image(output.pred_boxes[0].float().cpu().numpy(), width, height)
        return select(boxes, scores, width, height, self._settings)


def caption(texts: Sequence[str]) -> str:
    """Texts as the model was trained to read them: lower case, each closed by a full stop."""
    return " ".join(f"{text.strip().rstrip('.').lower()}." for text in texts)
