"""What an experiment leaves for people: tables, metrics and figures, all kept with its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from l2r2.experiments import better, figures, html, sheets, tables
from l2r2.experiments.children import Workshop
from l2r2.experiments.pairs import Pair, untrained_answers
from l2r2.experiments.results import per_class, results
from l2r2.experiments.splits import CROSSFIT, Split
from l2r2.experiments.systems import Systems
from l2r2.files import write_table, write_text
from l2r2.fusion import WeightedLogits
from l2r2.logspace import LogProbs
from l2r2.tracking import Run, provenance
from l2r2.types import View

PREDICTIONS, ACCURACY, BETTER = "tables/predictions.parquet", "tables/accuracy.md", "tables/better.md"
REPORT = "report.html"
RESULTS, PER_CLASS, WL_WEIGHTS = "tables/results.parquet", "tables/per_class.parquet", "tables/wl_weights.parquet"


def report(
    run: Run,
    folder: Path,
    shop: Workshop,
    systems: Systems | None,
    untrained: Sequence[Pair],
    splits: Mapping[str, Split],
) -> None:
    """Write everything into `folder` and keep it with the run.

    Args:
        systems: None where nothing was fitted; then there are results, sheets of ⊕max and their page.
        untrained: Pairs fused by ⊕max alone.
    """
    names = shop.dataset.class_names
    write_table(folder / RESULTS, results(splits, shop.recipe, systems, untrained))
    write_table(folder / PER_CLASS, per_class(splits, systems, names))
    made = [RESULTS, PER_CLASS]
    weights = None if systems is None else wl_weights(systems, names)
    if weights is not None:
        write_table(folder / WL_WEIGHTS, weights)
        made.append(WL_WEIGHTS)
        figures.weights_of_wl(weights, folder / "figures" / "wl-weights.png")
    for name in made:
        run.file(folder / name, "tables")
    if systems is None:
        _show(run, folder, shop, next((p for p in untrained if p.second[0] is View.FULL), None), splits)
    else:
        _judge(run, folder, shop, systems, splits)


def wl_weights(systems: Systems, class_names: Sequence[str]) -> pl.DataFrame | None:
    """The deployed pair's ⊕WL (the paper's figure 8): class, w_fg, w_full; None where it was not fitted."""
    fitted = systems.fg_full.operators.get("WL")
    if not isinstance(fitted, WeightedLogits):
        return None
    return pl.DataFrame({"class": class_names, "w_fg": fitted.w_fg, "w_full": fitted.w_full})


def _judge(run: Run, folder: Path, shop: Workshop, systems: Systems, splits: Mapping[str, Split]) -> None:
    dataset = shop.dataset
    judged = {name: split for name, split in splits.items() if name not in {"train", CROSSFIT}}
    sets = [name for name in judged if name != "val"]
    table = tables.predictions(systems, judged)
    write_table(folder / PREDICTIONS, table)
    text = tables.markdown(tables.accuracies(table), [*sets, "val"])
    if dataset.card.simulated_metadata:
        text += "\nMetadata are simulated: drawn from a made-up table, so what they add says nothing about real ones.\n"
    write_text(folder / ACCURACY, text)
    lines = better.better(splits, shop.recipe, systems, shop.recipe.safety.hazard_mass)
    write_text(folder / BETTER, better.markdown(lines))
    for name in (PREDICTIONS, ACCURACY, BETTER):
        run.file(folder / name, "tables")
    run.metrics(tables.metrics(systems, judged, table))
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
        _sheets(shop, answers, splits[name], made, systems)
    for path in sorted(made.glob("*.png")):
        run.file(path, "figures")
    page = html.page(
        title=shop.recipe.name,
        facts=_facts(run, shop) | _fitted(shop, systems),
        accuracy=tables.accuracies(table),
        sets=[*sets, "val"],
        lines=lines,
        results=pl.read_parquet(folder / RESULTS),
        pictures=sorted(made.glob("*.png")),
        simulated=dataset.card.simulated_metadata,
    )
    write_text(folder / REPORT, page)
    run.file(folder / REPORT)


def _show(run: Run, folder: Path, shop: Workshop, pair: Pair | None, splits: Mapping[str, Split]) -> None:
    """Sheets and the page of a run in which nothing was fitted."""
    made = folder / "figures"
    for name, split in splits.items():
        if pair is not None and name not in {"train", CROSSFIT}:
            _sheets(shop, untrained_answers(pair, split), split, made)
    pictures = sorted(made.glob("*.png"))
    for path in pictures:
        run.file(path, "figures")
    results_table = pl.read_parquet(folder / RESULTS)
    page = html.page(shop.recipe.name, _facts(run, shop), {}, [], [], results_table, pictures, simulated=False)
    write_text(folder / REPORT, page)
    run.file(folder / REPORT)


def _sheets(
    shop: Workshop, answers: Mapping[str, LogProbs], split: Split, made: Path, systems: Systems | None = None
) -> None:
    for name, chosen in sheets.choices(answers, split, systems).items():
        place = made / f"{name}-{split.name}.png"
        sheets.sheet(shop.dataset, shop.regions, answers, split, chosen, name, place)


def _facts(run: Run, shop: Workshop) -> dict[str, str]:
    dataset = shop.dataset
    sizes = dict(dataset.table["split"].value_counts(sort=True).iter_rows())
    return {
        "run": run.id,
        "data set": f"{dataset.card.name} {dataset.digest}, {len(dataset.class_names)} classes",
        "photographs": ", ".join(f"{name} {size}" for name, size in sizes.items()),
        "classifier": shop.recipe.train.model if shop.recipe.vlm is None else shop.recipe.vlm.model,
        "views": ", ".join(shop.recipe.views),
        "localizer": shop.regions_key,
        **{name: value for name, value in provenance().items() if name.startswith(("git", "version.torch", "python"))},
    }


def _fitted(shop: Workshop, systems: Systems) -> dict[str, str]:
    policy, priors = systems.policy, systems.priors
    cap = "none" if priors.cap is None else f"{priors.cap:g} nats"
    sets = (
        "none" if policy.sets is None else f"{100 * policy.sets.coverage:g} % coverage, p ≥ {policy.sets.threshold:.3f}"
    )
    return {
        "gate": f"{policy.threshold:.3f}, rule {shop.recipe.gate.rule}; then {policy.operator.name}",
        "temperatures": ", ".join(f"{stage} {t.values.mean():.3f}" for stage, t in policy.temperatures.items()),
        "prior": f"α {priors.alpha:g}, λ {priors.strength:.3f}, cap {cap}; {', '.join(priors.tables) or 'no sources'}",
        "prediction sets": sets,
    }
