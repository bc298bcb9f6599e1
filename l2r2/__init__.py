"""Localize to Recognize Robustly: find the thing, look at it; look at the whole scene only if that was not enough.

Names are imported when they are first asked for: a command line that only prints its help needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2r2.bundle import Bundle as Bundle
    from l2r2.bundle import load_bundle as load_bundle
    from l2r2.images import decode as decode
    from l2r2.recognizer import Recognizer as Recognizer
    from l2r2.types import Caution as Caution
    from l2r2.types import Metadata as Metadata
    from l2r2.types import Prediction as Prediction
    from l2r2.types import Region as Region
    from l2r2.types import Stage as Stage
    from l2r2.types import View as View
    from l2r2.types import make_metadata as make_metadata

__all__ = [
    "Bundle",
    "Caution",
    "Metadata",
    "Prediction",
    "Recognizer",
    "Region",
    "Stage",
    "View",
    "decode",
    "load_bundle",
    "make_metadata",
]

__version__ = "0.1.0"

_HOMES = {"Bundle": "bundle", "load_bundle": "bundle", "decode": "images", "Recognizer": "recognizer"}
"""Name → module; the others are of `types`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'types')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
