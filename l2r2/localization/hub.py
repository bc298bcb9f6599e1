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
        kind: What its configuration calls it, such as "grounding-dino".
        device: cuda where there is one, else cpu.
        key: Changes with the weights; twelve hexadecimal digits.
    """

    model: Any
    processor: Any
    kind: str
    device: str
    key: str


def load_checkpoint(name: str) -> Checkpoint:
    """Read a detector; nothing is run from its files (no remote code, weights as safetensors only).

    Computed in 32 bits, whatever the file holds: Grounding DINO breaks in half precision.

    Args:
        name: A folder as `save_pretrained` writes it, or a hub's name.
    Raises:
        BackendMissing: transformers is not installed.
        BackendError: no such folder or name, the hub cannot be reached, or the files are damaged or not complete.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
        from transformers.utils import logging
    except ImportError as error:
        raise BackendMissing("transformers is not installed; run: pip install 'l2r2[detectors]'") from error

    logging.disable_progress_bar()  # bars are the command line's
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        model, report = AutoModelForZeroShotObjectDetection.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _no_detector(name, (str(error).splitlines() or [type(error).__name__])[0][:160]) from None
    if report["missing_keys"]:  # transformers would draw them at random
        raise _no_detector(name, f"its weights lack {min(report['missing_keys'])}")
    tokenizer = processor.tokenizer
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers makes up an empty one
        raise _no_detector(name, "its tokenizer has no words, the vocabulary's file is missing")
    return Checkpoint(model.eval().to(device), processor, model.config.model_type, device, _key(name, model))


def _no_detector(name: str, reason: str) -> BackendError:
    return BackendError(
        f"detector {name!r} cannot be had: {reason}; give localizer.model a local folder, or a hub's name and a hub"
    )


def _key(name: str, model: Any) -> str:
    folder = Path(name)
    if folder.is_dir():
        parts = [sha256(path) for path in sorted(folder.iterdir()) if path.is_file()]
    else:
        parts = [name, str(getattr(model.config, "_commit_hash", None))]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
