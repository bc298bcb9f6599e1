"""`l2r2 data starter | folder | table` and `l2r2 localize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from l2r2.cli import published
from l2r2.cli.progress import progress_bars
from l2r2.config import SaliencySettings, find_recipe, load_recipe

Out = Annotated[Path, typer.Option("--out", help="Folder for the data set's table (and photographs, if any are made).")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Allow = Annotated[bool, typer.Option("--allow", help="Accept the same photograph in several of train, val and test.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    data = typer.Typer(help="Make a data set: one checked table of photographs.", no_args_is_help=True)
    data.command("starter")(starter)
    data.command("folder")(folder)
    data.command("table")(table)
    published.register(data)
    app.add_typer(data, name="data")
    app.command("localize")(localize)


def starter(
    out: Out,
    stamps: Annotated[Path | None, typer.Option(help="Tux Paint's stamps, where there is no apt.")] = None,
    scenes: Annotated[Path | None, typer.Option(help="Tux Paint's templates, where there is no apt.")] = None,
    rho: Annotated[float, typer.Option(help="P(home scene | class) in train, val and iid.")] = 0.95,
    seed: Seed = 0,
    train: Annotated[int, typer.Option(help="Photographs in train.")] = 480,
    held_out: Annotated[int, typer.Option(help="Photographs in val and in each test set.")] = 240,
    as_json: Json = False,
) -> None:
    """Compose the starter data: photographic cut-outs on photographs of scenes.

    Example: l2r2 data starter --out data/starter
    """
    from l2r2.config import parse_settings
    from l2r2.datasets import load_dataset
    from l2r2.datasets.starter import StarterSettings, make_starter, starter_is_there, starter_size
    from l2r2.datasets.starter_sources import fetch_sources
    from l2r2.errors import ConfigError

    values = {"seed": seed, "rho": rho, "train": train, "held_out": held_out}
    settings = parse_settings(StarterSettings, values, "l2r2 data starter")
    if (stamps is None) != (scenes is None):
        raise ConfigError("--stamps and --scenes go together; give both folders or neither")
    if not starter_is_there(out, settings):
        with progress_bars() as bars:
            bars.stage("fetching cut-outs and scenes (169 MB, once)", 1)
            sources = fetch_sources() if stamps is None or scenes is None else (stamps, scenes)
            bars.step(1)
            bars.stage("composing photographs", starter_size(settings))
            for done in make_starter(out, *sources, settings):
                bars.step(done)
    say(load_dataset(out), as_json)


def folder(source: Path, out: Out, seed: Seed = 0, allow: Allow = False, as_json: Json = False) -> None:
    """Class folders, SOURCE/CLASS/*.jpg or SOURCE/SPLIT/CLASS/*.jpg.

    Example: l2r2 data folder photos --out data/mine
    """
    from l2r2.datasets.user import from_folder

    say(from_folder(source, out, seed=seed, allow_duplicates=allow), as_json)


def table(file: Path, out: Out, seed: Seed = 0, allow: Allow = False, as_json: Json = False) -> None:
    """A CSV or Parquet file with path, label and, if you have them, split, group and metadata columns.

    Example: l2r2 data table observations.csv --out data/mine
    """
    from l2r2.datasets.user import from_table

    say(from_table(file, out, seed=seed, allow_duplicates=allow), as_json)


def localize(
    dataset: Annotated[Path, typer.Argument(help="Folder of a data set.")],
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose localizer settings are used; default: the library's.")
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Keep masks too (FG_M and BG_S need them).")] = False,
    as_json: Json = False,
) -> None:
    """Find the foreground of every photograph once; goes on where it was interrupted.

    Example: l2r2 localize data/starter
    """
    from l2r2.datasets import load_dataset
    from l2r2.experiments.localizing import fill_regions, known_regions, localizer_of, make_localizer, regions_key

    photographs = load_dataset(dataset)
    if recipe is None:
        localizer = make_localizer(SaliencySettings(), masks=masks)
    else:
        settings = load_recipe(find_recipe(recipe))
        localizer = localizer_of(settings) or make_localizer(settings.localizer, masks=masks)
    key = regions_key(photographs, localizer)
    with progress_bars() as bars:
        bars.stage("locating", len(set(photographs.table["digest"])))
        done = len(set(photographs.table["digest"]) & set(_cached(photographs, key)))
        bars.step(done)
        for count in fill_regions(photographs, localizer):
            done += count
            bars.step(done)
    regions = known_regions(photographs, key)
    found = sum(region is not None for region in regions.values())
    if as_json:
        typer.echo(json.dumps({"localizer": key, "photographs": len(regions), "found": found}))
    else:
        typer.echo(f"{key}: a region in {found} of {len(regions)} photographs")


def _cached(photographs: object, key: str) -> list[str]:
    from l2r2.datasets import Dataset
    from l2r2.experiments.localizing import region_cache

    assert isinstance(photographs, Dataset)
    return list(region_cache(photographs, key).load())


def say(dataset: object, as_json: bool) -> None:
    """Print what is in a data set."""
    from l2r2.datasets import Dataset

    assert isinstance(dataset, Dataset)
    sizes = dict(dataset.table["split"].value_counts(sort=True).iter_rows())
    if as_json:
        found = {
            "folder": str(dataset.folder),
            "digest": dataset.digest,
            "classes": dataset.class_names,
            "splits": sizes,
        }
        typer.echo(json.dumps(found))
        return
    typer.echo(
        f"{dataset.folder}: {len(dataset)} photographs, {len(dataset.class_names)} classes, digest {dataset.digest}"
    )
    typer.echo("  " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    if dataset.card.metadata:
        kind = "simulated metadata" if dataset.card.simulated_metadata else "metadata"
        typer.echo(f"  {kind}: {', '.join(dataset.card.metadata)}")
