"""Lightning checkpoints as safetensors + JSON: nothing pickled is written or read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from l2r2.errors import ArtifactError
from l2r2.files import whole_file

_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


class SafetensorsCheckpointIO(CheckpointIO):
    """Tensors of the nested checkpoint go into a safetensors file, the tree around them into its header."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        tensors: dict[str, torch.Tensor] = {}
        tree = _flatten(checkpoint, tensors)
        with whole_file(Path(path)) as beside:
            beside.write_bytes(save(tensors, {"tree": json.dumps(tree)}))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ARG002
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                tree = json.loads(file.metadata()["tree"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is no checkpoint of ours: {error}; delete it to start anew") from error
        result = _restore(tree, tensors)
        assert isinstance(result, dict)
        return result

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {_ITEMS: [[_flatten(key, tensors), _flatten(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_flatten(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_flatten(item, tensors) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArtifactError(f"a checkpoint holds a {type(value).__name__}, which safetensors cannot keep")


def _restore(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _TUPLE in value:
            return tuple(_restore(item, tensors) for item in value[_TUPLE])
        return {_restore(key, tensors): _restore(item, tensors) for key, item in value[_ITEMS]}
    return value
