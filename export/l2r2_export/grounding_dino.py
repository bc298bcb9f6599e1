"""Grounding DINO with its caption frozen → ONNX: the text is read once, its features become constants.

The tracer reasons about lengths symbolically. Rounding up again and again (patches, windows, halvings) makes those
expressions explode, so every grid of the backbone's pyramid is given its lengths as symbols of its own, as axes of
extra inputs; in the finished graph these lengths are computed from the photograph's and the extra inputs are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from l2r2.errors import ExportError
from l2r2.localization.frozen import BOXES, PIXELS, SCORES, FrozenPrompt, freeze_prompt
from l2r2.localization.grounding_dino import caption
from l2r2.localization.hub import Checkpoint
from l2r2_export.graphs import OPSET, save_checked
from l2r2_export.tracing import require_room, trace

GRID = "grid"
"""Of the extra inputs' names while tracing."""

EDGE = 1e-6
"""Share of the photograph; far less than any centre of a cell is from 0.01 or 0.99, if it is not exactly there."""

Grid = tuple[int, int, int, int]
"""Height and width of a feature map, and how many windows of attention cover them, in cells and windows."""


class FrozenGroundingDino(nn.Module):
    """The network of a photograph alone. Works within `text_frozen` only."""

    def __init__(self, model: Any, token_ids: torch.Tensor) -> None:
        super().__init__()
        self.model: Any = model
        self.token_ids = nn.Buffer(token_ids)

    def forward(self, pixels: torch.Tensor, *grids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores "n queries" in [0, 1] and boxes "n queries 4" of pixels "n 3 h w"; only the grids' shapes are read."""
        self.model.model.backbone.grids = [grid.shape for grid in grids]
        with _KeepSymbols():
            output = self.model(pixel_values=pixels, input_ids=self.token_ids.expand(pixels.shape[0], -1))
        return output.logits.sigmoid().amax(dim=-1), output.pred_boxes


class GroundingDinoReference:
    """The whole model in torch, text and all, as a session: what an export is held against."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[str]) -> None:
        self._model = checkpoint.model.cpu()
        self._tokens = checkpoint.processor(text=caption(texts), return_tensors="pt")

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the exported graph."""
        pixels = torch.from_numpy(feed[PIXELS])
        tokens = {name: value.expand(len(pixels), -1) for name, value in self._tokens.items()}
        with torch.inference_mode():
            output = self._model(pixel_values=pixels, **tokens)
        return {SCORES: output.logits.sigmoid().amax(dim=-1).numpy(), BOXES: output.pred_boxes.numpy()}


def export_grounding_dino(checkpoint: Checkpoint, texts: Sequence[str], path: Path, opset: int = OPSET) -> FrozenPrompt:
    """Write Grounding DINO as one ONNX file, its text backbone left out.

    The graph takes `pixels`, "batch 3 height width" float32 without padding, of any size that has as many cells as
    queries (the model itself takes no less), and gives `scores`, "batch queries" in [0, 1], each its surest token's,
    and `boxes`, "batch queries 4", centre and size as shares.

    Args:
        checkpoint: With a Swin backbone; is moved to the CPU.
        texts: United in one caption, as `GroundingDinoDetector` does.
        opset: At least 17.
    Raises:
        BackendMissing: onnx or onnxscript is not installed.
        InputError: there is no text, or one is blank.
        ExportError: the prompt is too long, the backbone is another, the model too large, or the exporter or the
            checker refuses it; nothing was written.
        ArtifactError: the place cannot be written.
    """
    what = "detector grounding-dino"
    prompt = freeze_prompt(texts, checkpoint.key)
    model = checkpoint.model.cpu()
    config = model.config.backbone_config
    if config.model_type != "swin" or config.use_absolute_embeddings:
        raise ExportError(
            f"{what} has a backbone of kind {config.model_type!r}; expected swin without absolute positions, as the "
            "published checkpoints have it; choose one of those"
        )
    tokens = checkpoint.processor(text=caption(texts), return_tensors="pt")
    length, longest = tokens["input_ids"].shape[1], model.config.max_text_len
    if length > longest:
        raise ExportError(f"{what}: the prompt has {length} tokens; expected at most {longest}, shorten it")
    with text_frozen(model, tokens):
        require_room([model], what)
        size = example_size(config.patch_size, config.window_size, len(config.depths))
        grids = grids_of(*size, config.patch_size, config.window_size, len(config.depths))
        examples = {PIXELS: torch.zeros(2, 3, *size)} | {f"{GRID}{i}": torch.zeros(g) for i, g in enumerate(grids)}
        free = {PIXELS: {0: "batch", 2: "height", 3: "width"}}
        free |= {f"{GRID}{i}": {axis: f"{GRID}{i}_{axis}" for axis in range(4)} for i in range(len(grids))}
        least = {f"{GRID}{i}_{axis}": 3 for i in range(len(grids)) for axis in range(2)}
        network = FrozenGroundingDino(model, tokens["input_ids"])
        graph = trace(network, examples, free, [SCORES, BOXES], what, opset, least)
    compute_grids(graph.graph, config.patch_size, config.window_size, what)
    save_checked(graph, path, what)
    return prompt


@contextmanager
def text_frozen(model: Any, tokens: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within, the model reads no text but knows what `tokens` say, and its backbone takes its grids as given.

    Equal to the model itself (to rounding: the backbone's attention is computed in steps).
    """
    from transformers.models.grounding_dino import modeling_grounding_dino as module

    core = model.model
    ids = tokens["input_ids"]
    mask, positions = module.generate_masks_with_special_tokens_and_transfer_map(ids, core.special_tokens)
    with torch.no_grad():
        read = core.text_backbone(ids, mask[:, None], tokens.get("token_type_ids"), positions)
        features = core.text_projection(read.last_hidden_state)

    def known(ids: torch.Tensor, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return mask.expand(ids.shape[0], -1, -1), positions.expand(ids.shape[0], -1)

    config = core.backbone.conv_encoder.model.config
    changes: list[tuple[Any, str, Any]] = [
        (core, "text_backbone", _Constant(features)),
        (core, "text_projection", nn.Identity()),
        (core, "backbone", _SwinPyramid(core.backbone)),
        (module, "generate_masks_with_special_tokens_and_transfer_map", known),
        (module, "torch_compilable_check", lambda *_, **__: None),  # a check of values, which no graph can hold
        (config, "_attn_implementation", "eager"),  # the fused one leaves strides that the exporter cannot view
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    core.generate_encoder_output_proposals = partial(_proposals, core)
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        del core.generate_encoder_output_proposals


class _Constant(nn.Module):
    """A text backbone that has read its text already."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = nn.Buffer(features)

    def forward(self, ids: torch.Tensor, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.features.expand(ids.shape[0], -1, -1))


class _SwinPyramid(nn.Module):
    """Swin (Liu et al. 2021) with the lengths of each grid given: padded to them, never rounded up.

    Attributes:
        grids: Set before each call; one `Grid` a stage.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.swin = backbone.conv_encoder.model
        self.position_embedding = backbone.position_embedding
        self.grids: Sequence[Sequence[int]] = ()

    def forward(self, pixels: torch.Tensor, _: torch.Tensor) -> tuple[list[Any], list[torch.Tensor]]:
        """Feature maps with their masks, which hide nothing, and their position embeddings."""
        embeddings, stages = self.swin.swin.embeddings, self.swin.swin.encoder.layers
        patches = embeddings.patch_embeddings
        high, wide = patches.patch_size
        height, width = self.grids[0][:2]
        pixels = pad(pixels, (0, wide * width - pixels.shape[3], 0, high * height - pixels.shape[2]))
        cells = embeddings.norm(patches.projection(pixels).permute(0, 2, 3, 1))
        maps, positions = [], []
        for i, (stage, grid) in enumerate(zip(stages, self.grids, strict=True)):
            for block in stage.blocks:
                cells = _block(block, cells, grid)
            if f"stage{i + 1}" in self.swin.out_features:
                features = self.swin.hidden_states_norms[f"stage{i + 1}"](cells).permute(0, 3, 1, 2)
                shown = torch.ones((features.shape[0], *features.shape[2:]), dtype=torch.bool)
                maps.append((features, shown))
                positions.append(self.position_embedding(features, shown))
            if stage.downsample is not None:
                cells = _halved(stage.downsample, cells, self.grids[i + 1])
        return maps, positions


def _block(block: Any, cells: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Attention within shifted windows, then the MLP, on cells "n h w c"."""
    height, width, down, across = grid
    n, c, size = cells.shape[0], cells.shape[3], block.window_size
    windows = pad(block.layernorm_before(cells), (0, 0, 0, size * across - width, 0, size * down - height))
    windows = block.cyclic_shift(windows).view(n, down, size, across, size, c).transpose(2, 3)
    mask = block.get_attn_mask(size * down, size * across, dtype=cells.dtype, device=cells.device)
    attended, _ = block.attention(windows.reshape(n * down * across, size * size, c), mask)
    attended = attended.view(n, down, across, size, size, c).transpose(2, 3)
    attended = block.cyclic_shift(attended.reshape(n, size * down, size * across, c), reverse=True)
    cells = cells + attended[:, :height, :width]
    return cells + block.mlp(block.layernorm_after(cells))


def _halved(merging: Any, cells: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Each two by two cells as one, column by column."""
    height, width = grid[:2]
    cells = pad(cells, (0, 0, 0, 2 * width - cells.shape[2], 0, 2 * height - cells.shape[1]))
    cells = cells.view(cells.shape[0], height, 2, width, 2, cells.shape[3]).permute(0, 1, 3, 4, 2, 5)
    return merging.reduction(merging.norm(cells.flatten(3)))


def _proposals(
    core: Any, encoded: torch.Tensor, _: torch.Tensor, shapes: Sequence[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries "n cells d" and their first boxes "1 cells 4" before the sigmoid, as the model makes them of photographs
    without padding; a box whose centre is within a hundredth of the border is none.

    A grid of 50 cells, which a side of 800 pixels has, holds centres at exactly 0.99: whether they count would depend
    on how a runtime rounds a division, and with it which queries there are and their order. `EDGE` decides as torch.
    """
    levels = []
    for level, (height, width) in enumerate(shapes):
        y = ((torch.arange(height) + 0.5) / height)[:, None].expand(-1, width)
        x = ((torch.arange(width) + 0.5) / width)[None].expand(height, -1)
        side = torch.full_like(x, 0.05 * 2.0**level)
        levels.append(torch.stack([x, y, side, side], dim=-1).flatten(0, 1))
    boxes = torch.cat(levels)[None]
    outside = ((boxes < 0.01 + EDGE) | (boxes > 0.99 - EDGE)).any(dim=-1, keepdim=True)
    queries = core.enc_output_norm(core.enc_output(encoded.masked_fill(outside, 0.0)))
    return queries, torch.log(boxes / (1 - boxes)).masked_fill(outside, float("inf"))


class _KeepSymbols(TorchFunctionMode):
    """Three calls of the model that would fix lengths, or need sequences in the graph, done with others."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.linspace:  # of unit steps
            return torch.arange(args[2], **kwargs) + args[0]
        if function is torch.as_tensor and isinstance(args[0], list):
            dtype = kwargs.get("dtype")
            return torch.stack([torch.stack([torch.scalar_tensor(v, dtype=dtype) for v in row]) for row in args[0]])
        if function is torch.Tensor.split and isinstance(args[1], list):
            starts = [sum(args[1][:i]) for i in range(len(args[1]))]
            dim = kwargs.get("dim", 0)
            return tuple(args[0].narrow(dim, start, size) for start, size in zip(starts, args[1], strict=True))
        return function(*args, **kwargs)


def grids_of(height: int, width: int, patch: int, window: int, stages: int) -> list[Grid]:
    """The pyramid's grids for a photograph of that many pixels."""
    grids = []
    high, wide = -(-height // patch), -(-width // patch)
    for _ in range(stages):
        grids.append((high, wide, -(-high // window), -(-wide // window)))
        high, wide = -(-high // 2), -(-wide // 2)
    return grids


def example_size(patch: int, window: int, stages: int) -> tuple[int, int]:
    """A small height and width with padding in every step and no length in common, so that none is taken for another.

    The tracer follows its example: where the example needs no padding, it would write a graph that never pads.
    """
    sides: list[int] = []
    seen: set[int] = set()
    for k in range(2, 1000):
        side = patch * (2 ** (stages - 1) * k + 1) - 1  # every grid but the last is odd
        lengths = [length for grid in grids_of(side, side, patch, window, stages) for length in grid[::2]]
        if all(height % window and height > window for height in lengths[::2]) and not seen & set(lengths):
            sides.append(side)
            seen |= set(lengths)
        if len(sides) == 2:
            return sides[0], sides[1]
    raise ExportError(f"no example size for patches of {patch} and windows of {window} pixels; report it")


def compute_grids(graph: onnx.GraphProto, patch: int, window: int, what: str) -> None:
    """Replace the extra inputs by what their shapes are for any photograph, computed from `pixels`.

    Raises:
        ExportError: the graph reads more of an extra input than single lengths.
    """
    extra = [value.name for value in graph.input if value.name != PIXELS]
    helper = onnx.helper
    nodes = []

    def rounded_up(source: str, divisor: int, name: str) -> str:
        constants = {f"{name}_add": divisor - 1, f"{name}_by": divisor}
        for constant, value in constants.items():
            tensor = helper.make_tensor(constant, onnx.TensorProto.INT64, [1], [value])
            nodes.append(helper.make_node("Constant", [], [constant], value=tensor))
        nodes.append(helper.make_node("Add", [source, f"{name}_add"], [f"{name}_sum"]))
        nodes.append(helper.make_node("Div", [f"{name}_sum", f"{name}_by"], [name]))
        return name

    lengths: dict[tuple[str, int], str] = {}
    for axis in range(2):
        length = f"{PIXELS}_{axis}"
        nodes.append(helper.make_node("Shape", [PIXELS], [length], start=2 + axis, end=3 + axis))
        for i, grid in enumerate(extra):
            length = rounded_up(length, 2 if i else patch, f"{grid}_{axis}")
            lengths[grid, axis] = length
            lengths[grid, axis + 2] = rounded_up(length, window, f"{grid}_{axis + 2}")
    for node in graph.node:
        for grid in set(extra) & set(node.input):
            given = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type != "Shape" or given.get("end") != given.get("start", 0) + 1:
                raise ExportError(f"{what}: {node.op_type} reads {grid}; expected single lengths only, report it")
            known = lengths[grid, given.get("start", 0)]
            node.CopyFrom(helper.make_node("Identity", [known], list(node.output)))
    kept = [*nodes, *graph.node]
    inputs = [value for value in graph.input if value.name not in extra]
    del graph.node[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.extend(inputs)
