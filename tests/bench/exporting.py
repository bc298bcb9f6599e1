"""What other runtimes and precisions save on the demo's bundle, what they cost in accuracy, and what our code adds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l2r2.bundle import Bundle, load_bundle
from l2r2.datasets import Dataset, load_dataset
from l2r2.errors import L2R2Error
from l2r2.files import write_text
from l2r2.images import read
from l2r2.metrics import bootstrap
from l2r2.recognizer import Recognizer
from l2r2.types import Stage
from l2r2.views import normalize, render
from l2r2_export.auto import all_choices
from l2r2_export.deploy import Choice, deploy
from l2r2_export.yardstick import Yardstick, measure_reference
from tests.bench.measure import Figure, of

BUNDLE, DATA, WORK = Path("mlruns/bundles/demo"), Path("data/starter"), Path("mlruns/bench")
SLOWER = {"fp16", "bf16"}
"""Than FP32 on CPUs without AMX: OpenVINO ran the demo's classifiers at 0.7 of its speed."""

PAIRS = 60
LOCALIZER_PAIRS = 24
WRAPPER_PAIRS = 300


def figures() -> Iterator[tuple[str, Figure]]:
    """Ratios to FP32 ONNX Runtime, one thread, one photograph at a time, in alternating pairs.

    Points lost are of the photographs of all test sets, which nothing was chosen on: the larger loss of FG and FULL.
    The deployments are made once and kept in `WORK`.
    """
    if not (BUNDLE.is_dir() and DATA.is_dir()):
        print("exporting: no demo bundle or data here; run make demo first")
        return
    dataset = load_dataset(DATA)
    bundles = _deployed(load_bundle(BUNDLE), dataset)
    reference = load_bundle(BUNDLE).recognizer(threads=1)
    others = {name: bundle.recognizer(*name.split("/")[:2]) for name, bundle in bundles.items()}
    paths = [path for name in dataset.test_sets for path in dataset.split(name).paths()]
    photos = [read(paths[i]) for i in np.linspace(0, len(paths) - 1, PAIRS).astype(int)]
    inputs = _inputs(reference, photos)
    classifying = {
        name: _pairs(lambda i, r=reference: _classify(r, inputs, i), lambda i, r=other: _classify(r, inputs, i), PAIRS)
        for name, other in others.items()
    }
    locating = {
        name: _pairs(
            lambda i, r=reference: r.localizer.locate([photos[i]]),
            lambda i, r=other: r.localizer.locate([photos[i]]),
            LOCALIZER_PAIRS,
        )
        for name, other in others.items()
    }
    for what, ratios in (("classifiers", classifying), ("localizer", locating)):
        for name, values in ratios.items():
            print(f"  {what} {name}: {np.median(values):.2f} ×")
    best = max(classifying, key=lambda name: float(np.median(classifying[name])))
    yield "export.classifier_speedup", of(classifying[best], "×")
    yield "export.classifier_points_lost", _points_lost(reference, others[best], dataset)
    quickest = max(locating, key=lambda name: float(np.median(locating[name])))
    yield "export.localizer_speedup", of(locating[quickest], "×")
    for runtime, (ours, raw) in _wrapped(load_bundle(BUNDLE), inputs[Stage.FG][:1]).items():
        ratios = _pairs(lambda _i, run=ours: run(), lambda _i, run=raw: run(), WRAPPER_PAIRS)
        yield f"export.wrapper_percent_{runtime}", of([100 * (ratio - 1) for ratio in ratios], "%")


def _deployed(bundle: Bundle, dataset: Dataset) -> dict[str, Bundle]:
    """Deployment → a copy of the bundle that has it; what does not pass parity is told and left out."""
    yardstick: Yardstick | None = None
    found = {}
    for choice in [each for each in all_choices() if each.precision not in SLOWER]:
        place = WORK / bundle.version / choice.name.replace("/", "-")
        refused = place.with_suffix(".refused")
        if not (place.is_dir() or refused.is_file()):
            yardstick = yardstick or measure_reference(bundle, dataset)
            try:
                _deploy(bundle, yardstick, choice, place)
            except L2R2Error as error:
                write_text(refused, f"{error}\n")
        if refused.is_file():
            print(f"  {choice.name}: {refused.read_text(encoding='utf-8').strip()}")
        else:
            found[choice.name] = load_bundle(place)
    return found


def _deploy(bundle: Bundle, yardstick: Yardstick, choice: Choice, place: Path) -> None:
    copy = place.with_name(f".{place.name}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle.folder, copy)
    deploy(load_bundle(copy), yardstick, choice)
    copy.replace(place)


def _inputs(recognizer: Recognizer, photos: list[Any]) -> dict[Stage, np.ndarray]:
    settings = recognizer.view_settings
    regions = [recognizer.localizer.locate([photo])[0] for photo in photos]
    return {
        stage: normalize(
            [
                render(photo, region, recognizer.views[stage], settings)
                for photo, region in zip(photos, regions, strict=True)
            ],
            settings,
        )
        for stage in Stage
    }


def _classify(recognizer: Recognizer, inputs: Mapping[Stage, np.ndarray], place: int) -> None:
    for stage in Stage:
        recognizer.classifiers[stage].logits(inputs[stage][place : place + 1])


def _pairs(first: Callable[[int], object], second: Callable[[int], object], n: int) -> list[float]:
    """Time of the first over that of the second, after a round that warms up."""
    ratios = []
    for number in range(n + 2):
        times = []
        for run in (first, second) if number % 2 else (second, first):
            start = time.perf_counter()
            run(max(number - 2, 0))
            times.append(time.perf_counter() - start)
        before, after = times if number % 2 else times[::-1]
        ratios.append(before / after)
    return ratios[2:]


def _points_lost(reference: Recognizer, other: Recognizer, dataset: Dataset) -> Figure:
    worst: Figure | None = None
    settings = reference.view_settings
    parts = [dataset.split(name) for name in dataset.test_sets]
    labels = np.concatenate([part.labels() for part in parts])
    groups = np.concatenate([part.groups() for part in parts])
    answers: dict[Stage, list[tuple[int, int]]] = {stage: [] for stage in Stage}
    for path in [path for part in parts for path in part.paths()]:
        photo = read(path)
        (region,) = other.localizer.locate([photo])
        for stage in Stage:
            image = normalize([render(photo, region, reference.views[stage], settings)], settings)
            before, after = (each.classifiers[stage].logits(image)[0].argmax() for each in (reference, other))
            answers[stage].append((int(before), int(after)))
    for rows in answers.values():
        before, after = np.array(rows).T
        lost = bootstrap(100.0 * ((before == labels).astype(np.float64) - (after == labels)), groups)
        if worst is None or lost.value > worst["value"]:
            worst = Figure(value=lost.value, unit="points", n=lost.n, low=lost.low, high=lost.high)
    assert worst is not None
    return worst


def _wrapped(bundle: Bundle, image: np.ndarray) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Runtime → our call, and the same model through the runtime's own session."""
    from l2r2.runtimes import open_session

    file = bundle.folder / bundle.manifest.reference.models["FG"].file
    ours = {runtime: open_session(file, runtime) for runtime in ("onnxruntime", "openvino")}
    name = next(iter(ours["onnxruntime"].inputs))
    raw_onnx = ours["onnxruntime"]._session  # type: ignore[attr-defined]
    request = ours["openvino"]._compiled.create_infer_request()  # type: ignore[attr-defined]
    return {
        "onnxruntime": (lambda: ours["onnxruntime"].infer({name: image}), lambda: raw_onnx.run(None, {name: image})),
        "openvino": (
            lambda: ours["openvino"].infer({name: image}),
            lambda: request.infer({name: image}, share_inputs=True),
        ),
    }
