"""What every peer does with a photograph; it runs in the peer's environment and chooses by its variables.

L2R2_BENCH_BUNDLE       folder
L2R2_BENCH_DEPLOYMENT   runtime/precision
L2R2_BENCH_TASK         cascade: `OpenBundle.answer`, as our service; both: see `_both`
L2R2_BENCH_WORKERS      processes or replicas
L2R2_BENCH_PORT         where to listen
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l2r2.bundle import load_bundle
from l2r2.images import decode
from l2r2.types import Stage
from l2r2.views import normalize, render
from l2r2_serving.answer import Answer
from l2r2_serving.bundles import OpenBundle, open_bundle

WORKERS = int(os.environ.get("L2R2_BENCH_WORKERS", "1"))
PORT = int(os.environ.get("L2R2_BENCH_PORT", "8000"))

Answering = Callable[[bytes], dict[str, Any]]
"""Encoded photograph → what a JSON answer says."""


def answering(told: Mapping[str, str] = os.environ) -> Answering:
    """Load the models of one worker and run each once."""
    runtime, precision = told["L2R2_BENCH_DEPLOYMENT"].split("/")
    opened = open_bundle(load_bundle(Path(told["L2R2_BENCH_BUNDLE"])), runtime, precision)
    opened.warm_up()
    if told["L2R2_BENCH_TASK"] == "both":
        return _both(opened)
    return lambda data: _told(opened.answer(data, {}, 5))


def _both(opened: OpenBundle) -> Answering:
    """As one writes it first: decode all pixels, locate, always run both classifiers, let the same policy decide."""
    recognizer, settings = opened.recognizer, opened.recognizer.view_settings

    def answer(data: bytes) -> dict[str, Any]:
        photo = decode(data, opened.manifest.images)
        (region,) = recognizer.localizer.locate([photo])
        logits = {
            stage: recognizer.classifiers[stage].logits(
                normalize([render(photo, region, recognizer.views[stage], settings)], settings)
            )
            for stage in Stage
        }
        found, log_prior = np.array([region is not None]), recognizer.priors.log_prior([{}])
        decision = recognizer.policy.decide(logits[Stage.FG], logits[Stage.FULL], found, log_prior)
        belief = np.exp(decision.belief[0])
        return {
            "candidates": [
                {"name": recognizer.class_names[k], "probability": float(belief[k])} for k in np.argsort(-belief)[:5]
            ],
            "region": None if region is None else {"box_px": region.box_xyxy_px, "score": region.score},
            "size_px": [photo.shape[1], photo.shape[0]],
            "withheld": bool(decision.withheld[0]),
            "bundle": {"name": opened.name, "version": opened.version},
        }

    return answer


def _told(answer: Answer) -> dict[str, Any]:
    """What `RecognizeResponse` says, too."""
    prediction = answer.prediction
    region, why, among = prediction.region, prediction.explanation, prediction.prediction_set
    return {
        "candidates": [{"name": c.name, "probability": c.probability} for c in prediction.candidates],
        "region": region and {"box_px": region.box_xyxy_px, "score": region.score},
        "size_px": prediction.size_px,
        "stages": {str(stage): prediction.stage_confidence[stage] for stage in prediction.stages},
        "explanation": why and {"rival": why.rival, "total": why.total, "parts": dict(why.parts)},
        "cautions": [str(caution) for caution in prediction.cautions],
        "bundle": {"name": answer.bundle_name, "version": answer.bundle_version},
        "latency_ms": dict(prediction.latency_ms),
        "prediction_set": among and {"members": [c.name for c in among.members], "coverage": among.coverage},
        "withheld": prediction.withheld,
    }
