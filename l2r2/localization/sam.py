"""Segment Anything (Kirillov et al. 2023): boxes → masks. The only import of segment_anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from l2r2.config import SegmenterSettings
from l2r2.errors import ArtifactError, BackendMissing
from l2r2.files import sha256
from l2r2.types import Mask, Pixels, Region

if TYPE_CHECKING:
    import numpy as np

BOXES_AT_ONCE = 16
"""Boxes a pass of the decoder; bounds the memory for masks of the photograph's size."""


class Segmenter:
    """One mask a box. The photograph is embedded once, whatever the number of boxes.

    Threads may share it; they take turns, as the predictor holds the embedding.
    """

    def __init__(self, model: Any, key: str) -> None:
        """Store the parts.

        Args:
            model: A `segment_anything.modeling.Sam`.
            key: Changes with its weights.
        """
        from segment_anything import SamPredictor

        self.model = model
        self._predictor = SamPredictor(model)
        self._turn = Lock()
        self.key = key

    def masks(self, photo: Pixels, regions: Sequence[Region]) -> list[Mask]:
        """A mask of the photograph's size a region, in order."""
        if not regions:
            return []
        import torch

        predictor, found = self._predictor, []
        with self._turn, torch.inference_mode():
            predictor.set_image(photo)
            for start in range(0, len(regions), BOXES_AT_ONCE):
                part = regions[start : start + BOXES_AT_ONCE]
                boxes = torch.tensor([region.box_xyxy_px for region in part], device=predictor.device)
                boxes = predictor.transform.apply_boxes_torch(boxes, photo.shape[:2])
                masks, _, _ = predictor.predict_torch(
                    point_coords=None, point_labels=None, boxes=boxes, multimask_output=False
                )
                masks_np: np.ndarray = masks[:, 0].cpu().numpy()
                found += list(masks_np)
            predictor.reset_image()
        return found


def load_segmenter(settings: SegmenterSettings) -> Segmenter:
    """SAM from a local checkpoint, .pth (read without running anything in it) or safetensors.

    Raises:
        BackendMissing: segment_anything is not installed.
        ArtifactError: the checkpoint is missing, unreadable, or of another size of SAM.
    """
    try:
        from segment_anything import sam_model_registry
    except ImportError as error:
        raise BackendMissing("segment_anything is not installed; run: pip install 'l2r2[detectors]'") from error
    import torch

    state = _read(settings.checkpoint)
    model = sam_model_registry[settings.model]()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ArtifactError(f"{settings.checkpoint} is no SAM {settings.model}: {first}; set segmenter.model") from None
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Segmenter(model, f"{settings.model}-{sha256(settings.checkpoint)[:12]}")


def _read(path: Path) -> dict[str, Any]:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"SAM's checkpoint {path} cannot be read: {reason}; give segmenter.checkpoint") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ArtifactError(
            f"{path} holds no named weights; expected SAM's published checkpoint; give segmenter.checkpoint"
        )
    return state
