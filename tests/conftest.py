"""What every test runs under: array shapes checked as annotated, and properties that repeat their examples."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a hub
for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))
# Typer reads these when it is imported: messages have no colours and are not wrapped.
os.environ |= {"_TYPER_FORCE_DISABLE_TERMINAL": "1", "COLUMNS": "200"}
os.environ.pop("TERMINAL_WIDTH", None)

import jaxtyping  # noqa: E402
from hypothesis import settings  # noqa: E402

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
