"""Classifiers from timm, with weights from a package, a file, the hub or none. The only imports of timm."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from l2r2 import weights
from l2r2.config import TrainSettings, ViewSettings
from l2r2.errors import ArtifactError, BackendError, BackendMissing, ConfigError
from l2r2.types import Logits

if TYPE_CHECKING:
    import torch

PACKAGED_LITE0 = "tf_efficientnet_lite0"


def build_network(settings: TrainSettings, classes: int) -> torch.nn.Module:
    """A timm model with a fresh head of `classes` outputs on pretrained features.

    Raises:
        BackendMissing: timm is not installed.
        ConfigError: timm has no such model, or a package no weights for it.
        BackendError: the hub cannot be reached.
        ArtifactError: the checkpoint does not fit the model.
    """
    import torch

    network = create_network(settings.model, classes, pretrained=settings.weights == "hub" and not settings.checkpoint)
    # A random head leaves noise along every direction that the training data do not fix; zeros leave none.
    for parameter in network.get_classifier().parameters():  # type: ignore[operator]
        torch.nn.init.zeros_(parameter)
    if settings.checkpoint is not None:
        load_network(network, settings.checkpoint, strict_head=False)
    elif settings.weights == "package":
        if settings.model != PACKAGED_LITE0:
            raise ConfigError(
                f"no package ships weights for {settings.model!r}; set train.weights to hub or none, "
                "or give train.checkpoint"
            )
        _load(network, _packaged_lite0(network, weights.fetch(settings.model)), PACKAGED_LITE0, strict_head=False)
    return network


def create_network(model: str, classes: int, *, pretrained: bool = False) -> torch.nn.Module:
    """A timm model by name, random weights unless `pretrained`.

    Raises:
        BackendMissing, ConfigError, BackendError: as `build_network`.
    """
    timm = _timm()
    if model not in timm.list_models() and model not in timm.list_pretrained():
        near = difflib.get_close_matches(model, timm.list_models())
        raise ConfigError(f"timm has no model {model!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    try:
        network: torch.nn.Module = timm.create_model(model, pretrained=pretrained, num_classes=classes)
    except Exception as error:
        if not pretrained:
            raise
        raise BackendError(
            f"the hub's weights for {model} cannot be had ({type(error).__name__}); give train.checkpoint a local file"
        ) from error
    return network


def load_network(network: torch.nn.Module, path: Path, *, strict_head: bool = True) -> None:
    """Read a safetensors file into a network.

    Args:
        strict_head: Whether the file's head must fit; else another head is left as it is.
    Raises:
        ArtifactError: the file is missing, no safetensors, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is no readable safetensors file: {error}") from error
    _load(network, state, str(path), strict_head=strict_head)


def view_settings(model: str, settings: ViewSettings) -> ViewSettings:
    """Fill in the backbone's own normalisation where the recipe gives none.

    The packaged EfficientNet-Lite0 was trained with (x - 127) / 128, the default of `ViewSettings`.
    """
    if model == PACKAGED_LITE0 or {"mean", "std"} & settings.model_fields_set:
        return settings
    own = _timm().models.get_pretrained_cfg(model)
    if own is None:
        raise ConfigError(f"timm knows no normalisation for {model!r}; set view.mean and view.std")
    return settings.model_copy(update={"mean": tuple(own.mean), "std": tuple(own.std)})


class TorchClassifier:
    """A network in PyTorch, on the CPU, in evaluation mode."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network.eval()

    def logits(self, images: Float32[np.ndarray, "n 3 size size"]) -> Logits:
        """Rows in order."""
        import torch

        with torch.inference_mode():
            result: Logits = self._network(torch.from_numpy(images)).numpy()
        return result


def _packaged_lite0(network: torch.nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """The package names modules otherwise; both list them in the order in which they compute."""
    import torch

    theirs = torch.load(path, map_location="cpu", weights_only=True)  # sha256 was checked
    return dict(zip(network.state_dict(), theirs.values(), strict=True))


def _load(network: torch.nn.Module, state: Mapping[str, torch.Tensor], origin: str, *, strict_head: bool) -> None:
    own = network.state_dict()
    fits = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    left = sorted(set(own) - set(fits))
    if not strict_head:
        head = {id(p) for p in network.get_classifier().parameters()}  # type: ignore[operator]
        names = {name for name, p in network.named_parameters() if id(p) in head}
        left = [name for name in left if name not in names]
    if left:
        raise ArtifactError(
            f"{origin} does not fit the model: {len(left)} tensors are missing or differ, first {left[0]}"
        )
    network.load_state_dict(own | fits)


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise BackendMissing("timm is not installed; run: pip install 'l2r2[train]'") from error
    return timm
