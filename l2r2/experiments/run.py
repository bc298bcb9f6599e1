"""One experiment, from a data set to a tracked, fitted whole; what is finished is not done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from l2r2 import __version__
from l2r2.classification.timm_model import view_settings
from l2r2.config import Recipe
from l2r2.datasets import Dataset
from l2r2.errors import ConfigError
from l2r2.experiments.by_candidates import by_candidates, report_candidates
from l2r2.experiments.candidates import Candidates
from l2r2.experiments.children import LOGITS, Progress, Workshop, digest
from l2r2.experiments.experiment import Context, save_experiment
from l2r2.experiments.localizing import WITHOUT_REGIONS, AnyLocalizer, fill_regions, known_regions, regions_key
from l2r2.experiments.pairs import Pair, background, foreground, untrained_pair
from l2r2.experiments.report import report
from l2r2.experiments.splits import Member, load_splits
from l2r2.experiments.systems import Systems, fit_systems
from l2r2.tracking import Run, Store, provenance
from l2r2.types import CandidateLocalizer, Region, Stage, View


@dataclass(frozen=True, slots=True)
class Done:
    """A finished experiment: its parent run, and whether it was there already."""

    run_id: str
    reused: bool


def run_experiment(
    recipe: Recipe, dataset: Dataset, localizer: AnyLocalizer | None, store: Store, work: Path, progress: Progress
) -> Done:
    """Locate and train what is missing, fit calibration, fusion, priors and gate on validation, score the test sets.

    Args:
        localizer: As `localizer_of` makes it; None where no view of the recipe needs a region.
        work: Folder for what is under way; a killed run goes on from there.
    Raises:
        ConfigError: the recipe and the data set do not fit together.
        DatasetError, TrainingError, …: from the parts.
    """
    hazardous = _hazardous(recipe, dataset)
    if recipe.train.shared and recipe.fusion.fit_on == "crossfit":
        raise ConfigError('fusion.fit_on = "crossfit" trains a classifier a view; it cannot go with train.shared')
    if localizer is None and set(recipe.views) - WITHOUT_REGIONS:
        raise ConfigError(f"recipe {recipe.name} has views that need a region and there is no localizer")
    located_by = regions_key(dataset, localizer) if localizer else ""
    key = digest(recipe.model_dump_json(), dataset.digest, located_by, __version__)
    found = store.finished(recipe.name, {"kind": "experiment", "key": key})
    if found is not None:
        return Done(found, reused=True)
    tags = {"kind": "experiment", "key": key, "dataset": dataset.card.name}
    with store.run(recipe.name, recipe.name, tags) as run:
        run.params(recipe.model_dump(mode="json") | {"dataset_digest": dataset.digest})
        run.tags(provenance())
        run.data(dataset.card.name, dataset.digest, dataset.folder)
        shop = _workshop(recipe, dataset, localizer, store, work, run, progress)
        candidates: Candidates | None = None
        children: dict[Member, str] = {}
        if isinstance(localizer, CandidateLocalizer):
            shop, candidates, children = by_candidates(shop, localizer)
        run.params({"localizer_key": shop.regions_key})
        views = tuple(view for view in recipe.views if (view, 0) not in children)
        children |= shop.train(views) if recipe.vlm is None else shop.score(views)
        folds = {}
        if recipe.fusion.fit_on == "crossfit" and recipe.vlm is None:
            folds = shop.crossfit(recipe.views)
        progress.stage("fitting calibration, fusion, priors and gate", 1)
        splits = load_splits(
            dataset,
            {member: store.download(child, LOGITS) for member, child in children.items()},
            recipe.prior.sources,
            {member: store.download(child, LOGITS) for member, child in folds.items()},
        )
        systems, untrained = None, _untrained(recipe, dataset)
        if fits_systems(recipe, dataset):
            systems = fit_systems(splits, recipe, hazardous)
        folder = work / "experiments" / key
        if systems is not None and candidates is None:  # by candidates nothing can be deployed
            _save(run, folder, shop, systems, children, systems.validation_rates(splits["val"]))
        report(run, folder, shop, systems, untrained, splits)
        if candidates is not None:
            report_candidates(run, folder, shop, candidates, children, splits)
        progress.step(1)
    return Done(run.id, reused=False)


def fits_systems(recipe: Recipe, dataset: Dataset) -> bool:
    """Whether there is something to fit and something to fit it on: FG and FULL, and a validation split."""
    return foreground(recipe.views) is not None and View.FULL in recipe.views and dataset.card.classes is None


def _untrained(recipe: Recipe, dataset: Dataset) -> list[Pair]:
    """⊕max of a data set that has test sets only."""
    first = foreground(recipe.views)
    if first is None or fits_systems(recipe, dataset):
        return []
    full = (View.FULL, 0) if View.FULL in recipe.views else None
    seconds = [view for view in (background(recipe.views), View.FULL) if view in recipe.views]
    return [untrained_pair((first, 0), (second, 0), full) for second in seconds if second is not None]


def _workshop(
    recipe: Recipe,
    dataset: Dataset,
    localizer: AnyLocalizer | None,
    store: Store,
    work: Path,
    run: Run,
    progress: Progress,
) -> Workshop:
    if recipe.vlm is None and dataset.card.classes is not None:
        raise ConfigError(f"{dataset.folder} has test sets only; nothing to train on, take a recipe with [vlm]")
    regions: Mapping[str, Region | None] = dict.fromkeys(dataset.table["digest"])
    located = None if isinstance(localizer, CandidateLocalizer) else localizer
    if located is not None:
        total = dataset.table["digest"].n_unique()
        progress.stage("locating", total)
        done = 0
        for count in fill_regions(dataset, located, recipe.images):
            done += count
            progress.step(done)
        progress.step(total)
        regions = known_regions(dataset, regions_key(dataset, located))
    vlm = None
    if recipe.vlm is None:
        settings = view_settings(recipe.train.model, recipe.view)
    else:
        from l2r2.classification.vlm import load_vlm

        vlm = load_vlm(recipe.vlm)
        settings = vlm.view_settings(recipe.view)
    return Workshop(
        recipe=recipe,
        dataset=dataset,
        settings=settings,
        vlm=vlm,
        regions=regions,
        regions_key="none" if located is None else regions_key(dataset, located),
        store=store,
        parent=run,
        work=work,
        progress=progress,
    )


def _hazardous(recipe: Recipe, dataset: Dataset) -> Bool[np.ndarray, " k"]:
    strange = sorted(set(recipe.safety.hazardous) - set(dataset.class_names))
    if strange:
        raise ConfigError(f"safety.hazardous names {strange[0]!r}, which is no class of {dataset.folder}")
    return np.isin(np.asarray(dataset.class_names), [*recipe.safety.hazardous, *dataset.card.hazardous])


def _save(
    run: Run,
    folder: Path,
    shop: Workshop,
    systems: Systems,
    children: Mapping[Member, str],
    validation: dict[str, float],
) -> None:
    dataset, deployed = shop.dataset, systems.fg_full
    members = {Stage.FG: deployed.first, Stage.FULL: deployed.second}
    context = Context(
        class_names=dataset.class_names,
        dataset=dataset.card.name,
        dataset_digest=dataset.digest,
        dataset_folder=dataset.folder.resolve(),
        simulated_metadata=dataset.card.simulated_metadata,
        view=shop.settings,
        views={stage: view for stage, (view, _) in members.items()},
        localizer_key=shop.regions_key,
        children={stage: children[member] for stage, member in members.items()},
        validation=validation,
    )
    save_experiment(run, folder, shop.recipe, context, systems.policy, systems.priors)
