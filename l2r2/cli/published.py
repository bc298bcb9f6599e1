"""`l2r2 data fungitastic | spawrious | dogs | pets | imagenet | hard-imagenet | counter-animal`: published sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Root = Annotated[Path, typer.Argument(help="Folder of the data set as published.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the data set's table (and masks, if any are made).")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def register(data_app: typer.Typer) -> None:
    """Add the commands of this file to `l2r2 data`."""
    for command in (fungitastic, spawrious, dogs, pets, imagenet, hard_imagenet, counter_animal):
        data_app.command(command.__name__.replace("_", "-"))(command)


def fungitastic(
    root: Root,
    out: Out,
    size: Annotated[str, typer.Option(help="Of the photographs: 300p, 500p, 720p or fullsize.")] = "500p",
    as_json: Json = False,
) -> None:
    """FungiTastic-Mini: metadata, masks and photographs as published.

    Example: l2r2 data fungitastic FungiTastic --out data/fungitastic-mini
    """
    from l2r2.cli.data import say
    from l2r2.datasets.fungitastic import from_fungitastic

    say(from_fungitastic(root, out, size=size), as_json)


def spawrious(
    root: Root,
    out: Out,
    variant: Annotated[
        Literal["97", "100"], typer.Option(help="97: as published, two environments; 100: none off its home scene.")
    ] = "100",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Spawrious O2O-easy: dogs before other scenes in test than in train.

    Example: l2r2 data spawrious spawrious224 --variant 97 --out data/spawrious-97
    """
    from l2r2.cli.data import say
    from l2r2.datasets.spawrious import from_spawrious

    say(from_spawrious(root, out, variant=variant, seed=seed), as_json)


def dogs(root: Root, out: Out, seed: Seed = 0, as_json: Json = False) -> None:
    """Stanford Dogs: lists, photographs and boxes as published.

    Example: l2r2 data dogs StanfordDogs --out data/stanford-dogs
    """
    from l2r2.cli.data import say
    from l2r2.datasets.stanford_dogs import from_stanford_dogs

    say(from_stanford_dogs(root, out, seed=seed), as_json)


def pets(root: Root, out: Out, seed: Seed = 0, as_json: Json = False) -> None:
    """Oxford-IIIT Pet: breeds of cats and dogs with masks, as torchvision lays it out.

    Example: l2r2 data pets oxford-iiit-pet --out data/oxford-pets
    """
    from l2r2.cli.data import say
    from l2r2.datasets.oxford_pets import from_oxford_pets

    say(from_oxford_pets(root, out, seed=seed), as_json)


def imagenet(
    root: Root,
    out: Out,
    clean: Annotated[Path | None, typer.Option(help="clean_validation.csv; adds the test set 'clean'.")] = None,
    clean_rule: Annotated[
        Literal["agree", "single"],
        typer.Option(help="agree: the one proposed label is the original; single: one label is proposed."),
    ] = "agree",
    train: Annotated[bool, typer.Option("--train/--test-only", help="Read train too, or test sets alone.")] = True,
    val_share: Annotated[float, typer.Option(help="Of each class's train photographs, held out as val.")] = 0.02,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """ImageNet-1k: {train,val}/<wnid>/*.JPEG; the published val is the test set.

    Example: l2r2 data imagenet ILSVRC2012 --clean clean_validation.csv --out data/imagenet
    """
    from l2r2.cli.data import say
    from l2r2.datasets.imagenet import from_imagenet

    made = from_imagenet(root, out, clean=clean, clean_rule=clean_rule, train=train, val_share=val_share, seed=seed)
    say(made, as_json)


def hard_imagenet(
    imagenet: Annotated[Path, typer.Argument(help="Folder of ImageNet-1k: {train,val}/<wnid>/*.JPEG.")],
    masks: Annotated[Path, typer.Argument(help="Folder of the masks: {train,val}/<wnid>_<name>.")],
    out: Out,
    long_tail: Annotated[Path | None, typer.Option(help="Class folders of the test set 'lt'.")] = None,
    constant: Annotated[Path | None, typer.Option(help="Class folders of the test set 'ct'.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Hard ImageNet: 15 classes of ImageNet-1k with masks.

    Example: l2r2 data hard-imagenet ILSVRC2012 hardImageNet --out data/hard-imagenet
    """
    from l2r2.cli.data import say
    from l2r2.datasets.hard_imagenet import from_hard_imagenet

    say(from_hard_imagenet(imagenet, masks, out, long_tail=long_tail, constant=constant, seed=seed), as_json)


def counter_animal(root: Root, out: Out, as_json: Json = False) -> None:
    """CounterAnimal: animals before common and before rare backgrounds; test sets alone.

    Example: l2r2 data counter-animal LAION-final --out data/counter-animal
    """
    from l2r2.cli.data import say
    from l2r2.datasets.counter_animal import from_counter_animal

    say(from_counter_animal(root, out), as_json)
