"""Segment Anything → two ONNX files: the image encoder, and a decoder of one box a photograph's embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from l2r2.localization.frozen import BOXES, EMBEDDING, MASKS, PIXELS
from l2r2.localization.preprocessing import Preprocessing
from l2r2_export.graphs import OPSET, save_checked
from l2r2_export.tracing import require_room, trace


class BoxDecoder(nn.Module):
    """From boxes to masks: the first mask, which is the one that `multimask_output=False` gives.

    A box alone makes two tokens, by which Segment Anything's own export would choose among the other three masks.
    """

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.prompts, self.decoder = sam.prompt_encoder, sam.mask_decoder
        self.places = nn.Buffer(sam.prompt_encoder.get_dense_pe().detach())

    def forward(self, embedding: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Logits "n 1 4h 4w" of embeddings "n c h w" and one box each, "n 4" xyxy in the encoder's frame."""
        decoder = self.decoder
        corners, _ = self.prompts(points=None, boxes=boxes, masks=None)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(boxes.shape[0], -1, -1), corners], dim=1)
        source = embedding + self.prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        read, source = decoder.transformer(source, self.places.expand_as(embedding), tokens)
        n, c, h, w = embedding.shape
        source = decoder.output_upscaling(source.transpose(1, 2).reshape(n, c, h, w))
        weights = decoder.output_hypernetworks_mlps[0](read[:, 1])  # token 0 is the quality's, 1 the first mask's
        return (weights[:, None] @ source.flatten(2)).view(n, 1, *source.shape[2:])


class EncoderReference:
    """SAM's encoder in torch, as a session."""

    def __init__(self, sam: Any) -> None:
        self._encoder = sam.image_encoder.cpu()

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the exported encoder."""
        with torch.inference_mode():
            return {EMBEDDING: self._encoder(torch.from_numpy(feed[PIXELS])).numpy()}


class DecoderReference:
    """SAM's own prompt encoder and mask decoder in torch, one box at a time, as a session."""

    def __init__(self, sam: Any) -> None:
        self._sam = sam.cpu()

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the exported decoder."""
        sam, found = self._sam, []
        with torch.inference_mode():
            for embedding, box in zip(feed[EMBEDDING], feed[BOXES], strict=True):
                sparse, dense = sam.prompt_encoder(points=None, boxes=torch.from_numpy(box[None]), masks=None)
                masks, _ = sam.mask_decoder(
                    image_embeddings=torch.from_numpy(embedding[None]),
                    image_pe=sam.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=False,
                )
                found.append(masks.numpy())
        return {MASKS: np.concatenate(found)}


def export_segmenter(sam: Any, encoder: Path, decoder: Path, opset: int = OPSET) -> Preprocessing:
    """Write SAM as two ONNX files, both with a free batch axis.

    The encoder takes `pixels`, "batch 3 1024 1024" float32, and gives `embedding`, "batch c h w". The decoder takes
    `embedding` and `boxes`, "batch 4" xyxy in the frame of the 1024 pixels, one box an embedding, and gives `masks`,
    "batch 1 4h 4w", logits. The encoder's size is fixed by its position embeddings.

    Args:
        sam: A `segment_anything.modeling.Sam`; is moved to the CPU.
        opset: At least 17.
    Returns:
        What the encoder is to be fed.
    Raises:
        BackendMissing: onnx or onnxscript is not installed.
        ExportError: the exporter or the checker refuses a part, or one is too large (ViT-H is); nothing was written, or
            the encoder alone.
        ArtifactError: a place cannot be written.
    """
    require_room([sam.image_encoder], "SAM's encoder", "take vit_l or vit_b (localizer.segmenter.model)")
    sam.cpu()
    size = sam.image_encoder.img_size
    pixels = {PIXELS: torch.zeros(2, 3, size, size)}
    encoding = trace(sam.image_encoder, pixels, {PIXELS: {0: "batch"}}, [EMBEDDING], "SAM's encoder", opset)
    network = BoxDecoder(sam)
    examples = {EMBEDDING: torch.zeros(2, *network.places.shape[1:]), BOXES: torch.zeros(2, 4)}
    free = {EMBEDDING: {0: "batch"}, BOXES: {0: "batch"}}
    decoding = trace(network, examples, free, [MASKS], "SAM's decoder", opset)
    save_checked(encoding, encoder, "SAM's encoder")
    save_checked(decoding, decoder, "SAM's decoder")
    mean, std = (tuple(values.flatten().tolist()) for values in (sam.pixel_mean, sam.pixel_std))
    return Preprocessing(fit="corner", size_px=(size, size), rescale=1.0, mean=mean, std=std)
