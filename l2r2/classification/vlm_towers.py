"""Where vision-language models come from: open_clip or transformers. The only imports of open_clip."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from l2r2.config import VlmSettings
from l2r2.errors import ArtifactError, BackendError, BackendMissing, ConfigError

try:
    import torch
except ImportError as missing:
    raise BackendMissing("torch is not installed; run: pip install 'l2r2[vlm]'") from missing

PRESETS = {
    "clip-b": ("ViT-B-32-quickgelu", "openai"),
    "clip-l": ("ViT-L-14-quickgelu", "openai"),
    "bioclip": ("hf-hub:imageomics/bioclip", None),
    "siglip2-so": ("ViT-SO400M-16-SigLIP2-256", "webli"),
}
"""Name → open_clip's name and tag. Source: the paper, appendix C.2; OpenAI's weights need QuickGELU."""

BUILT_IN = {"bioclip": ("ViT-B-16", "laion2b_s34b_b88k")}
"""A hub's model whose weights are at hand as a file: the same architecture and normalisation. Source: BioCLIP's own
eval_zero_shot.sh."""

CLIP_LOOKS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP_LOOKS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and std where a folder of transformers gives none. Source: its image processors' defaults."""

Channels = tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Towers:
    """A loaded model, the same whichever library it came from.

    Attributes:
        model: Both towers; has a parameter `logit_scale`, the natural logarithm of the factor before the cosine.
        tower: Photographs "n 3 size size" → features "n d" of any length.
        encode: Texts → features "n d" of any length, computed where `model` is; the vocabulary's own context length.
        architecture: JSON for `build_tower`.
        size_px: Height and width that the image tower takes.
        notes: What else a feature depends on: the whole configuration, the vocabulary.
    """

    model: torch.nn.Module
    tower: torch.nn.Module
    encode: Callable[[list[str]], torch.Tensor]
    architecture: str
    size_px: tuple[int, int]
    mean: Channels
    std: Channels
    notes: tuple[str, ...]


def load_towers(settings: VlmSettings) -> Towers:
    """A model by name from the hub, or from `settings.checkpoint`.

    The name is one of `PRESETS`, open_clip's own (hf-hub:… and local-dir:… included), or NAME@TAG where open_clip
    knows several sets of weights for it. The checkpoint is a file of weights for the model named (the tag then says
    which normalisation they were trained with); a folder as open_clip keeps it (`open_clip_config.json`); or one as
    transformers saves CLIP and SigLIP (`config.json`). A folder says itself what model it holds.

    Raises:
        BackendMissing, ConfigError, BackendError, ArtifactError: as `l2r2.classification.vlm.load_vlm`.
    """
    place = settings.checkpoint
    if place is None or place.is_file():
        return _from_open_clip(settings, *_name_and_tag(settings))
    if (place / "open_clip_config.json").is_file():
        return _from_open_clip(settings, f"local-dir:{place}", None)
    if (place / "config.json").is_file():
        return _from_transformers(settings, place)
    raise ArtifactError(
        f"vlm.checkpoint {place} is no model; expected a file of weights, or a folder with open_clip_config.json or "
        "transformers' config.json"
    )


def build_tower(architecture: str) -> torch.nn.Module:
    """The image tower with random weights; needs no hub. A text tower of next to nothing is made and thrown away.

    Raises:
        ArtifactError: the text describes no tower.
        BackendMissing: open_clip or transformers is not installed.
    """
    try:
        made = json.loads(architecture)
        library, vision = made["library"], made["vision"]
        with _quiet():
            if library == "open_clip":
                open_clip = _open_clip()
                text = open_clip.CLIPTextCfg(context_length=1, vocab_size=1, width=8, heads=1, layers=1)
                clip = open_clip.CLIP(made["embed_dim"], open_clip.CLIPVisionCfg(**vision), text, made["quick_gelu"])
                tower: torch.nn.Module = clip.visual
                return tower
            config, model = _transformers_kinds()[library]
            sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
            return _TransformersTower(model(config(text_config=sizes, vision_config=vision, **made["more"])))
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"no image tower can be built from {architecture[:80]!r}: {_one_line(error)}") from error


def _name_and_tag(settings: VlmSettings) -> tuple[str, str | None]:
    """open_clip's name and tag; no tag where the name says it all, or a file has the only weights there are."""
    file = settings.checkpoint
    presets = PRESETS | BUILT_IN if file else PRESETS
    name, tag = presets.get(settings.model, (settings.model, None))
    open_clip = _open_clip()
    if ":" in name:
        if file:
            raise ConfigError(f"{name} brings its own weights; give vlm.checkpoint the model's folder, not a file")
        return name, None
    if tag is None and "@" in name:
        name, tag = name.split("@", 1)
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(settings.model, [*PRESETS, *open_clip.list_models()]) or list(PRESETS)
        raise ConfigError(f"vlm.model is {settings.model!r}, which open_clip does not know; try {', '.join(near)}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    listed = ", ".join(tags[:5]) + (", …" if len(tags) > 5 else "") or "none"
    if tag is None and file and not tags:
        return name, None
    if tag is None and len(tags) == 1:
        tag = tags[0]
    if tag not in tags:
        which = "says not which weights" if tag is None else f"has no weights {tag!r}"
        raise ConfigError(f"{name} {which}; write {name}@TAG with one of: {listed}")
    trained = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    if trained != bool(open_clip.get_model_config(name).get("quick_gelu")):
        other = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
        raise ConfigError(f"weights {tag!r} do not go with the activation function of {name}; write {other}@{tag}")
    return name, tag


def _from_open_clip(settings: VlmSettings, name: str, tag: str | None) -> Towers:
    open_clip = _open_clip()
    place = settings.checkpoint
    file = place if place is not None and place.is_file() else None
    published = open_clip.get_pretrained_cfg(name, tag) if file and tag else {}
    own = {key: published[key] for key in ("mean", "std") if key in published}  # for a file it would take CLIP's
    try:
        with _quiet():
            config = open_clip.get_model_config(name)
            if "multimodal_cfg" not in config:
                model = open_clip.create_model(
                    name, str(file) if file else tag, require_pretrained=True, force_preprocess_cfg=own
                )
    except Exception as error:  # open_clip, torch, safetensors and the hub have no common error class
        raise _unloadable(settings, error) from error
    if "multimodal_cfg" in config:
        raise ConfigError(f"{name} writes captions; expected a model of two towers, such as {', '.join(PRESETS)}")

    @cache
    def tokenizer() -> Any:
        try:
            with _quiet():
                return open_clip.get_tokenizer(name)
        except Exception as error:  # as above
            raise BackendError(
                f"the vocabulary of {settings.model} cannot be had from the hub ({type(error).__name__}); "
                "give vlm.checkpoint the folder of its whole repository, tokenizer included"
            ) from error

    def encode(texts: list[str]) -> torch.Tensor:
        features: torch.Tensor = model.encode_text(tokenizer()(texts).to(model.logit_scale.device))
        return features

    vision = dict(config["vision_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    made = {
        "library": "open_clip",
        "vision": vision,
        "embed_dim": config["embed_dim"],
        "quick_gelu": config.get("quick_gelu", False),
    }
    looks = model.visual.preprocess_cfg
    size = looks["size"]
    return Towers(
        model=model,
        tower=model.visual,
        encode=encode,
        architecture=json.dumps(made, sort_keys=True),
        size_px=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(looks["mean"]),
        std=tuple(looks["std"]),
        notes=(json.dumps(config, sort_keys=True), *_small_files(place)),
    )


class _TransformersTower(torch.nn.Module):
    """The image side of a CLIPModel or SiglipModel."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision = model.vision_model
        self.projection = getattr(model, "visual_projection", torch.nn.Identity())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.projection(self.vision(pixel_values=images).pooler_output)
        return features


def _from_transformers(settings: VlmSettings, folder: Path) -> Towers:
    kinds = _transformers_kinds()
    import transformers

    try:
        with _quiet(), _no_bars():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.model_type in kinds:
                model, info = kinds[config.model_type][1].from_pretrained(
                    folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as in _from_open_clip
        raise _unloadable(settings, error) from error
    if config.model_type not in kinds:
        raise ConfigError(f"{folder} holds a model of type {config.model_type!r}; expected {' or '.join(kinds)}")
    left = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
    if left:
        raise ArtifactError(f"{folder} lacks weights: {len(left)} are missing or differ, first {left[0]}")
    siglip = config.model_type == "siglip"

    def encode(texts: list[str]) -> torch.Tensor:
        # SigLIP was trained on lower case, and on padding that is not masked.
        tokens = tokenizer(
            [text.lower() for text in texts] if siglip else texts,
            padding="max_length",
            truncation=True,
            max_length=config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        given = {name: tokens[name].to(model.logit_scale.device) for name in names}
        features: torch.Tensor = model.get_text_features(**given).pooler_output
        return features

    made = {
        "library": config.model_type,
        "vision": json.loads(config.vision_config.to_json_string(use_diff=False)),
        "more": {} if siglip else {"projection_dim": config.projection_dim},
    }
    mean, std = _normalisation(folder, *(SIGLIP_LOOKS if siglip else CLIP_LOOKS))
    return Towers(
        model=model,
        tower=_TransformersTower(model),
        encode=encode,
        architecture=json.dumps(made, sort_keys=True),
        size_px=(config.vision_config.image_size, config.vision_config.image_size),
        mean=mean,
        std=std,
        notes=_small_files(folder),
    )


def _normalisation(folder: Path, mean: Channels, std: Channels) -> tuple[Channels, Channels]:
    """Those of the folder's image processor, else those given."""
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            try:
                values = json.loads((folder / file).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ArtifactError(f"{folder / file} is no JSON: {error}; fetch it again") from error
            values = values.get("image_processor", values)
            return tuple(values.get("image_mean", mean)), tuple(values.get("image_std", std))
    return mean, std


def _small_files(folder: Path | None) -> tuple[str, ...]:
    """What a model's folder says besides its weights: activation functions, vocabulary, lower case."""
    if folder is None or not folder.is_dir():
        return ()
    files = [path for path in sorted(folder.iterdir()) if path.suffix in {".json", ".txt", ".model"}]
    return tuple(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files)


def _unloadable(settings: VlmSettings, error: Exception) -> ArtifactError | BackendError:
    if settings.checkpoint is not None or settings.model.startswith("local-dir:"):
        place = settings.checkpoint or settings.model
        return ArtifactError(f"{place} cannot be loaded as {settings.model}: {_one_line(error)}; check model and file")
    return BackendError(
        f"{settings.model} cannot be had from the hub ({type(error).__name__}); "
        "fetch it elsewhere and give vlm.checkpoint the file or folder"
    )


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _open_clip() -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise BackendMissing("open_clip is not installed; run: pip install 'l2r2[vlm]'") from error
    module: ModuleType = open_clip
    return module


def _transformers_kinds() -> Mapping[str, tuple[Any, Any]]:
    """transformers' model type → its classes of configuration and model."""
    try:
        from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
    except ImportError as error:
        raise BackendMissing("transformers is not installed; run: pip install 'l2r2[vlm]'") from error
    return {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines and no warnings: open_clip speaks through the root logger, and would configure it."""
    root, silent, disabled = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(silent)


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a progress bar while it reads weights."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
