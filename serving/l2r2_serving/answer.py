"""What a photograph's recognition gives, wherever it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from l2r2.types import Prediction


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A prediction and what made it.

    Attributes:
        prediction: Its `latency_ms` begins with "decode". From a server its region has no mask.
        bundle_name: Of the bundle that answered.
        bundle_version: Twelve hexadecimal digits that change with any file of the bundle.
        unrecognized: Metadata source → value, for each of `prediction.unrecognized`.
    """

    prediction: Prediction
    bundle_name: str
    bundle_version: str
    unrecognized: Mapping[str, str] = field(default_factory=dict)
