"""Vision-language models of a few thousand weights, in the libraries' own classes and on disk as they keep them."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from safetensors.torch import save_file

from l2r2.config import VlmSettings

WORDS = ("red fox", "Amanita muscaria", "black-and-tan coonhound", "1957 truck")

VIT: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
"""CLIP's shape, small."""

SIGLIP: dict[str, Any] = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}
"""SigLIP's shape, small; with CLIP's vocabulary, which needs no hub."""

CONFIGS = {"tiny-clip": VIT, "tiny-sig": SIGLIP}


def save_open_clip(folder: Path, name: str) -> tuple[VlmSettings, torch.nn.Module]:
    """Make the architecture known to open_clip; settings that load it, and the model whose weights are in the file."""
    (folder / f"{name}.json").write_text(json.dumps(CONFIGS[name]))
    open_clip.add_model_config(folder / f"{name}.json")
    model = make_open_clip(CONFIGS[name])
    save_file(model.state_dict(), folder / "weights.safetensors")
    return VlmSettings(model=name, checkpoint=folder / "weights.safetensors"), model


def make_open_clip(config: dict[str, Any]) -> torch.nn.Module:
    """Every parameter random: fresh layers of zeros would prove nothing."""
    config = copy.deepcopy(config)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    return shaken(kind(**config))


def save_transformers(folder: Path, kind: str) -> torch.nn.Module:
    """A CLIPModel or SiglipModel with its vocabulary, as `save_pretrained` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {name: vision[name] for name in list(vision)[:4]}
    if kind == "clip":
        size = save_clip_vocabulary(folder)
        ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
        config = transformers.CLIPConfig(
            text_config={**text, **ends, "vocab_size": size, "max_position_embeddings": 77},
            vision_config=vision,
            projection_dim=24,
        )
        model = transformers.CLIPModel(config)
    else:
        letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789-"]
        vocabulary = transformers.Siglip2Tokenizer({letter: i for i, letter in enumerate(letters)}, [])
        vocabulary.save_pretrained(folder)
        ends = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
        config = transformers.SiglipConfig(
            text_config={**text, **ends, "vocab_size": len(letters), "max_position_embeddings": 64},
            vision_config=vision,
        )
        model = transformers.SiglipModel(config)
    shaken(model)
    bars = transformers.utils.logging
    bars.disable_progress_bar()
    model.save_pretrained(folder)
    bars.enable_progress_bar()
    return model


def save_clip_vocabulary(folder: Path, merges: int = 400) -> int:
    """CLIP's vocabulary cut down to its first merges, as transformers keeps it; gives its size.

    merges.gz holds the same for open_clip.
    """
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[: merges + 1]
    with gzip.open(folder / "merges.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    encoder = dict(SimpleTokenizer(str(folder / "merges.gz")).encoder)
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = dict(zip([*list(encoder)[:-2], *special], encoder.values(), strict=True))
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines[1:]]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return len(vocabulary)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The same model, its weights random and its scale exp(2.5)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                parameter.fill_(2.5)
            elif name != "logit_bias":
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def noise(size: int, n: int = 5) -> torch.Tensor:
    """Normalised views of nothing."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))
