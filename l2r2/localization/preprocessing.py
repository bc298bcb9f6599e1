"""From a photograph to a network's pixels as the network's own processor makes them, with numpy and Pillow alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped, UInt8
from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt

from l2r2.config import Settings
from l2r2.types import Pixels

Triple = tuple[float, float, float]


class Preprocessing(Settings):
    """What a processor does, read from it at export; part of a bundle."""

    fit: Literal["keep", "stretch", "square", "corner"]
    """keep: the aspect stays (Grounding DINO); stretch: squashed to the size (OWL-ViT); square: padded to a square,
    then scaled (OWLv2); corner: scaled by the longer side and normalised, then padded to a square (SAM)."""
    size_px: tuple[PositiveInt, PositiveInt]
    """keep: the shorter side, and the most that the longer may be. Else height and width."""
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    """With antialiasing; square has a rule of its own (a blur, then bilinear)."""
    rescale: PositiveFloat = 1 / 255
    """Factor of the values [0, 255]."""
    mean: Triple
    """Subtracted after `rescale`; red, green, blue."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    pad_value: float = Field(0.0)
    """Of the padding: before the mean is subtracted for square, after it for corner."""


@dataclass(frozen=True, slots=True)
class Taps:
    """A linear resampling of one axis: target i is the sum over t of weight[i, t] × source[index[i, t]]."""

    index: Int64[np.ndarray, "size taps"]
    weight: Float[np.ndarray, "size taps"]


def network_size(height: int, width: int, settings: Preprocessing) -> tuple[int, int]:
    """Height and width of a photograph once scaled, padding not counted.

    Source: the rules of DETR's processor (keep) and of Segment Anything (corner).
    """
    if settings.fit == "corner":
        scale = max(settings.size_px) * 1.0 / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)
    if settings.fit != "keep":
        return settings.size_px
    short, long = sorted((height, width))
    shortest, longest = settings.size_px
    exact = float(shortest) if long / short * shortest <= longest else longest * short / long
    side = round(exact)
    other = long if side == short else int(exact * long / short)
    return (side, other) if height <= width else (other, side)


def network_input(photo: Pixels, settings: Preprocessing) -> Float32[np.ndarray, "3 high wide"]:
    """What the network is fed: CHW, normalised."""
    size = network_size(photo.shape[0], photo.shape[1], settings)
    if settings.fit == "square":
        values = _padded_square(photo, settings)
    else:
        values = np.asarray(_scaled(photo, size, settings), np.float32) * np.float32(settings.rescale)
    values -= np.array(settings.mean, np.float32)
    values /= np.array(settings.std, np.float32)
    if settings.fit == "corner":
        high, wide = settings.size_px
        values = np.pad(
            values, ((0, high - size[0]), (0, wide - size[1]), (0, 0)), constant_values=np.float32(settings.pad_value)
        )
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _scaled(photo: Pixels, size: tuple[int, int], settings: Preprocessing) -> UInt8[np.ndarray, "high wide 3"]:
    """As the processor: SAM's is Pillow, the others' torchvision on 8-bit values, which Pillow only comes near."""
    if settings.fit == "corner":
        return np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    across = _rescaled(photo.swapaxes(0, 1), size[1], settings.resample).swapaxes(0, 1)
    return _rescaled(across, size[0], settings.resample)


def _rescaled(values: UInt8[np.ndarray, "h w 3"], target: int, method: str) -> UInt8[np.ndarray, "target w 3"]:
    """Rows to another number of rows in whole numbers, bit by bit as torchvision does."""
    if target == len(values):
        return values
    taps = antialiased_taps(len(values), target, method)
    largest = float(taps.weight.max())
    bits = next(b for b in range(23) if b == 22 or int(0.5 + largest * 2 ** (b + 1)) >= 2**15)
    whole = np.trunc(taps.weight * 2**bits + np.copysign(0.5, taps.weight)).astype(np.int32)
    total = _along_rows(np.ascontiguousarray(values), taps.index, whole) + (1 << bits >> 1)
    return np.clip(total >> bits, 0, 255).astype(np.uint8)


def antialiased_taps(source: int, target: int, method: str) -> Taps:
    """A triangle or Keys' cubic (a = -0.5), as wide as what a target pixel covers, between the centres of pixels."""
    scale = source / target
    wide = max(scale, 1.0)
    support = (2.0 if method == "bicubic" else 1.0) * wide
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), source)
    index = first[:, None] + np.arange(2 * math.ceil(support) + 1)
    x = np.abs((index - centre[:, None] + 0.5) / wide)
    if method == "bicubic":
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = np.where(x < 1, near, np.where(x < 2, far, 0))
    else:
        weight = np.maximum(1 - x, 0)
    weight = np.where(index < end[:, None], weight, 0)
    return Taps(np.minimum(index, source - 1), weight / weight.sum(axis=1, keepdims=True))


def linear_taps(source: int, target: int, sigma: float = 0.0) -> Taps:
    """Bilinear interpolation between the centres of pixels, after a Gaussian blur of that many pixels.

    Beyond the borders the blur sees the mirror image and the interpolation the last pixel, as torch has it. Without a
    blur it does not antialias.
    """
    scale = np.float32(source) / np.float32(target)  # 32 bits, so that a position falls where torch's does
    centre = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    left = np.minimum(centre.astype(np.int64), source - 1)
    share = np.where(left < source - 1, centre - left, 0)[:, None].astype(np.float32)
    reach = math.ceil(3 * sigma)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else np.ones(1)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    weight = (1 - share) * np.append(kernel, np.float32(0)) + share * np.append(np.float32(0), kernel)
    index = left[:, None] + np.arange(-reach, reach + 2)
    last = source - 1
    return Taps(np.clip(last - np.abs(last - np.abs(index)), 0, last), weight)


def resample(values: Shaped[np.ndarray, "h w *c"], rows: Taps, columns: Taps) -> Float32[np.ndarray, "r s *c"]:
    """Rows first, then columns. Indices past the end read zero."""
    down = _along_rows(values, *_zero_past_end(rows, len(values)))
    across = np.ascontiguousarray(down.swapaxes(0, 1))
    return _along_rows(across, *_zero_past_end(columns, len(across))).swapaxes(0, 1)


def _zero_past_end(taps: Taps, length: int) -> tuple[np.ndarray, np.ndarray]:
    inside = taps.index < length
    return np.where(inside, taps.index, 0), np.where(inside, taps.weight, 0).astype(np.float32)


def _along_rows(values: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sums of rows, in the weights' type; a tap at a time, which keeps the memory small."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    total = np.zeros((len(index), *values.shape[1:]), weight.dtype)
    for tap in range(index.shape[1]):
        total += weight[:, tap].reshape(shape) * values[index[:, tap]]
    return total


def _padded_square(photo: Pixels, settings: Preprocessing) -> Float32[np.ndarray, "high wide 3"]:
    """OWLv2's way: pad below and right to a square, blur against aliasing, interpolate.

    All of it is linear, so it is done at once and the padding is never computed.
    """
    side = max(photo.shape[:2])
    sigmas = [max((side / size - 1) / 2, 0.0) for size in settings.size_px]
    if not all(sigmas):  # the processor blurs both ways or not at all
        sigmas = [0.0, 0.0]
    rows, columns = (linear_taps(side, size, sigma) for size, sigma in zip(settings.size_px, sigmas, strict=True))
    values = resample(photo, rows, columns) * np.float32(settings.rescale)
    if settings.pad_value:
        covered = resample(np.ones(photo.shape[:2], np.float32), rows, columns)
        values += np.float32(settings.pad_value) * (1 - covered[..., None])
    return values
