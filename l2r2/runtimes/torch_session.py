"""timm models in PyTorch, for comparison: safetensors whose header names the model. Nothing pickled is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

import numpy as np

from l2r2.errors import ArtifactError, BackendError
from l2r2.files import whole_file
from l2r2.runtimes.packages import first_line, require
from l2r2.runtimes.tensors import Input, check_feed

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT = "images", "logits"
HEADER: Final = "l2r2.timm"
"""Key of the safetensors header."""
DTYPES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def load_torch() -> ModuleType:
    """The package, and those that the files need.

    Raises:
        BackendMissing: one of them is not installed.
    """
    require("timm", "timm", "train")
    require("safetensors", "safetensors", "train")
    return require("torch", "PyTorch", "train")


class TorchSession:
    """A classifier in evaluation mode on the CPU; `infer` may be called from several threads.

    Attributes:
        inputs: Tensor name → shape; a string is a free axis.
        outputs: Tensor names.
    """

    def __init__(self, path: Path, threads: int = 1, precision: str = "fp32") -> None:
        """Load what `save_timm` wrote.

        Args:
            threads: Of one inference; PyTorch has one such number for the whole process.
            precision: fp32, fp16 or bf16: the weights and the arithmetic; input and output stay float32.
        Raises:
            BackendMissing: PyTorch, timm or safetensors is not installed.
            ArtifactError: the file is missing, damaged, or timm does not know its model.
            BackendError: PyTorch has no int8 for it.
        """
        if precision not in DTYPES:
            raise BackendError(f"runtime torch has no {precision}; expected {', '.join(DTYPES)}")
        torch = load_torch()
        self._dtype = getattr(torch, DTYPES[precision])
        network, size_px = _load(path)
        torch.set_num_threads(threads)
        self._network = network.to(self._dtype).eval().requires_grad_(False)
        self.inputs: dict[str, list[int | str]] = {INPUT: ["batch", 3, size_px, size_px]}
        self.outputs: tuple[str, ...] = (OUTPUT,)
        self._inputs = {INPUT: Input(np.dtype(np.float32), self.inputs[INPUT])}

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once.

        Raises:
            BackendError: the feed does not fit the model, or PyTorch failed.
        """
        import torch

        check_feed("PyTorch", self._inputs, feed)
        images = np.require(feed[INPUT], requirements=["C", "W"])  # PyTorch warns of arrays that may not be written
        try:
            with torch.inference_mode():
                logits = self._network(torch.from_numpy(images).to(self._dtype))
        except Exception as error:
            raise BackendError(f"PyTorch failed: {first_line(error)}") from error
        return {OUTPUT: logits.float().numpy()}


def save_timm(path: Path, network: torch.nn.Module, model: str, classes: int, size_px: int, fixed_size: bool) -> None:
    """Write a timm model for `TorchSession`, whole or not at all.

    Args:
        model: timm's name of the architecture.
        fixed_size: It was built for that one size (timm's img_size), as are those with position embeddings.
    Raises:
        ArtifactError: the place cannot be written.
    """
    from safetensors.torch import save

    header = json.dumps({"model": model, "classes": classes, "size_px": size_px, "fixed_size": fixed_size})
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with whole_file(path) as beside:
        beside.write_bytes(save(state, metadata={HEADER: header}))


def _load(path: Path) -> tuple[torch.nn.Module, int]:
    """The network and its input's side, in pixels."""
    import timm
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        model, size_px = str(header["model"]), int(header["size_px"])
        if model not in timm.list_models():  # timm would look for other names on a hub
            raise ValueError(f"timm {timm.__version__} has no {model!r}")  # noqa: TRY301
        sized = {"img_size": size_px} if header["fixed_size"] else {}
        network = timm.create_model(model, pretrained=False, num_classes=int(header["classes"]), **sized)
        network.load_state_dict(state)
    except Exception as error:  # of safetensors, json, timm and PyTorch
        raise ArtifactError(f"{path} is no timm model of l2r2: {first_line(error)}; export it again") from error
    return network, size_px
