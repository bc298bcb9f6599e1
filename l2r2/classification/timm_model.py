"""Classifiers from timm, with weights from a package, a file, a hub or none."""

from __future__ import annotations

import copy
import difflib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
TORCHVISION_RESNET = "resnet50"


def build_network(settings: TrainSettings, classes: int, *, size_px: int | None = None) -> torch.nn.Module:
    """A timm model with a fresh head of `classes` outputs on pretrained features.

    `settings.checkpoint` may have been trained at another size or be in its publisher's names, as far as timm knows
    how to read it.

    Args:
        size_px: As `create_network`.
    Raises:
        BackendMissing: timm is not installed.
        ConfigError: timm has no such model, no single head or no drop path in it, or a package no weights for it.
        BackendError: the hub cannot be reached.
        ArtifactError: the checkpoint does not fit the model.
    """
    import torch

    model, source = settings.model, settings.weights
    if source == "package" and model != PACKAGED_LITE0 and settings.checkpoint is None:
        raise ConfigError(
            f"no package ships weights for {model!r}; set train.weights to hub or none, or give train.checkpoint"
        )
    if source == "torchvision" and model != TORCHVISION_RESNET:
        raise ConfigError(f"torchvision's weights fit {TORCHVISION_RESNET!r} only, not {model!r}; set train.weights")
    from_hub = source == "hub" and settings.checkpoint is None
    network = create_network(model, classes, pretrained=from_hub, size_px=size_px, drop_path=settings.drop_path)
    # A random head leaves noise along every direction that the training data do not fix; zeros leave none.
    for parameter in head_of(network).parameters():
        torch.nn.init.zeros_(parameter)
    if settings.checkpoint is not None:
        state, origin = _read(settings.checkpoint), str(settings.checkpoint)
        _load(network, _adapted(network, state, origin), origin, strict_head=False)
    elif source == "package":
        _load(network, _packaged_lite0(network, weights.fetch(model)), PACKAGED_LITE0, strict_head=False)
    elif source == "torchvision":
        _load(network, _torchvision_resnet(), f"torchvision's {model}", strict_head=False)
    return network


def takes_size(model: str) -> bool:
    """Whether timm builds that architecture for one size of input, as those with position embeddings."""
    return _takes("img_size", model)


def create_network(
    model: str, classes: int, *, pretrained: bool = False, size_px: int | None = None, drop_path: float = 0.0
) -> torch.nn.Module:
    """A timm model by name, random weights unless `pretrained`.

    Args:
        size_px: Side of its input, for models built for one size (position embeddings); others take any. None: the
            model's own.
        drop_path: Stochastic depth, [0, 1).
    Raises:
        BackendMissing, BackendError: as `build_network`.
        ConfigError: timm has no such model, it takes no drop path, or its patches do not tile that size.
    """
    timm = _timm()
    if model not in timm.list_models() and model not in timm.list_pretrained():
        near = difflib.get_close_matches(model, timm.list_models())
        raise ConfigError(f"timm has no model {model!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    options: dict[str, float] = {}
    if size_px is not None and takes_size(model):
        options["img_size"] = size_px
    if drop_path > 0:
        if not _takes("drop_path_rate", model):
            raise ConfigError(f"{model!r} has no stochastic depth; set train.drop_path = 0 (now {drop_path})")
        options["drop_path_rate"] = drop_path
    try:
        network: torch.nn.Module = timm.create_model(model, pretrained=pretrained, num_classes=classes, **options)
    except Exception as error:
        if not pretrained:
            raise
        raise BackendError(_unreachable(model, error)) from error
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if "img_size" in options and isinstance(patch, tuple) and any(size_px % side for side in patch):
        raise ConfigError(f"{model!r} cuts its input into patches of {patch[0]} px; {size_px} px is no multiple of it")
    return network


def head_of(network: torch.nn.Module) -> torch.nn.Module:
    """The last layer: pooled features → logits.

    Raises:
        ConfigError: the model has no head, or several.
    """
    import torch

    head = network.get_classifier() if hasattr(network, "get_classifier") else None  # type: ignore[operator]
    if not isinstance(head, torch.nn.Module):
        raise ConfigError(f"{type(network).__name__} has no single head to train; set train.model to another")
    return head


def pooled(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a model hands its head, "n d"."""
    features: torch.Tensor = network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return features


def load_network(network: torch.nn.Module, path: Path, *, strict_head: bool = True) -> None:
    """Read a safetensors file into a network.

    Args:
        strict_head: Whether the file's head must fit; else another head is left as it is.
    Raises:
        ArtifactError: the file is missing, no safetensors, or of another model.
    """
    _load(network, _read(path), str(path), strict_head=strict_head)


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


@contextmanager
def inference() -> Iterator[torch.device]:
    """Gives the device to compute on (CUDA where there is one); no gradients, and float32 in full precision there.

    TensorFloat-32, CUDA's default for convolutions, differs from other runtimes in the fourth digit.
    """
    import torch

    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield torch.device("cuda" if torch.cuda.is_available() else "cpu")
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


class TorchClassifier:
    """A network in PyTorch, in evaluation mode; on CUDA where there is one, then a copy of it."""

    def __init__(self, network: torch.nn.Module) -> None:
        network.eval()
        with inference() as device:
            self._device = device
        self._network = network if device.type == "cpu" else copy.deepcopy(network).to(device)

    def logits(self, images: Float32[np.ndarray, "n ..."]) -> Logits:
        """Rows in order. `images` are whatever the network takes: "n 3 size size", or features for a head alone."""
        import torch

        with inference():
            result: Logits = self._network(torch.from_numpy(images).to(self._device)).cpu().numpy()
        return result


def _packaged_lite0(network: torch.nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """The package names modules otherwise; both list them in the order in which they compute."""
    import torch

    theirs = torch.load(path, map_location="cpu", weights_only=True)  # sha256 was checked
    return dict(zip(network.state_dict(), theirs.values(), strict=True))


def _torchvision_resnet() -> dict[str, torch.Tensor]:
    """Version 1, the plain recipe that the Spawrious benchmark and DomainBed start from; its names are timm's."""
    from torchvision.models import get_model_weights

    try:
        state: dict[str, torch.Tensor] = get_model_weights(TORCHVISION_RESNET)["IMAGENET1K_V1"].get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise BackendError(_unreachable(TORCHVISION_RESNET, error)) from error
    return state


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is no readable safetensors file: {error}") from error


def _adapted(network: torch.nn.Module, state: dict[str, torch.Tensor], origin: str) -> Mapping[str, torch.Tensor]:
    """Through timm's own reader of published files where one is needed: other names, position embeddings resampled."""
    reader = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if reader is None or not _left(network, state, strict_head=False):
        return state
    try:
        adapted: Mapping[str, torch.Tensor] = reader(state, network)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{origin} does not fit the model: {type(error).__name__} {error}") from error
    return adapted


def _load(network: torch.nn.Module, state: Mapping[str, torch.Tensor], origin: str, *, strict_head: bool) -> None:
    left = _left(network, state, strict_head=strict_head)
    if left:
        raise ArtifactError(
            f"{origin} does not fit the model: {len(left)} tensors are missing or differ, first {left[0]}"
        )
    own = network.state_dict()
    network.load_state_dict(own | {name: state[name] for name in _fitting(own, state)})


def _left(network: torch.nn.Module, state: Mapping[str, torch.Tensor], *, strict_head: bool) -> list[str]:
    """Names of the tensors for which the state has none."""
    own = network.state_dict()
    left = sorted(set(own) - _fitting(own, state))
    if strict_head:
        return left
    head = {id(p) for p in head_of(network).parameters()}
    names = {name for name, p in network.named_parameters() if id(p) in head}
    return [name for name in left if name not in names]


def _fitting(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> set[str]:
    return {name for name, value in state.items() if name in own and own[name].shape == value.shape}


def _takes(option: str, model: str) -> bool:
    """Whether a model's class has such a parameter; built without memory to find its class."""
    import torch

    with torch.device("meta"):
        kind = type(_timm().create_model(model))
    return any(option in inspect.signature(base).parameters for base in kind.__mro__)


def _unreachable(model: str, error: Exception) -> str:
    return f"the hub's weights for {model} cannot be had ({type(error).__name__}); give train.checkpoint a local file"


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise BackendMissing("timm is not installed; run: pip install 'l2r2[train]'") from error
    return timm
