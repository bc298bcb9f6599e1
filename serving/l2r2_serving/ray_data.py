"""Millions of photographs → a folder of Parquet files with Ray Data: one row a photograph, whatever happens meanwhile.

    _run.json            what the run is: bundle, options, digest of the listing; another one is refused in this folder
    _listing.parquet     the photographs and what is known of them, in order
    part-00000.parquet   a shard's answers: rows in the order of the listing; whole or not there
    _manifest.json       the parts with their rows and errors, once all of them are there

A shard is a fixed slice of the listing and one actor's work; its file is written beside and renamed. A run that was
killed is started again by the same command: a shard whose file is there is never done again, a half-written file has
another name. Actors on several machines must see the photographs and the folder at the same path.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from l2r2 import errors, machine
from l2r2.bundle import Bundle
from l2r2.config import Settings
from l2r2.errors import ArtifactError, BackendError, ConfigError, L2R2Error
from l2r2.files import sha256, write_table, write_text
from l2r2_serving.bundles import OpenBundle, find_bundle, open_bundle
from l2r2_serving.limits import DEFAULT_TOP_K, MAX_TOP_K
from l2r2_serving.ray_listing import list_photographs
from l2r2_serving.ray_rows import SCHEMA, recognized
from l2r2_serving.ray_start import ray_running

RUN, LISTING, MANIFEST, LOCK = "_run.json", "_listing.parquet", "_manifest.json", "_lock"

RESTARTS = 3
"""Of an actor whose process died, and tries of the shard it had: a photograph that kills it again ends the run."""


class DatasetSettings(Settings):
    """How a data set is recognized. What changes answers or their order is part of the run's key."""

    runtime: str | None = None
    """Of the bundle's deployments; None: the one that serves."""
    precision: str | None = None
    """As `runtime`."""
    top_k: int = Field(DEFAULT_TOP_K, ge=1, le=MAX_TOP_K)
    """Candidates of a row."""
    shard_size: int = Field(500, ge=1, le=100_000)
    """Photographs of a part; what is lost at most, an actor, when a run is killed."""
    address: str | None = None
    """Of a Ray cluster, HOST:PORT or "auto"; None: one of its own on this machine."""
    num_cpus: float = Field(1.0, gt=0)
    """Cores of an actor; each inference has one thread."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs of an actor; 0.25: four share one."""
    actors: int | None = Field(None, ge=1)
    """None: as many as there are cores and GPUs for."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run has done.

    Attributes:
        photographs, errors: In the whole output; rows, and those with an error.
        done: Photographs of this run; the others were there already.
        seconds: Of this run, without starting Ray.
    """

    photographs: int
    errors: int
    done: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Photographs a second of this run."""
        return self.done / self.seconds if self.seconds else 0.0


def recognize_dataset(
    source: Path,
    out: Path,
    place: str,
    settings: DatasetSettings,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Summary:
    """Recognize each photograph of a folder or a table once.

    Args:
        source: A folder or a table, as for `list_photographs`.
        out: Folder of the output; a run that was broken off goes on there.
        place: Of the bundle, as for `find_bundle`.
        progress: Called with photographs there are and shall be, after each shard.
    Raises:
        DatasetError: there is no photograph, or one twice.
        ConfigError: the folder holds another run.
        ArtifactError: the folder cannot be written, or is in use.
        BackendMissing, BackendError: Ray or the models failed; what is done stays.
    """
    if source.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"the output {out} holds the photographs {source}; choose another folder")
    bundle = find_bundle(place)
    listing = list_photographs(source, bundle.manifest.prior.vocabularies)
    with _locked(out):
        _begin(out, bundle, listing, settings, source)
        sizes = [
            min(settings.shard_size, len(listing) - first) for first in range(0, len(listing), settings.shard_size)
        ]
        missing = [shard for shard in range(len(sizes)) if not part(out, shard).exists()]
        total, began = len(listing), time.perf_counter()
        here = already = total - sum(sizes[shard] for shard in missing)
        progress(here, total)
        if missing:
            with ray_running(settings.address) as ray:
                began = time.perf_counter()
                for shard in _run(ray, missing, out.resolve(), bundle.folder.resolve(), settings):
                    here += sizes[shard]
                    progress(here, total)
        seconds = time.perf_counter() - began
        failed = _finish(out, len(sizes), total)
    return Summary(total, failed, total - already, seconds)


def part(out: Path, shard: int) -> Path:
    """Where a shard's answers are."""
    return out / f"part-{shard:05d}.parquet"


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Alone in the folder; the lock goes with the process, however that ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(f"{out} is in use by another run; wait for it, or choose another --out") from None
            yield
    except OSError as error:
        raise ArtifactError(f"cannot write {out}: {error.strerror}; make room and run it again") from error


def _begin(out: Path, bundle: Bundle, listing: pl.DataFrame, settings: DatasetSettings, source: Path) -> None:
    """Make the folder this run's, or see that it is."""
    run = {
        "schema": 1,
        "bundle": bundle.manifest.name,
        "bundle_version": bundle.version,
        "deployment": bundle.deployment(settings.runtime, settings.precision).name,
        "top_k": settings.top_k,
        "shard_size": settings.shard_size,
        "photographs": len(listing),
        "listing_sha256": _digest(listing),
    }
    try:
        before = json.loads((out / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = [file.name for file in out.iterdir() if file.name != LOCK and not file.name.endswith(".tmp")]
        if LISTING in others and len(others) == 1:  # killed before it had begun
            others = []
        if others:
            raise ConfigError(f"{out} holds {others[0]} and no run; choose an empty folder as --out") from None
        write_table(out / LISTING, listing)
        write_text(out / RUN, json.dumps({**run, "source": str(source)}, indent=2) + "\n")
    except ValueError as error:
        raise ArtifactError(f"{out / RUN} is no JSON: {error}; choose another --out") from error
    else:
        other = [f"{name} is {run[name]}, was {before.get(name)}" for name in run if run[name] != before.get(name)]
        if other:
            raise ConfigError(f"{out} holds another run ({other[0]}); choose another --out, or ask for the same again")
    for torn in out.glob(".*.tmp"):
        torn.unlink(missing_ok=True)


def _digest(listing: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for row in listing.select("path", *sorted(set(listing.columns) - {"path"})).iter_rows(named=True):
        digest.update(json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _run(ray: Any, shards: list[int], out: Path, bundle: Path, settings: DatasetSettings) -> Iterator[int]:
    """Give each shard once it is written."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised
    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 1) / settings.num_cpus)
    if settings.num_gpus:
        room = min(room, int(resources.get("GPU", 0) / settings.num_gpus))
    if room < 1:
        raise ConfigError(
            f"an actor wants {settings.num_cpus:g} cores and {settings.num_gpus:g} GPUs; Ray has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}"
        )
    actors = min(settings.actors or room, len(shards))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.64 will have another way to say how often; ours is not to be endless
        rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map(
            Recognizing,
            fn_constructor_args=(out, bundle, settings),
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus or None,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
    try:
        for row in rows.iter_rows():
            yield _done(row)
    except ray.exceptions.RayActorError as error:
        undone = next((shard for shard in shards if not part(out, shard).exists()), shards[-1])
        first, last = undone * settings.shard_size, (undone + 1) * settings.shard_size - 1
        raise BackendError(
            f"recognizing broke off: {RESTARTS + 1} processes died over one part, of too little memory or a photograph "
            f"that kills its decoder; the first part that is missing has rows {first} to {last} of {out / LISTING}. "
            "What is done stays; take the photograph out, or give each process more memory, and run it again"
        ) from error
    except L2R2Error:
        raise
    except Exception as error:  # an edge: Ray has many
        raise _broken(error) from error


def _done(row: dict[str, Any]) -> int:
    """The shard; raises what its actor met."""
    if row["error"]:
        raise getattr(errors, row["error"], BackendError)(row["message"])
    return int(row["shard"])


def _broken(error: Exception) -> BackendError:
    said = " ".join(str(error).split())[:300]
    return BackendError(f"recognizing broke off: {type(error).__name__}: {said}; what is done stays, run it again")


def _finish(out: Path, shards: int, total: int) -> int:
    """Write the manifest; gives the photographs that could not be recognized."""
    rows = failures = 0
    parts = []
    for file in (part(out, shard) for shard in range(shards)):
        told = pl.read_parquet(file, columns=["error"])["error"]
        failed = len(told) - told.null_count()
        parts.append({"file": file.name, "rows": len(told), "errors": failed, "sha256": sha256(file)})
        rows, failures = rows + len(told), failures + failed
    if rows != total:
        raise ArtifactError(f"{out} has {rows} rows of {total} photographs; it was changed, start in an empty folder")
    manifest = {"photographs": rows, "errors": failures, "parts": parts}
    write_text(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return failures


class Recognizing:
    """An actor: opens the bundle once, then does shard after shard, one photograph at a time."""

    def __init__(self, out: Path, bundle: Path, settings: DatasetSettings) -> None:
        machine.settle_memory()
        self._out, self._bundle, self._settings = out, bundle, settings
        self._size, self._top_k = settings.shard_size, settings.top_k
        self._listing = pl.scan_parquet(out / LISTING)
        self._opened: OpenBundle | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a shard.

        Returns:
            It, and why it could not be written, by an error's name: of one that is raised Ray would keep the traceback
            alone.
        """
        shard = int(row["shard"])
        error: L2R2Error | None = None
        try:
            self._write(shard)
        except L2R2Error as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001  an edge
            error = _broken(raised)
        return {"shard": shard, "error": "" if error is None else type(error).__name__, "message": str(error or "")}

    def _open(self) -> OpenBundle:
        opened = open_bundle(find_bundle(str(self._bundle)), self._settings.runtime, self._settings.precision, 1)
        opened.warm_up()
        return opened

    def _write(self, shard: int) -> None:
        opened = self._opened = self._opened or self._open()
        if not part(self._out, shard).exists():  # Ray may ask again for what a lost answer was about
            photographs = self._listing.slice(shard * self._size, self._size).collect()
            rows = [
                recognized(opened, self._top_k, each.pop("path"), each) for each in photographs.iter_rows(named=True)
            ]
            write_table(part(self._out, shard), pl.DataFrame(rows, schema=SCHEMA))
