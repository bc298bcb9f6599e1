"""Training all that a table needs, as far as the data sets are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from l2r2.datasets import load_dataset
from l2r2.errors import L2R2Error
from l2r2.experiments.paper.cells import Need


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one experiment went.

    Attributes:
        run_id: Of the finished run; None: it was not run, or broke off.
        problem: Why; empty where there is a run.
        failed: It was begun and broke off.
    """

    need: Need
    run_id: str | None
    problem: str = ""
    failed: bool = False


def run_needs(needs: Iterable[Need], data: Path, train: Callable[[str, Path], str]) -> Iterator[Outcome]:
    """Train in turn what has its data set in `data`/<card name>; one that breaks off does not stop the rest.

    Args:
        train: Takes a recipe's name and a data set's folder; gives the id of the finished run.
    """
    for need in needs:
        folder = data / need.dataset
        if not folder.is_dir():
            yield Outcome(need, None, f"no data set at {folder}")
            continue
        try:
            name = load_dataset(folder).card.name
            if name != need.dataset:
                yield Outcome(need, None, f"{folder} holds the data set {name!r}; expected {need.dataset!r}")
                continue
            run_id = train(need.recipe, folder)
        except L2R2Error as error:
            yield Outcome(need, None, str(error), failed=True)
        else:
            yield Outcome(need, run_id)
