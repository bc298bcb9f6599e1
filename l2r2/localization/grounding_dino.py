"""Grounding DINO (Liu et al. 2023) through transformers, prompted by text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from threading import Lock

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
    pass of the whole network, as the caption changes the image's features too. Threads may share it; they take turns,
    which bounds the memory.
    """

    def __init__(self, checkpoint: Checkpoint, settings: DetectorSettings) -> None:
        self._model, self._processor = checkpoint.model, checkpoint.processor
        self._device = checkpoint.device
        self._settings = settings
        self._turn = Lock()
        self.key = checkpoint.key

    def detect(self, photo: Pixels, prompts: Sequence[Sequence[str]]) -> list[list[Region]]:
        """Regions of each prompt; a prompt is one text, or several that are united."""
        import torch

        if not prompts:
            return []
        height, width = photo.shape[:2]
        pixels = self._processor.image_processor(images=Image.fromarray(photo), return_tensors="pt").to(self._device)
        found = []
        for prompt in prompts:
            with self._turn, torch.inference_mode():
                tokens = self._processor(text=caption(prompt), return_tensors="pt").to(self._device)
                output = self._model(**pixels, **tokens)
                scores = output.logits[0].sigmoid().amax(dim=-1).cpu().numpy()
                boxes = output.pred_boxes[0].cpu().numpy()
            found.append(select(from_image(boxes, width, height), scores, width, height, self._settings))
        return found


def caption(texts: Sequence[str]) -> str:
    """Texts as the model was trained to read them: lower case, each closed by a full stop.

    Full stops and question marks inside a text are dropped: the model would read "st. bernard" as two things.
    """
    return " ".join(" ".join(re.sub("[.?]", " ", text).lower().split()) + "." for text in texts)
