"""Zero-shot detectors with their prompt frozen → ONNX, with what a runtime needs to feed them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from l2r2.errors import ExportError
from l2r2.localization.frozen import FrozenPrompt
from l2r2.localization.preprocessing import Preprocessing, network_input
from l2r2.types import Session
from l2r2_export.graphs import OPSET

if TYPE_CHECKING:
    from l2r2.localization.hub import Checkpoint

PIXEL_TOLERANCE = 2.5 / 255
"""Of a pixel, [0, 1], before it is divided by the standard deviation. On processors with AVX2 the difference is 1e-5 at
most; elsewhere torchvision may round to another grey level. A wrong size, filter or padding is far off."""

PROBES = ((61, 149), (149, 61))
"""Height and width of the pictures that a processor is tried on."""


def export_detector(
    checkpoint: Checkpoint, texts: Sequence[str], path: Path, opset: int = OPSET
) -> tuple[FrozenPrompt, Preprocessing]:
    """Write OWLv2, OWL-ViT or Grounding DINO as one ONNX file without its text encoder.

    Args:
        checkpoint: As `load_checkpoint` gives it; is moved to the CPU.
        texts: One meaning: OWL averages them, Grounding DINO reads them as one caption.
        opset: At least 17.
    Returns:
        The prompt for the manifest, and what the graph is to be fed.
    Raises:
        BackendMissing: onnx or onnxscript is not installed.
        InputError: there is no text, or one is blank.
        ExportError: another kind of model or processor, too large, refused by the exporter or the checker, or too old
            an opset; nothing was written.
        ArtifactError: the place cannot be written.
    """
    preprocessing = read_preprocessing(checkpoint.processor.image_processor, checkpoint.kind)
    if checkpoint.kind == "grounding-dino":
        from l2r2_export.grounding_dino import export_grounding_dino

        return export_grounding_dino(checkpoint, texts, path, opset), preprocessing
    from l2r2_export.owl import export_owl

    return export_owl(checkpoint, texts, path, opset), preprocessing


def detector_reference(checkpoint: Checkpoint, texts: Sequence[str]) -> Session:
    """The checkpoint in torch, whole, as a session with the exported graph's names; one photograph or a batch."""
    if checkpoint.kind == "grounding-dino":
        from l2r2_export.grounding_dino import GroundingDinoReference

        return GroundingDinoReference(checkpoint, texts)
    from l2r2_export.owl import OwlReference

    return OwlReference(checkpoint, texts)


def read_preprocessing(processor: Any, kind: str) -> Preprocessing:
    """What an image processor of transformers does, as settings; tried on two pictures before it is believed.

    Args:
        kind: What the checkpoint's configuration calls it.
    Raises:
        ExportError: another kind, or a processor that does something else (a crop, another filter).
    """
    given = processor.to_dict()
    size = given.get("size") or {}
    fits = {"owlv2": "square", "owlvit": "stretch", "grounding-dino": "keep"}
    filters = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
    if kind not in fits:
        raise ExportError(f"a detector of kind {kind!r} cannot be frozen; expected {', '.join(fits)}, choose one")
    sides = ("shortest_edge", "longest_edge") if kind == "grounding-dino" else ("height", "width")
    normalized = given.get("do_normalize")
    try:
        settings = Preprocessing.model_validate(
            {
                "fit": fits[kind],
                "size_px": tuple(size.get(side) for side in sides),
                "resample": filters.get(given.get("resample")),
                "rescale": given["rescale_factor"] if given.get("do_rescale") else 1.0,
                "mean": given["image_mean"] if normalized else (0.0, 0.0, 0.0),
                "std": given["image_std"] if normalized else (1.0, 1.0, 1.0),
            }
        )
    except (KeyError, ValueError) as error:
        reason = str(error).replace("\n", " ")[:160]
        raise ExportError(f"the processor of {kind} cannot be had without transformers: {reason}; report it") from None
    _try(processor, settings, kind)
    return settings


def _try(processor: Any, settings: Preprocessing, kind: str) -> None:
    """Noise, a ramp and a white border, wide and tall: what a wrong filter, order, size or padding cannot get right."""
    rng = np.random.default_rng(0)
    for height, width in PROBES:
        photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        photo[..., 1] = np.linspace(0, 255, width).astype(np.uint8)
        photo[-8:, -8:] = 255
        wanted = processor(images=Image.fromarray(photo), return_tensors="np")["pixel_values"][0]
        got = network_input(photo, settings)
        scale = np.array(settings.std)[:, None, None] * (255 * settings.rescale) ** -1
        worst = np.inf if got.shape != wanted.shape else float(np.abs((got - wanted) * scale).max())
        if not worst <= PIXEL_TOLERANCE:
            raise ExportError(
                f"the processor of {kind} gives {wanted.shape} for a photograph of {width} × {height}, ours "
                f"{got.shape} with a largest difference of {worst:.3g}; expected at most {PIXEL_TOLERANCE:.3g}; it "
                "does something that l2r2.localization.preprocessing does not know, report it"
            )
