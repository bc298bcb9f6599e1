"""What decoding no finer than needed saves at 12 megapixels, and how often the answer stays the same."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from l2r2.bundle import load_bundle
from l2r2.datasets import load_dataset
from l2r2.images import Photograph, decode
from l2r2.recognizer import size_of
from l2r2.types import Stage
from l2r2.views import wanted_scale
from tests.bench.measure import Figure, of

BUNDLE, DATA = Path("mlruns/bundles/demo"), Path("data/starter")
SIZE = (4000, 3000)
PHOTOGRAPHS = 48


def figures() -> Iterator[tuple[str, Figure]]:
    """Ratios of full to scaled decoding, in alternating pairs, with the scales that the bundle asks for; agreement of
    the whole cascade's answers. The photographs are the starter's test sets, enlarged: sharp 12 MP ones need a camera.
    """
    if not (BUNDLE.is_dir() and DATA.is_dir()):
        print("decoding: no demo bundle or data here; run make demo first")
        return
    recognizer = load_bundle(BUNDLE).recognizer()
    ratios, same = [], []
    for data in _photographs():
        photo = Photograph(data)
        (scaled,) = recognizer.recognize([photo])
        start = time.perf_counter()
        pixels = decode(data)
        whole_s = time.perf_counter() - start
        again = Photograph(data)
        start = time.perf_counter()
        again.at(2.0 * 320 / min(size_of(again)))
        for stage in scaled.stages:
            view = recognizer.views[stage]
            again.at(wanted_scale(size_of(again), scaled.region, view, recognizer.view_settings))
        ratios.append(whole_s / (time.perf_counter() - start))
        (whole,) = recognizer.recognize([pixels])
        same.append(float(whole.answer.index == scaled.answer.index and whole.stages == scaled.stages))
        assert Stage.FG in scaled.stages or scaled.region is None
    yield "decode.speedup_12mp", of(ratios, "×")
    share = float(np.mean(same))
    yield "decode.agreement", Figure(value=share, unit="share", n=len(same), low=share, high=share)


def _photographs() -> Iterator[bytes]:
    dataset = load_dataset(DATA)
    paths = [path for name in dataset.test_sets for path in dataset.split(name).paths()]
    for place in np.linspace(0, len(paths) - 1, PHOTOGRAPHS).astype(int):
        buffer = io.BytesIO()
        with Image.open(paths[place]) as image:
            size = SIZE if image.width >= image.height else SIZE[::-1]
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()
