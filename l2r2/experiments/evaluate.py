"""A bundle, judged as it will serve: its own models, its own Recognizer, photographs from files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from l2r2.bundle import Bundle
from l2r2.datasets import Dataset
from l2r2.errors import DatasetError
from l2r2.experiments.children import Progress
from l2r2.experiments.localizing import region_cache
from l2r2.experiments.report import PREDICTIONS
from l2r2.experiments.tables import accuracies
from l2r2.files import write_text
from l2r2.images import read_photograph
from l2r2.manifest import Deployment
from l2r2.metrics import Interval, bootstrap
from l2r2.recognizer import Recognizer
from l2r2.tracking import Store
from l2r2.types import Prediction, Stage

STAGES = ("decode", "locate", "render FG", "classify FG", "render FULL", "classify FULL", "fuse")
BATCH = 16


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a bundle reached.

    Attributes:
        sets: Set → system → accuracy. The cascade's rows are the bundle's own; the others, if its run is at hand, that
            run's.
        skipped_full: Set → share of photographs that FG answered alone, without metadata.
        stage_ms: Stage → median wall time a photograph, one at a time, one thread.
        timed: How many photographs that is of.
    """

    sets: Mapping[str, Mapping[str, Interval]]
    skipped_full: Mapping[str, float]
    stage_ms: Mapping[str, float]
    timed: int
    bundle: Path

    def save(self, path: Path) -> None:
        """Write as JSON."""
        sets = {
            name: {
                system: {"accuracy": i.value, "low": i.low, "high": i.high, "n": i.n, "groups": i.groups}
                for system, i in rows.items()
            }
            for name, rows in self.sets.items()
        }
        values = asdict(self) | {"sets": sets, "bundle": str(self.bundle)}
        write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def evaluate_bundle(
    bundle: Bundle,
    dataset: Dataset,
    progress: Progress,
    store: Store | None = None,
    timed: int = 40,
    deployment: Deployment | None = None,
) -> Evaluation:
    """Answer every labelled photograph of the test sets, and time some of them from file to answer.

    Args:
        store: Where the bundle's run may be; its other systems then stand beside the cascade.
        timed: Photographs to time, evenly spread over the test sets.
        deployment: Of the bundle; None: the one that serves.
    Raises:
        DatasetError: the classes differ from the bundle's, or there is no test set.
    """
    if dataset.class_names != bundle.manifest.class_names:
        raise DatasetError(
            f"{dataset.folder} has classes {', '.join(dataset.class_names[:5])}…, "
            f"the bundle {', '.join(bundle.manifest.class_names[:5])}…; expected the same"
        )
    sets = [name for name in dataset.test_sets if dataset.split(name).table["label"].null_count() == 0]
    if not sets:
        raise DatasetError(f"{dataset.folder} has no labelled test set; expected a split besides train and val")
    chosen = deployment or bundle.deployment()
    recognizer = bundle.open(chosen)
    run_id = bundle.manifest.run_id
    context = _context(store, run_id)
    judged = _tracked(store, run_id)
    reference = chosen == bundle.manifest.reference  # its localizer is the experiment's, another finds other regions
    key = str(context.get("localizer_key", "")) if reference else ""
    rows: dict[str, dict[str, Interval]] = {}
    skipped = {}
    for name in sets:
        part = dataset.split(name)
        progress.stage(f"answering {name}", len(part))
        plain, known = _answer_all(recognizer, part, bundle, dataset, key, progress)
        labels, groups = part.labels(), part.groups()
        own = {
            "cascade": bootstrap(np.array([p.answer.index for p in plain]) == labels, groups),
            "cascade+metadata": bootstrap(np.array([p.answer.index for p in known]) == labels, groups),
        }
        rows[name] = {**judged.get(name, {}), **own}
        skipped[name] = float(np.mean([Stage.FULL not in p.stages for p in plain]))
    progress.stage("timing", timed)
    return Evaluation(rows, skipped, _time(recognizer, dataset, sets, bundle, timed, progress), timed, bundle.folder)


def _answer_all(
    recognizer: Recognizer, part: Dataset, bundle: Bundle, dataset: Dataset, key: str, progress: Progress
) -> tuple[list[Prediction], list[Prediction]]:
    """Without and with metadata; regions from the data set's cache where they are, else the bundle's own."""
    cached = region_cache(dataset, key or recognizer.localizer.key).load()
    plain: list[Prediction] = []
    known: list[Prediction] = []
    paths, metadata, digests = part.paths(), part.metadata(), part.table["digest"].to_list()
    for start in range(0, len(part), BATCH):
        rows = range(start, min(start + BATCH, len(part)))
        photos = [read_photograph(paths[i], bundle.manifest.images) for i in rows]
        found = [cached[digests[i]] for i in rows] if all(digests[i] in cached for i in rows) else None
        answers = recognizer.recognize(photos, regions=found)
        plain += answers
        known += recognizer.recognize(photos, [metadata[i] for i in rows], [answer.region for answer in answers])
        progress.step(rows.stop)
    return plain, known


def _time(
    recognizer: Recognizer, dataset: Dataset, sets: list[str], bundle: Bundle, timed: int, progress: Progress
) -> dict[str, float]:
    """Median a stage. The first photograph warms up and does not count."""
    paths = [path for name in sets for path in dataset.split(name).paths()]
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(timed, len(paths)) + 1).astype(int)]
    times: dict[str, list[float]] = {}
    for number, path in enumerate(chosen):
        (prediction,) = recognizer.recognize([read_photograph(path, bundle.manifest.images)])
        if number:
            for stage, ms in prediction.latency_ms.items():
                times.setdefault(stage, []).append(ms)
            progress.step(number)
    return {stage: float(np.median(times[stage])) for stage in STAGES if stage in times}


def _context(store: Store | None, run_id: str) -> dict[str, object]:
    if store is None or not store.has(run_id):
        return {}
    values: dict[str, object] = json.loads(store.download(run_id, "context.json").read_text(encoding="utf-8"))
    return values


def _tracked(store: Store | None, run_id: str) -> Mapping[str, Mapping[str, Interval]]:
    if store is None or not store.has(run_id):
        return {}
    return accuracies(pl.read_parquet(store.download(run_id, PREDICTIONS)))
