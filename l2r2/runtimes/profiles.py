"""Which shapes an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from l2r2.errors import ConfigError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Of one input: the smallest shape, the one to be fastest at, the largest; axis by axis.

    Raises:
        ConfigError: their ranks differ, or not 1 ≤ min ≤ opt ≤ max.
    """

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        ordered = len(self.min) == len(self.opt) == len(self.max) and all(
            1 <= low <= best <= high for low, best, high in zip(self.min, self.opt, self.max, strict=True)
        )
        if not ordered:
            raise ConfigError(
                f"shapes {self.min}, {self.opt}, {self.max} are no profile; expected the same number of axes and "
                "1 <= min <= opt <= max on each"
            )


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """An optimization profile.

    Attributes:
        inputs: Tensor name → its shapes. An input without a free axis may be left out.
    """

    inputs: Mapping[str, ShapeRange]

    @classmethod
    def of_batches(
        cls, inputs: Mapping[str, Sequence[int | str]], smallest: int = 1, best: int = 1, largest: int = 8
    ) -> ShapeProfile:
        """The profile of a model whose only free axis is its batch.

        Args:
            inputs: As a session's: name → shape, a string is a free axis.
        Raises:
            ConfigError: another axis is free, or not 1 ≤ smallest ≤ best ≤ largest.
        """
        ranges = {}
        for name, (batch, *rest) in inputs.items():
            fixed = tuple(axis for axis in rest if isinstance(axis, int))
            if len(fixed) < len(rest):
                raise ConfigError(
                    f"{name} has free axes besides the batch: {[batch, *rest]}; give a profile of its own"
                )
            batches = (batch,) * 3 if isinstance(batch, int) else (smallest, best, largest)
            ranges[name] = ShapeRange(*((size, *fixed) for size in batches))
        return cls(ranges)

    def __str__(self) -> str:
        """One line that is the same for the same profile."""
        return ";".join(
            f"{name}:" + "..".join("x".join(map(str, shape)) for shape in (shapes.min, shapes.opt, shapes.max))
            for name, shapes in sorted(self.inputs.items())
        )
