"""A transformers checkpoint, from a folder or from the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2r2.errors import BackendError, BackendMissing
from l2r2.files import sha256


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A zero-shot detector with its processor.

    Attributes:
        device: cuda where there is one, else cpu.
        key: Changes with the weights; twelve hexadecimal digits.
    """

    model: Any
    processor: Any
    device: str
    key: str


def load_checkpoint(name: str) -> Checkpoint:
    """Read a detector; nothing is run from its files (no remote code, weights as safetensors only).

    Args:
        name: A folder as `save_pretrained` writes it, or a hub's name.
    Raises:
        BackendMissing: transformers is not installed.
        BackendError: no such folder or name, or the hub cannot be reached.
    """
    try:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
        from transformers.utils import logging
    except ImportError as error:
        raise BackendMissing("transformers is not installed; run: pip install 'l2r2[detectors]'") from error
    import torch

    logging.disable_progress_bar()  # bars are the command line's
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(name, use_safetensors=True).eval().to(device)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise BackendError(
            f"detector {name!r} cannot be had: {reason}; give localizer.model a local folder, or a hub's name and a hub"
        ) from None
    return Checkpoint(model, processor, device, _key(name, model))


def _key(name: str, model: Any) -> str:
    folder = Path(name)
    if folder.is_dir():
        parts = [sha256(path) for path in sorted(folder.iterdir()) if path.is_file()]
    else:
        parts = [name, str(getattr(model.config, "_commit_hash", None))]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
