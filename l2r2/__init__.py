"""Localize to Recognize Robustly: find the thing, look at it; look at the whole scene only if that was not enough."""

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
