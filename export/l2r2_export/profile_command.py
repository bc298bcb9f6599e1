"""`l2r2 profile BUNDLE` and `l2r2 profile import FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2r2.errors import ConfigError, InputError
from l2r2.files import write_text

if TYPE_CHECKING:
    from l2r2.tracking import Store
    from l2r2_export.profiling import Profile

EXPERIMENT = "profiles"
"""Of MLflow: one run a device and bundle."""


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(profile)


def profile(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle, models:/NAME@ALIAS, or the word import.")],
    file: Annotated[Path | None, typer.Argument(help="After import: what --out wrote, perhaps elsewhere.")] = None,
    *,
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs to profile with.")] = None,
    data: Annotated[Path | None, typer.Option(help="Or a data set, whose test sets are used.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Photographs, evenly spread.")] = 40,
    runtime: Annotated[str, typer.Option(help="As named in the bundle.")] = "onnxruntime",
    batch: Annotated[str, typer.Option(help="Sizes for each model alone.")] = "1,4,8",
    threads: Annotated[int, typer.Option(min=1, help="Of one inference.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the profile there; needs no MLflow.")] = None,
    tracking_uri: Annotated[str | None, typer.Option("--tracking-uri", help="MLflow store, without --out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON instead of text.")] = False,
) -> None:
    """Measure a bundle on this device: each stage, the cascade, each model alone; kept in MLflow or in a file.

    Example: l2r2 profile mlruns/bundles/demo --data data/starter
    """
    from l2r2_export.profiling import read_profile

    if bundle == "import":
        if file is None:
            raise ConfigError("l2r2 profile import needs the file of a profile; expected l2r2 profile import FILE")
        from l2r2.tracking import Store

        found = read_profile(file)
        run_id = keep(Store(tracking_uri), found)
        typer.echo(f"run {run_id} of experiment {EXPERIMENT}: {found.bundle} on {found.host.get('processor', '?')}")
        return
    found = _measure(bundle, _photographs(photos, data, count), runtime, _sizes(batch), threads, tracking_uri)
    if out is not None:
        write_text(out, found.model_dump_json(indent=2) + "\n")
    else:
        from l2r2.tracking import Store

        keep(Store(tracking_uri), found)
    typer.echo(found.model_dump_json() if as_json else as_text(found))


def keep(store: Store, found: Profile) -> str:
    """One run: the host as parameters, the figures as metrics, the profile as a file; gives the run's id."""
    import tempfile

    from l2r2_export.profiling import as_metrics

    device = found.host.get("gpu name") or found.host.get("processor") or found.host.get("machine", "device")
    name = f"{found.bundle} {found.runtime} on {device}"
    tags = {"kind": "profile", "bundle": found.bundle, "bundle_version": found.bundle_version}
    with store.run(EXPERIMENT, name, tags) as run, tempfile.TemporaryDirectory() as folder:
        run.params({"runtime": found.runtime, "threads": found.threads, "taken": found.taken, "host": found.host})
        run.metrics(as_metrics(found))
        path = Path(folder) / "profile.json"
        write_text(path, found.model_dump_json(indent=2) + "\n")
        run.file(path)
        return run.id


def as_text(found: Profile) -> str:
    """A table for people; milliseconds."""
    host = found.host
    lines = [
        f"{found.bundle} {found.bundle_version}, {found.runtime}, {found.threads} thread(s)",
        f"{host.get('processor', '')} ({host.get('usable cores', '?')} cores), {host.get('gpu name', 'no GPU')}",
        "",
        f"{'ms':20} {'first':>8} {'p50':>8} {'p90':>8} {'p99':>8} {'n':>5}",
    ]
    rows = {**found.steps, "cascade": found.cascade, "always both": found.always_both}
    for name, t in rows.items():
        lines.append(f"{name:20} {t.first_ms:8.1f} {t.p50_ms:8.1f} {t.p90_ms:8.1f} {t.p99_ms:8.1f} {t.n:5}")
    lines += ["", f"{'model alone':20} {'batch':>6} {'ms':>8} {'images/s':>9}"]
    lines += [f"{m.model:20} {m.batch:6} {m.batch_ms.p50_ms:8.1f} {m.images_per_s:9.1f}" for m in found.models]
    shares = ", ".join(f"{share}: {ms:.0f}" for share, ms in found.cost_ms.items() if share in {"0.0", "0.3", "1.0"})
    lines += [
        "",
        f"expected ms a photograph by the share that runs FULL: {shares}; here {found.escalated:.2f}",
        f"{found.photographs_per_s:.2f} photographs/s, peak memory {found.peak_memory_mb:.0f} MB",
    ]
    if found.joules_per_photograph is not None:
        lines.append(f"{found.joules_per_photograph:.2f} J a photograph, neighbours included")
    return "\n".join(lines)


def _measure(
    place: str, photographs: list[bytes], runtime: str, batches: list[int], threads: int, uri: str | None
) -> Profile:
    from l2r2.bundle import load_bundle
    from l2r2.cli.progress import progress_bars
    from l2r2_export.profiling import profile_bundle

    if place.startswith("models:/"):
        from l2r2.tracking import fetch_bundle

        place = str(fetch_bundle(place, uri))
    with progress_bars() as bars:
        shown = ""

        def on_step(what: str, done: int, total: int) -> None:
            nonlocal shown
            if what != shown:
                bars.stage(what, total)
                shown = what
            bars.step(done)

        return profile_bundle(
            load_bundle(Path(place)), photographs, runtime=runtime, threads=threads, batches=batches, on_step=on_step
        )


def _photographs(folder: Path | None, data: Path | None, count: int) -> list[bytes]:
    from l2r2.images import SUFFIXES

    if (folder is None) == (data is None):
        raise ConfigError("give either --photos FOLDER or --data DATA_SET, whose photographs are profiled with")
    if data is not None:
        from l2r2.datasets import load_dataset

        dataset = load_dataset(data)
        paths = [path for name in dataset.test_sets for path in dataset.split(name).paths()]
    else:
        assert folder is not None
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < 2:
        raise InputError(f"{len(paths)} photographs in {folder or data}; expected at least 2, the first warms up")
    chosen = sorted({round(i * (len(paths) - 1) / (count - 1)) for i in range(count)})
    return [paths[i].read_bytes() for i in chosen]


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--batch is {text!r}; expected sizes such as 1,4,8") from None
