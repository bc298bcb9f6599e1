"""The classifiers of an experiment: one tracked run a view and seed, used again where it is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from l2r2.config import Recipe, ViewSettings
from l2r2.datasets import Dataset
from l2r2.experiments.splits import CROSSFIT, Member
from l2r2.files import write_table
from l2r2.tracking import Run, Store
from l2r2.training import Fitted, fit_classifier
from l2r2.types import Region, View

if TYPE_CHECKING:
    from l2r2.classification.vlm import Vlm

LOGITS, WEIGHTS = "logits.parquet", "model.safetensors"


class Progress(Protocol):
    """How the command line hears of what happens."""

    def stage(self, text: str, total: int) -> None: ...

    def step(self, done: int, text: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where classifiers are made.

    Attributes:
        settings: Of views, the backbone's own normalisation filled in.
        regions: Digest → region.
        regions_key: Changes whenever the regions may.
        parent: The experiment's run.
        work: Folder for what is under way; a killed fit goes on from there.
        vlm: Of a recipe with [vlm]; nothing is trained then.
    """

    recipe: Recipe
    dataset: Dataset
    settings: ViewSettings
    regions: Mapping[str, Region | None]
    regions_key: str
    store: Store
    parent: Run
    work: Path
    progress: Progress
    vlm: Vlm | None = None

    def train(self, views: tuple[View, ...]) -> dict[Member, str]:
        """Run id of each classifier."""
        seeds = enumerate(self.recipe.train.seeds)
        if self.recipe.train.shared:
            return {member: run for number, seed in seeds for member, run in self._shared(views, number, seed).items()}
        return {(view, number): self._one(view, seed) for number, seed in seeds for view in views}

    def crossfit(self, views: tuple[View, ...]) -> dict[Member, str]:
        """Run id of the logits that classifiers give photographs of train which they never saw."""
        seeds = enumerate(self.recipe.train.seeds)
        return {(view, number): self._folds(view, seed) for number, seed in seeds for view in views}

    def score(self, views: tuple[View, ...]) -> dict[Member, str]:
        """Run id of what the vision-language model says of each view."""
        return {(view, 0): self._zero_shot(view) for view in views}

    def _zero_shot(self, view: View) -> str:
        from l2r2.training.zero_shot import fitted_weights, score_zero_shot

        assert self.vlm is not None
        words = [self.dataset.words(name) for name in self.dataset.class_names]
        key = digest(self.vlm.key, *words, self._looks, view, self.dataset.digest, self.regions_key)
        tags = {"kind": "classifier", "view": str(view), "seed": "0", "key": key}
        known = self.store.finished(self.recipe.name, tags)
        if known is not None:
            return known
        self.progress.stage(f"scoring {view}", len(self.dataset))
        with self._run(f"{view} zero-shot", tags, 0) as run:
            folder = self.work / "classifiers" / key
            logits = score_zero_shot(
                self.dataset,
                self.regions,
                view,
                self.vlm,
                words,
                self.recipe.images,
                folder,
                lambda done, _: self.progress.step(done),
                settings=self.settings,
            )
            run.file(fitted_weights(self.vlm.network(words), folder / WEIGHTS))
            run.file(logits)
        return run.id

    def _one(self, view: View, seed: int) -> str:
        key = self._key(view, seed)
        tags = {"kind": "classifier", "view": str(view), "seed": str(seed), "key": key}
        known = self.store.finished(self.recipe.name, tags)
        if known is not None:
            return known
        name, epochs = f"{view} seed {seed}", self.recipe.train.epochs
        self.progress.stage(f"training {name}", epochs)
        with self._run(name, tags, seed) as run:
            fitted = self._fit(self.dataset, view, seed, self.work / "classifiers" / key, run)
            _keep(run, fitted)
        self.progress.step(epochs)
        return run.id

    def _fit(self, dataset: Dataset, view: View, seed: int, folder: Path, run: Run | None) -> Fitted:
        recipe = self.recipe
        train = recipe.train.model_copy(update={"seeds": (seed,)})
        backbone = train.model_dump_json(include={"model", "weights", "checkpoint"})
        features = digest(backbone, self._looks, view, self.dataset.digest, self.regions_key)
        folder.mkdir(parents=True, exist_ok=True)

        def on_epoch(epoch: int, values: Mapping[str, float]) -> None:
            if run is not None:
                run.metrics(values, step=epoch)
                self.progress.step(epoch + 1, f"val {100 * values.get('val_accuracy', 0):.1f} %")

        return fit_classifier(
            dataset,
            self.regions,
            view,
            train,
            self.settings,
            recipe.images,
            seed,
            folder,
            on_epoch,
            self.work / "features" / f"{features}.safetensors",
        )

    def _shared(self, views: tuple[View, ...], number: int, seed: int) -> dict[Member, str]:
        from l2r2.training.shared import fit_shared

        found: dict[Member, str] = {}
        tags = {
            view: {"kind": "classifier", "view": str(view), "seed": str(seed), "key": self._key(view, seed, *views)}
            for view in views
        }
        for view in views:
            known = self.store.finished(self.recipe.name, tags[view])
            if known is not None:
                found[view, number] = known
        if len(found) == len(views):
            return found
        train = self.recipe.train.model_copy(update={"seeds": (seed,)})
        self.progress.stage(f"training {', '.join(views)} on one encoder, seed {seed}", train.epochs)
        curves: list[tuple[int, Mapping[str, float]]] = []

        def on_epoch(epoch: int, values: Mapping[str, float]) -> None:
            curves.append((epoch, values))
            self.progress.step(epoch + 1, f"val {100 * values.get('val_accuracy', 0):.1f} %")

        folder = self.work / "classifiers" / self._key(views[0], seed, *views)
        folder.mkdir(parents=True, exist_ok=True)
        fitted = fit_shared(
            self.dataset, self.regions, views, train, self.settings, self.recipe.images, seed, folder, on_epoch
        )
        for view in views:
            with self._run(f"{view} seed {seed}, shared encoder", tags[view], seed) as run:
                for epoch, values in curves:
                    run.metrics(values, step=epoch)
                _keep(run, fitted[view])
            found[view, number] = run.id
        return found

    def _folds(self, view: View, seed: int) -> str:
        folds = self.recipe.fusion.folds
        key = self._key(view, seed, CROSSFIT, str(folds))
        tags = {"kind": CROSSFIT, "view": str(view), "seed": str(seed), "key": key}
        known = self.store.finished(self.recipe.name, tags)
        if known is not None:
            return known
        name = f"{view} seed {seed}, {folds} folds"
        self.progress.stage(f"training {name}", folds)
        with self._run(name, tags, seed) as run:
            folder = self.work / CROSSFIT / key
            parts = []
            for fold, part in enumerate(fold_datasets(self.dataset, folds)):
                fitted = self._fit(part, view, seed, folder / str(fold), None)
                parts.append(pl.read_parquet(fitted.logits).filter(pl.col("split") == HELD_OUT))
                self.progress.step(fold + 1)
            write_table(folder / LOGITS, pl.concat(parts).with_columns(split=pl.lit(CROSSFIT)))
            run.file(folder / LOGITS)
        return run.id

    @contextmanager
    def _run(self, name: str, tags: Mapping[str, str], seed: int) -> Iterator[Run]:
        with self.store.run(self.recipe.name, name, tags, self.parent) as run:
            train = self.recipe.train.model_copy(update={"seeds": (seed,)})
            run.params({"train": train.model_dump(mode="json"), "view": self.settings.model_dump(mode="json")})
            run.data(self.dataset.card.name, self.dataset.digest, self.dataset.folder)
            yield run

    @property
    def _looks(self) -> str:
        return self.settings.model_dump_json() + self.recipe.images.model_dump_json()

    def _key(self, view: View, seed: int, *more: str) -> str:
        train = self.recipe.train.model_copy(update={"seeds": (seed,)})
        return digest(train.model_dump_json(), self._looks, view, self.dataset.digest, self.regions_key, *more)


HELD_OUT = "held_out"
"""Name of the split that a fold's classifier does not see."""


def fold_datasets(dataset: Dataset, folds: int) -> list[Dataset]:
    """The data set once a fold, that fold of train's groups moved to the split `HELD_OUT`; test sets left out.

    Groups are dealt class by class, so that every class stays in train as long as it has two groups.
    """
    table = dataset.table.filter(pl.col("split").is_in(["train", "val"]))
    train = table.filter(pl.col("split") == "train")
    place: dict[str, int] = {}
    for _, rows in sorted(train.partition_by("label", as_dict=True).items()):
        groups = sorted(set(rows["group"]) - set(place))
        order = np.random.default_rng(0).permutation(len(groups))
        start = len(place)  # classes with few groups do not all begin at fold 0
        place |= {groups[i]: (start + n) % folds for n, i in enumerate(order)}
    parts = []
    for fold in range(folds):
        moved = (pl.col("split") == "train") & (pl.col("group").replace_strict(place, default=-1) == fold)
        split = pl.when(moved).then(pl.lit(HELD_OUT)).otherwise("split")
        part = replace(dataset, table=table.with_columns(split=split))
        part.__dict__["class_names"] = dataset.class_names
        parts.append(part)
    return parts


def digest(*parts: str) -> str:
    """Sixteen hexadecimal digits that change with any part."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _keep(run: Run, fitted: Fitted) -> None:
    run.metrics(fitted.best)
    run.file(fitted.weights)
    run.file(fitted.logits)
