"""What goes into a model: names, types and shapes, and whether a feed fits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from l2r2.errors import BackendError

FREE = "?"
"""A free axis, where the runtime does not keep its name."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a model.

    Attributes:
        dtype: Of the arrays that it takes.
        shape: A string is a free axis.
    """

    dtype: np.dtype
    shape: list[int | str]


def check_feed(title: str, inputs: Mapping[str, Input], feed: Mapping[str, np.ndarray]) -> None:
    """For runtimes that would convert, reuse or read past what does not fit, and say nothing.

    Raises:
        BackendError: an input is missing, unknown, of another type or of another shape.
    """
    if feed.keys() != inputs.keys():
        raise BackendError(f"{title} failed: the feed has {sorted(feed)}; expected {sorted(inputs)}")
    for name, tensor in inputs.items():
        array = feed[name]
        fits = len(array.shape) == len(tensor.shape) and all(
            isinstance(wanted, str) or got == wanted for got, wanted in zip(array.shape, tensor.shape, strict=True)
        )
        if array.dtype != tensor.dtype or not fits:
            got = f"{array.dtype} {list(array.shape)}"
            raise BackendError(f"{title} failed: {name} is {got}; expected {tensor.dtype} {tensor.shape}")
