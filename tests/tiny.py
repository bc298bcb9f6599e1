"""A bundle that is real, tiny and fast, and photographs that it can tell apart by eye.

The localizer finds what is bright; the classifiers look at the mean colour. So a bright object on a dark ground is
found, a uniform photograph has nothing in it, a pure colour is sure of itself and a muddy one asks FULL.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from l2r2.bundle import Bundle, write_bundle
from l2r2.calibration import Temperature
from l2r2.cascade import Policy
from l2r2.config import ImageSettings, SaliencySettings, ViewSettings
from l2r2.fusion import make_operator
from l2r2.manifest import Manifest, PolicyManifest, PriorManifest
from l2r2.priors import count_priors
from l2r2.types import Pixels, Stage, View

CLASSES = ("red", "green", "blue")
RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)
MUDDY = (250, 200, 120)
"""More red than green, but not by much: FG's confidence is about 0.6, below the gate of 0.8."""
DARK = (10, 10, 10)
DARK_GREEN, DARK_BLUE = (0, 70, 0), (0, 0, 70)

LABELS = np.repeat([0, 1, 2], 20)
METADATA = {
    "habitat": ["forest"] * 18 + ["meadow"] * 2 + ["meadow"] * 18 + ["shore"] * 2 + ["shore"] * 18 + ["forest"] * 2,
    "substrate": (["soil", "wood"] * 30),
    "month": [str(1 + i % 12) for i in range(60)],
}
"""Red grows in forests, green on meadows, blue at the shore; substrate and month say nothing much."""


def make_photo(object_rgb: tuple[int, int, int] = RED, ground_rgb: tuple[int, int, int] = DARK) -> Pixels:
    """An object of a third of the width in the middle of a 160×120 ground."""
    photo = np.empty((120, 160, 3), np.uint8)
    photo[:] = ground_rgb
    photo[36:84, 52:108] = object_rgb
    return photo


def make_uniform(rgb: tuple[int, int, int] = RED) -> Pixels:
    """Nothing in it to be found."""
    return np.full((120, 160, 3), rgb, np.uint8)


def encode(photo: Pixels, image_format: str = "PNG", **options: Any) -> bytes:
    """As a file of that format."""
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, image_format, **options)
    return buffer.getvalue()


def make_tiny_manifest(**changes: Any) -> Manifest:
    """The manifest of the tiny bundle, with some of its fields changed."""
    values: dict[str, Any] = {
        "name": "tiny",
        "created": "2025-01-01T00:00:00Z",
        "class_names": CLASSES,
        "images": ImageSettings(),
        "localizer": SaliencySettings(size_px=256),
        "localizer_masks": False,
        "views": {Stage.FG: View.FG_C, Stage.FULL: View.FULL},
        "view": ViewSettings(size_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        "policy": PolicyManifest(temperatures={Stage.FG: (1.0,), Stage.FULL: (1.0,)}, operator="smax", threshold=0.8),
        "prior": PriorManifest(
            alpha=1.0,
            strength=1.0,
            vocabularies={source: tuple(sorted(set(seen))) for source, seen in METADATA.items()},
        ),
        "model_names": {Stage.FG: "mean-colour", Stage.FULL: "mean-colour"},
        "dataset": "tiny",
        "dataset_digest": "0" * 12,
        "run_id": "none",
        "validation": {},
    }
    return Manifest.model_validate({**values, **changes})


def make_tiny_bundle(folder: Path, **changes: Any) -> Bundle:
    """Write a bundle with real ONNX models and counted priors.

    Args:
        folder: Must not exist.
        changes: Fields of the manifest, such as `name` or `policy`.
    """
    manifest = make_tiny_manifest(**changes)
    policy = Policy(
        {stage: Temperature(np.asarray(values)) for stage, values in manifest.policy.temperatures.items()},
        make_operator(manifest.policy.operator, {"t": np.array(manifest.policy.threshold), "weight": np.array(0.5)}),
        manifest.policy.threshold,
    )
    scratch = folder.with_name(folder.name + "-models")
    scratch.mkdir(parents=True)
    models = {
        "localizer": save_localizer(scratch / "localizer.onnx", manifest.localizer.size_px),
        Stage.FG: save_classifier(scratch / "fg.onnx", manifest.view.size_px, gain=2.0),
        Stage.FULL: save_classifier(scratch / "full.onnx", manifest.view.size_px, gain=12.0),
    }
    return write_bundle(folder, manifest, models, policy, count_priors(LABELS, METADATA, len(CLASSES)))


def save_localizer(path: Path, size: int | None) -> Path:
    """Saliency = sigmoid(20 (brightest channel - 0.5)), undoing the localizer's own normalisation; None: any size."""
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    nodes = [
        helper.make_node("Mul", ["photo", "std"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["rgb"]),
        helper.make_node("ReduceMax", ["rgb"], ["brightest"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["brightest", "middle"], ["centred"]),
        helper.make_node("Mul", ["centred", "gain"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["saliency"]),
    ]
    weights = {
        "std": std.reshape(1, 3, 1, 1),
        "mean": mean.reshape(1, 3, 1, 1),
        "middle": np.float32(0.5),
        "gain": np.float32(20.0),
    }
    side: list[int | str] = [size or "height", size or "width"]
    return _save(path, nodes, weights, ("photo", [3, *side]), ("saliency", [1, *side]))


def save_classifier(path: Path, size: int, gain: float) -> Path:
    """Logits = gain × (mean red, mean green, mean blue) of the normalised view."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["view"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weight"], ["logits"]),
    ]
    weights = {"weight": gain * np.eye(3, dtype=np.float32)}
    return _save(path, nodes, weights, ("view", [3, size, size]), ("logits", [3]))


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any],
    given: tuple[str, list[int | str]],
    wanted: tuple[str, list[int | str]],
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, ["n", *given[1]])],
        [helper.make_tensor_value_info(wanted[0], TensorProto.FLOAT, ["n", *wanted[1]])],
        [numpy_helper.from_array(np.asarray(values, np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
