"""Vision-language models that classify without training: logits = scale · cos(photograph, words).

Import it only where such a model is used: it needs PyTorch at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from l2r2 import weights
from l2r2.classification.vlm_towers import Towers, load_towers
from l2r2.config import ViewSettings, VlmSettings
from l2r2.errors import BackendMissing, ConfigError, InputError
from l2r2.files import whole_file

try:
    import torch
    from torch.nn import functional
except ImportError as missing:
    raise BackendMissing("torch is not installed; run: pip install 'l2r2[vlm]'") from missing

Prototypes = Float32[np.ndarray, "k d"]
"""One unit vector a class: where its words lie in the space that photographs are embedded in."""

TEXT_BATCH = 64
"""Prompts at once through the text tower."""


class ZeroShotNetwork(torch.nn.Module):
    """Photographs "n 3 size size" → logits "n k" = scale · cos(photograph, prototype); without a text tower.

    SigLIP's bias is left out: it is the same for every class, so no softmax sees it.

    Attributes:
        architecture: JSON from which `vlm_towers.build_tower` makes the tower again.
    """

    prototypes: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, tower: torch.nn.Module, prototypes: torch.Tensor, scale: torch.Tensor, architecture: str
    ) -> None:
        super().__init__()
        self.tower = tower
        self.architecture = architecture
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("scale", scale)
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = functional.normalize(self.tower(images), dim=-1)
        return self.scale * features @ self.prototypes.T


@dataclass(frozen=True, slots=True, eq=False)
class Vlm:
    """Two towers into one space, and how to feed them.

    Attributes:
        key: Changes whenever a logit may: name, weights, vocabulary and template. At most 64 characters.
        view: Size and normalisation are the model's own. FULL is squashed also where the model's own preprocessing
            crops the middle: that is the view CENTERCROP (the paper's appendix B.2), and FULL keeps every pixel.
        template: With the class's words in the braces.
        model: Both towers, on the CPU.
        tower: The image tower alone; shares its weights with `model`.
        encode: Texts → features "n d" of any length, computed where `model` is.
        architecture: As in `ZeroShotNetwork`.
    """

    key: str
    view: ViewSettings
    template: str
    model: torch.nn.Module
    tower: torch.nn.Module
    encode: Callable[[list[str]], torch.Tensor]
    architecture: str

    def view_settings(self, settings: ViewSettings) -> ViewSettings:
        """A recipe's layout of views, at this model's size and in its normalisation.

        Raises:
            ConfigError: the recipe sets one of them otherwise.
        """
        own = {name: getattr(self.view, name) for name in ("size_px", "mean", "std")}
        for name, value in own.items():
            given = getattr(settings, name)
            if name in settings.model_fields_set and given != value:
                raise ConfigError(f"view.{name} is {given}, but {self.key} was trained with {value}; leave it out")
        return settings.model_copy(update=own)

    def prototypes(self, words: Sequence[str]) -> Prototypes:
        """Embed each class's words, put into the template; rows in the order of `words`.

        Kept on disk: the second time neither the text tower nor its vocabulary is asked.

        Raises:
            InputError: no words at all, or none for a class.
            BackendError: the vocabulary has to come from a hub that cannot be reached.
            ArtifactError: the cache cannot be written.
        """
        if not words or not all(word.strip() for word in words):
            raise InputError(f"got words {list(words)[:5]}; expected at least one class, and words for each")
        name = hashlib.sha256(json.dumps([self.key, self.template, list(words)]).encode()).hexdigest()[:32]
        path = weights.cache_folder() / "prototypes" / f"{name}.safetensors"
        found = _read_prototypes(path, len(words))
        if found is None:
            found = self._embed([self.template.replace("{}", word) for word in words])
            _write_prototypes(path, found)
        return found

    def network(self, words: Sequence[str]) -> ZeroShotNetwork:
        """A classifier of these classes, on the CPU, in evaluation mode; columns in the order of `words`.

        Raises:
            InputError, BackendError, ArtifactError: as `prototypes`.
        """
        prototypes = torch.from_numpy(self.prototypes(words))
        scale = self.model.get_parameter("logit_scale").detach().exp().reshape(())
        return ZeroShotNetwork(self.tower, prototypes, scale, self.architecture)

    def _embed(self, texts: list[str]) -> Prototypes:
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        with torch.inference_mode():
            parts = [self.encode(texts[i : i + TEXT_BATCH]) for i in range(0, len(texts), TEXT_BATCH)]
            unit: Prototypes = functional.normalize(torch.cat(parts), dim=-1).cpu().numpy()
        self.model.to("cpu")
        return unit


def load_vlm(settings: VlmSettings) -> Vlm:
    """A model by name from the hub, or from `settings.checkpoint`; on the CPU, in single precision.

    Names and checkpoints are those of `vlm_towers.load_towers`.

    Raises:
        BackendMissing: open_clip or transformers is not installed.
        ConfigError: no such model or weights, or one that is no pair of towers with a square input.
        BackendError: the hub cannot be reached.
        ArtifactError: the checkpoint is missing, damaged or of another model.
    Source: the paper, section 4.3 and appendix C.2.
    """
    towers = load_towers(settings)
    towers.model.eval().requires_grad_(False)
    if len(set(towers.size_px)) != 1:
        raise ConfigError(f"{settings.model} takes images of {towers.size_px} pixels; expected a square, take another")
    return Vlm(
        key=_key(settings, towers),
        view=ViewSettings(size_px=towers.size_px[0], mean=towers.mean, std=towers.std, full_fit="squash"),
        template=settings.template,
        model=towers.model,
        tower=towers.tower,
        encode=towers.encode,
        architecture=towers.architecture,
    )


def _key(settings: VlmSettings, towers: Towers) -> str:
    notes = [settings.template, towers.architecture, towers.size_px, towers.mean, towers.std, towers.notes]
    digest = hashlib.sha256(json.dumps(notes).encode())
    for name, value in sorted(towers.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", settings.model)[-40:]
    return f"{name}-{digest.hexdigest()[:16]}"


def _read_prototypes(path: Path, k: int) -> Prototypes | None:
    """None where there are none, or none that are whole."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise BackendMissing("safetensors is not installed; run: pip install 'l2r2[vlm]'") from error
    try:
        with safe_open(path, "np") as file:
            found: np.ndarray = file.get_tensor("prototypes")
            whole = file.metadata()["sha256"] == hashlib.sha256(found.tobytes()).hexdigest()
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    return found if whole and len(found) == k else None


def _write_prototypes(path: Path, prototypes: Prototypes) -> None:
    from safetensors.numpy import save

    digest = hashlib.sha256(prototypes.tobytes()).hexdigest()
    with whole_file(path) as beside:
        beside.write_bytes(save({"prototypes": prototypes}, {"sha256": digest}))
