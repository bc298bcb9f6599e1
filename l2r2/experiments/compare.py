"""Runs side by side: of two systems, who is better, and is it more than chance; of profiles, what each device costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from l2r2.errors import ArtifactError, InputError
from l2r2.manifest import REFERENCE
from l2r2.metrics import Interval, bootstrap
from l2r2.tracking import Store

PROFILES: Final = "profiles"
"""MLflow experiment of what l2r2 profile measured: one run a device and deployment, with `PROFILE` as a file."""

PROFILE: Final = "profile.json"

UNSTEADY: Final = frozenset({"processor MHz", "load", "gpu clocks.sm", "gpu clocks.mem", "gpu temperature.gpu"})
"""Facts about a host that change from minute to minute, and so are no difference between two."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Second run minus first, in accuracy, on the photographs that both judged."""

    split: str
    first: str
    second: str
    first_accuracy: float
    second_accuracy: float
    difference: Interval


def compare_runs(store: Store, first: str, second: str) -> list[Difference]:
    """Paired differences with bootstrap intervals by group.

    Parents are compared system by system; a classifier's run is compared as itself.

    Raises:
        InputError: no such run, or the runs judged no photograph in common.
        ArtifactError: a run has neither predictions nor logits.
    """
    a, b = _predictions(store, first), _predictions(store, second)
    if a["system"].n_unique() == 1 or b["system"].n_unique() == 1:
        pairs = [
            (x, y) for x in a["system"].unique(maintain_order=True) for y in b["system"].unique(maintain_order=True)
        ]
    else:
        pairs = [(name, name) for name in a["system"].unique(maintain_order=True) if name in set(b["system"])]
    found = []
    for x, y in pairs:
        joined = a.filter(pl.col("system") == x).join(b.filter(pl.col("system") == y), ["digest", "split"], suffix="_b")
        for (split,), part in joined.partition_by("split", as_dict=True, maintain_order=True).items():
            right = part["correct"].to_numpy().astype(float), part["correct_b"].to_numpy().astype(float)
            found.append(
                Difference(
                    str(split),
                    x,
                    y,
                    float(right[0].mean()),
                    float(right[1].mean()),
                    bootstrap(right[1] - right[0], part["group"].to_numpy()),
                )
            )
    if not found:
        raise InputError(f"runs {first} and {second} judged no photograph in common; are they of one data set?")
    return found


def _predictions(store: Store, run_id: str) -> pl.DataFrame:
    tags = store.tags_of(run_id)
    if tags.get("kind") == "experiment":
        return pl.read_parquet(store.download(run_id, "tables/predictions.parquet"))
    if tags.get("kind") == "classifier":
        table = pl.read_parquet(Path(store.download(run_id, "logits.parquet"))).filter(pl.col("split") != "train")
        answer = table["logits"].to_numpy().argmax(axis=1).astype(np.int64)
        return table.drop("logits").with_columns(
            system=pl.lit(store.name_of(run_id)),
            predicted=pl.Series(answer),
            correct=pl.Series(answer) == pl.col("label"),
        )
    raise ArtifactError(f"run {run_id} has no predictions; expected a run of l2r2 train")


@dataclass(frozen=True, slots=True)
class ProfileTable:
    """Profiles side by side.

    Attributes:
        columns: One a run: device, runtime and precision.
        rows: Figure → what each run has; empty where it was not measured.
        hosts: Fact → what each host says, for those facts in which they differ.
    """

    bundles: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    hosts: Mapping[str, tuple[str, ...]]

    def markdown(self) -> str:
        """Figures down, runs across."""
        lines = [f"Profiles of {', '.join(dict.fromkeys(self.bundles))}; milliseconds, unless said otherwise.", ""]
        lines += _table("", self.columns, self.rows)
        if self.hosts:
            lines += ["", "What differs between the hosts:", "", *_table("", self.columns, self.hosts)]
        return "\n".join(lines) + "\n"


def profile_runs(store: Store, bundle: str, *, required: bool = True) -> list[str]:
    """Runs of all profiles of a bundle: the newest of each device, runtime, precision and number of threads.

    Raises:
        InputError: there is none, and one is required.
    """
    newest: dict[tuple[str, ...], str] = {}
    known = store.client.get_experiment_by_name(PROFILES)
    query = f"attributes.status = 'FINISHED' and tags.kind = 'profile' and tags.bundle = '{bundle}'"
    for run in store.client.search_runs([known.experiment_id], query) if known else ():  # the newest first
        tags = run.data.tags
        key = tuple(tags.get(name, "") for name in ("device", "runtime", "precision", "threads"))
        newest.setdefault(key, str(run.info.run_id))
    if required and not newest:
        raise InputError(f"{store.uri} has no profile of {bundle!r}; make one: l2r2 profile BUNDLE --data DATA_SET")
    return [newest[key] for key in sorted(newest)]


def compare_profiles(store: Store, run_ids: Sequence[str]) -> ProfileTable:
    """Lay profiles side by side, in the order given.

    Raises:
        InputError: no run, or no such run.
        ArtifactError: a run is no profile.
    """
    if not run_ids:
        raise InputError("no profile to compare; give the ids of runs of l2r2 profile")
    found = [_profile(store, run_id) for run_id in run_ids]
    figures = [dict(_figures(profile)) for profile in found]
    names = dict.fromkeys(name for each in figures for name in each)
    hosts = [profile["host"] for profile in found]
    facts = dict.fromkeys(name for host in hosts for name in host if name not in UNSTEADY)
    told = {name: tuple(host.get(name, "") for host in hosts) for name in facts}
    return ProfileTable(
        bundles=tuple(f"{profile['bundle']} {profile['bundle_version']}" for profile in found),
        columns=tuple(_column(profile) for profile in found),
        rows={name: tuple(each.get(name, "") for each in figures) for name in names},
        hosts={name: values for name, values in told.items() if len(set(values)) > 1},
    )


def _profile(store: Store, run_id: str) -> dict[str, Any]:
    if store.tags_of(run_id).get("kind") != "profile":
        raise ArtifactError(f"run {run_id} is no profile; expected a run of l2r2 profile")
    found: dict[str, Any] = json.loads(store.download(run_id, PROFILE).read_text(encoding="utf-8"))
    return found


def _column(profile: Mapping[str, Any]) -> str:
    host, threads = profile["host"], profile["threads"]
    device = profile.get("device") or host.get("processor") or host.get("machine", "?")
    open_ = "" if profile.get("certified", True) else ", never compared"
    name = f"{profile['runtime']}/{profile.get('precision', 'fp32')}"
    return f"{device}: {name}, {threads} thread{'s' if threads > 1 else ''}{open_}"


def _figures(profile: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name → text, in the order of the table."""
    for name, timing in profile["steps"].items():
        yield f"{name}, p50", _number(timing["p50_ms"])
    for name, key in (("cascade", "cascade"), ("always both", "always_both")):
        for part in ("p50", "p99"):
            yield f"{name}, {part}", _number(profile[key][f"{part}_ms"])
        yield f"{name}, first", _number(profile[key]["first_ms"])
    for model in profile["models"]:
        yield f"{model['model']} alone, batch {model['batch']}, images/s", _number(model["images_per_s"])
    runtime = (profile["runtime"], profile.get("precision", "fp32"))
    change = profile.get("parity", {}).get("accuracy_change", 0.0 if runtime == REFERENCE else None)
    plain = (
        ("photographs/s, one after the other", profile["photographs_per_s"]),
        (f"photographs/s, {profile.get('callers', 1)} callers", profile.get("photographs_per_s_together")),
        ("photographs that ran FULL, %", 100 * profile["escalated"]),
        ("accuracy against the reference, points", None if change is None else 100 * change),
        ("J a photograph, processor", profile.get("joules_per_photograph")),
        ("J a photograph, GPU", profile.get("gpu_joules_per_photograph")),
        ("peak memory, MB", profile["peak_memory_mb"]),
        ("GPU memory, MB", profile.get("gpu_memory_mb")),
        ("loading", profile.get("load_ms")),
    )
    yield from ((name, _number(value)) for name, value in plain if value is not None)


def _number(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    return lines + [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]
