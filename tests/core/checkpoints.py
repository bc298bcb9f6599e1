"""Detectors and SAM of a few thousand random parameters, written as their libraries publish them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

WORDS = ("dog", "full", "cat", "bird", "mushroom", "animal", "insect", "reptile")


def shake(model: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Random everywhere: fresh box heads and offsets are zero, and zeros prove nothing."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def save_grounding_dino(folder: Path) -> Path:
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder.mkdir(parents=True)
    # The model looks for BERT's own numbers of [CLS], [SEP], "." and "?".
    vocabulary = [f"[unused{i}]" for i in range(1100)]
    for place, word in {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }.items():
        vocabulary[place] = word
    vocabulary[1040 : 1040 + len(WORDS)] = WORDS
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64,
        ),
        num_queries=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=32,
        encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=32,
    )  # fmt: skip
    torch.manual_seed(0)
    shake(GroundingDinoForObjectDetection(config), 0.1).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 107})
    GroundingDinoProcessor(images, BertTokenizer(vocab=str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder


def save_owl(folder: Path, version: int) -> Path:
    """OWL-ViT (1) or OWLv2 (2)."""
    import transformers as t

    folder.mkdir(parents=True)
    name = "OwlViT" if version == 1 else "Owlv2"
    config = getattr(t, f"{name}Config")(
        text_config={"vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 598,
                     "eos_token_id": 599},
        vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 48, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = shake(getattr(t, f"{name}ForObjectDetection")(config), 0.05)
    with torch.no_grad():  # fresh ones are so large that every score and side is 0 or 1
        for layer in (model.class_head.logit_scale, model.class_head.logit_shift, model.box_head.dense2):
            layer.weight.mul_(0.05)
    model.save_pretrained(folder)
    images = getattr(t, f"{name}ImageProcessor")(size={"height": 48, "width": 48})
    getattr(t, f"{name}Processor")(images, clip_tokenizer(folder)).save_pretrained(folder)
    return folder


def clip_tokenizer(folder: Path):
    """CLIP's byte-pair tokenizer with letters alone, and no merges."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = {"!": 0} | {letter: 1 + i for i, letter in enumerate(letters)}
    vocabulary |= {f"{letter}</w>": 40 + i for i, letter in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": 598, "<|endoftext|>": 599}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), pad_token="!", model_max_length=16
    )


def small_sam():
    """Segment Anything with one block and sixteen channels, at its usual 1024 pixels."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=1024, patch_size=64, embed_dim=16, depth=1, num_heads=2, out_chans=16, window_size=0,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True,
    )  # fmt: skip
    prompts = PromptEncoder(embed_dim=16, image_embedding_size=(16, 16), input_image_size=(1024, 1024), mask_in_chans=4)
    decoder = MaskDecoder(
        transformer_dim=16, transformer=TwoWayTransformer(depth=1, embedding_dim=16, mlp_dim=32, num_heads=2)
    )
    sam = Sam(encoder, prompts, decoder, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    return shake(sam, 0.5)
