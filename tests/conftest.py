"""What every test runs under: array shapes checked as annotated, and properties that repeat their examples."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a hub

import jaxtyping
from hypothesis import settings

CHECKED = (
    "l2r2.logspace",
    "l2r2.metrics",
    "l2r2.calibration",
    "l2r2.conformal",
    "l2r2.risk",
    "l2r2.priors",
    "l2r2.fusion",
    "l2r2.cascade",
    "l2r2.images",
    "l2r2.views",
    "l2r2.recognizer",
    "l2r2.localization.cache",
    "l2r2.localization.saliency",
    "l2r2.localization.boxes",
    "l2r2.localization.hub",
    "l2r2.localization.owl",
    "l2r2.localization.grounding_dino",
    "l2r2.localization.sam",
    "l2r2.localization.truth",
    "l2r2.localization.detecting",
    "l2r2.localization.frozen",
    "l2r2.localization.preprocessing",
    "l2r2.classification.session",
    "l2r2.runtimes.onnx_runtime",
)
"""Modules whose annotations are enforced; the hook must stand before any of them is imported."""

jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

settings.register_profile("l2r2", derandomize=True, database=None, deadline=None, max_examples=40)
settings.load_profile("l2r2")
