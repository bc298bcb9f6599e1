"""One experiment, from a data set to a tracked, fitted whole; what is finished is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from l2r2 import __version__
from l2r2.classification.timm_model import view_settings
from l2r2.config import Recipe, ViewSettings
from l2r2.datasets import Dataset
from l2r2.errors import ConfigError
from l2r2.experiments import figures, tables
from l2r2.experiments.experiment import Context, save_experiment
from l2r2.experiments.localizing import known_regions
from l2r2.experiments.systems import Member, Split, Systems, fit_systems, load_splits
from l2r2.files import write_table, write_text
from l2r2.tracking import Run, Store, provenance
from l2r2.training import fit_classifier
from l2r2.types import Region, Stage, View

PREDICTIONS, ACCURACY = "tables/predictions.parquet", "tables/accuracy.md"


class Progress(Protocol):
    """How the command line hears of what happens."""

    def stage(self, text: str, total: int) -> None: ...

    def step(self, done: int, text: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Done:
    """A finished experiment: its parent run, and whether it was there already."""

    run_id: str
    reused: bool


def run_experiment(
    recipe: Recipe, dataset: Dataset, localizer_key: str, store: Store, work: Path, progress: Progress
) -> Done:
    """Train what is missing, fit calibration, fusion, priors and gate on validation, score the test sets, keep it all.

    Args:
        localizer_key: Of the regions to use; they must be in the data set's cache.
        work: Folder for what is under way; a killed run goes on from there.
    Raises:
        ConfigError: the recipe has not exactly one FG view and FULL.
        DatasetError, TrainingError, …: from the parts.
    """
    views = stages_of(recipe)
    settings = view_settings(recipe.train.model, recipe.view)
    key = _digest(recipe.model_dump_json(), dataset.digest, localizer_key, __version__)
    found = store.finished(recipe.name, {"kind": "experiment", "key": key})
    if found is not None:
        return Done(found, reused=True)
    regions = known_regions(dataset, localizer_key)
    with store.run(recipe.name, recipe.name, {"kind": "experiment", "key": key}) as run:
        run.params(recipe.model_dump(mode="json") | {"dataset_digest": dataset.digest, "localizer_key": localizer_key})
        run.tags(provenance())
        run.data(dataset.card.name, dataset.digest, dataset.folder)
        children = _train_all(recipe, dataset, regions, settings, localizer_key, store, work, run, progress)
        progress.stage("fitting calibration, fusion, priors and gate", 1)
        logits = {member: store.download(child, "logits.parquet") for member, child in children.items()}
        splits = load_splits(dataset, logits, recipe.prior.sources)
        systems = fit_systems(splits, recipe)
        context = Context(
            class_names=dataset.class_names,
            dataset=dataset.card.name,
            dataset_digest=dataset.digest,
            dataset_folder=dataset.folder.resolve(),
            simulated_metadata=dataset.card.simulated_metadata,
            view=settings,
            views=views,
            localizer_key=localizer_key,
            children={stage: children[stage, 0] for stage in Stage},
            validation=systems.validation_rates(splits["val"]),
        )
        folder = work / "experiments" / key
        save_experiment(run, folder, recipe, context, systems.policy, systems.priors)
        _report(run, folder, dataset, regions, systems, splits)
        progress.step(1)
    return Done(run.id, reused=False)


def stages_of(recipe: Recipe) -> dict[Stage, View]:
    """Which view each stage looks at.

    Raises:
        ConfigError: the recipe has not exactly one FG view and FULL.
    """
    foreground = [view for view in recipe.views if view in {View.FG_C, View.FG_M}]
    if len(foreground) != 1 or View.FULL not in recipe.views:
        got = ", ".join(recipe.views) or "none"
        raise ConfigError(
            f"recipe {recipe.name}: views are {got}; expected FULL and one of FG_C, FG_M (others as extras)"
        )
    return {Stage.FG: foreground[0], Stage.FULL: View.FULL}


def _train_all(
    recipe: Recipe,
    dataset: Dataset,
    regions: Mapping[str, Region | None],
    settings: ViewSettings,
    localizer_key: str,
    store: Store,
    work: Path,
    parent: Run,
    progress: Progress,
) -> dict[Member, str]:
    """Run id of each classifier."""
    children: dict[Member, str] = {}
    places = {view: stage for stage, view in stages_of(recipe).items()}
    for view in recipe.views:
        for number, seed in enumerate(recipe.train.seeds):
            train = recipe.train.model_copy(update={"seeds": (seed,)})
            images = recipe.images.model_dump_json()
            key = _digest(
                train.model_dump_json(), settings.model_dump_json(), images, view, dataset.digest, localizer_key
            )
            tags = {"kind": "classifier", "view": str(view), "seed": str(seed), "key": key}
            child = store.finished(recipe.name, tags)
            if child is None:
                name = f"{view} seed {seed}"
                progress.stage(f"training {name}", train.epochs)
                with store.run(recipe.name, name, tags, parent) as run:
                    child = run.id
                    run.params({"train": train.model_dump(mode="json"), "view": settings.model_dump(mode="json")})
                    run.data(dataset.card.name, dataset.digest, dataset.folder)

                    def on_epoch(epoch: int, values: Mapping[str, float], run: Run = run) -> None:
                        run.metrics(values, step=epoch)
                        progress.step(epoch + 1, f"val {100 * values.get('val_accuracy', 0):.1f} %")

                    frozen = train.model_copy(update={"seeds": ()}).model_dump_json()
                    features = _digest(frozen, settings.model_dump_json(), images, view, dataset.digest, localizer_key)
                    folder = work / "classifiers" / key
                    folder.mkdir(parents=True, exist_ok=True)
                    fitted = fit_classifier(
                        dataset,
                        regions,
                        view,
                        train,
                        settings,
                        recipe.images,
                        seed,
                        folder,
                        on_epoch,
                        work / "features" / f"{features}.safetensors",
                    )
                    run.metrics(fitted.best)
                    run.file(fitted.weights)
                    run.file(fitted.logits)
                progress.step(train.epochs)
            if view in places:
                children[places[view], number] = child
    return children


def _report(
    run: Run,
    folder: Path,
    dataset: Dataset,
    regions: Mapping[str, Region | None],
    systems: Systems,
    splits: Mapping[str, Split],
) -> None:
    judged = {name: split for name, split in splits.items() if name != "train"}
    sets = [name for name in judged if name != "val"]
    table = tables.predictions(systems, judged)
    write_table(folder / PREDICTIONS, table)
    text = tables.markdown(tables.accuracies(table), [*sets, "val"])
    if dataset.card.simulated_metadata:
        text += "\nMetadata are simulated: drawn from a made-up table, so what they add says nothing about real ones.\n"
    write_text(folder / ACCURACY, text)
    for name in (PREDICTIONS, ACCURACY):
        run.file(folder / name, "tables")
    values = tables.metrics(systems, judged, table)
    run.metrics(values)
    run.metrics(
        {
            "gate": systems.policy.threshold,
            "prior/alpha": systems.priors.alpha,
            "prior/strength": systems.priors.strength,
            **{f"temperature/{stage}": float(t.values[0]) for stage, t in systems.policy.temperatures.items()},
        }
    )
    run.tags({"best_fusion": systems.fg_full.best})
    made = folder / "figures"
    figures.reliability_diagrams(systems, splits["val"], made / "reliability.png")
    figures.cost_curve(systems, judged, made / "cost-curve.png")
    for name in sets:
        answers = systems.answers(splits[name])
        figures.confusion_matrices(answers, splits[name], dataset.class_names, made / f"confusion-{name}.png")
        figures.contact_sheet(dataset, regions, answers, splits[name], made / f"contact-sheet-{name}.png")
    for path in sorted(made.glob("*.png")):
        run.file(path, "figures")


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
