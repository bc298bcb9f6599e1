"""`l2r2 profile BUNDLE` and `l2r2 profile import FILE`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2r2.errors import ConfigError, InputError, L2R2Error
from l2r2.files import write_text

if TYPE_CHECKING:
    from l2r2.bundle import Bundle
    from l2r2.tracking import Store
    from l2r2_export.profiling import Profile

Choice = tuple[str | None, str | None, int | None]
"""Runtime, precision and threads; None: as the bundle has it."""


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
    runtime: Annotated[str | None, typer.Option(help="One or several: onnxruntime,openvino.")] = None,
    precision: Annotated[str | None, typer.Option(help="One or several: fp32,int8.")] = None,
    threads: Annotated[str | None, typer.Option(help="Of one inference; one or several: 1,2.")] = None,
    batch: Annotated[str, typer.Option(help="Sizes for each model alone.")] = "1,4,8",
    warmups: Annotated[int, typer.Option(min=1, help="Inferences that do not count, before each measurement.")] = 3,
    layers: Annotated[bool, typer.Option("--layers", help="Also time each layer, and list the dearest.")] = False,
    device: Annotated[str | None, typer.Option(help="What to call this device.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the profiles there; needs no MLflow.")] = None,
    tracking_uri: Annotated[str | None, typer.Option("--tracking-uri", help="MLflow store, without --out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profiles as JSON instead of text.")] = False,
) -> None:
    """Measure a bundle on this device: each stage, the cascade, each model alone; kept in MLflow or in a file.

    Without --runtime and --precision the deployment that serves; with several, each combination that can be opened,
    in a process of its own, side by side.

    Example: l2r2 profile mlruns/bundles/demo --data data/starter --runtime onnxruntime,openvino --precision fp32,int8
    """
    from l2r2.manifest import REFERENCE
    from l2r2.runtimes.sessions import check_names
    from l2r2_export import profiling

    if bundle == "import":
        if file is None:
            raise ConfigError("l2r2 profile import needs the file of a profile; expected l2r2 profile import FILE")
        for found in profiling.read_profiles(file):
            run_id = keep(_store(tracking_uri), found)
            typer.echo(f"run {run_id} of experiment profiles: {found.bundle}, {found.name} on {found.device}")
        return
    opened, photographs = _bundle(bundle, tracking_uri), _photographs(photos, data, count)
    options = {"batches": _sizes(batch, "batch"), "warmups": warmups, "layers": layers, "device": device}
    choices = list(itertools.product(_names(runtime), _names(precision), _numbers(threads)))
    for runtime_, precision_, _ in choices:
        check_names(runtime_ or REFERENCE[0], precision_ or REFERENCE[1])
    refused: list[str] = []
    if len(choices) == 1:
        profiles = [_measure(opened, photographs, choices[0], options)]
    else:
        profiles, refused = _measure_each(opened, photographs, choices, options)
    if out is not None:
        write_text(out, profiling.as_json(profiles, indent=2) + "\n")
    else:
        for found in profiles:
            keep(_store(tracking_uri), found)
    typer.echo(profiling.as_json(profiles) if as_json else "\n\n".join(_parts(profiles)))
    for line in refused:
        typer.echo(line, err=as_json)


def keep(store: Store, found: Profile) -> str:
    """One run: the host as parameters, the figures as metrics, profile, layers and drawings as files.

    Returns:
        The run's id.
    """
    import tempfile

    from l2r2.experiments.compare import PROFILE, PROFILES, profile_runs
    from l2r2_export.layers import layers_csv
    from l2r2_export.profile_figures import draw
    from l2r2_export.profiling import as_json, as_metrics, read_profiles

    known = profile_runs(store, found.bundle, required=False)
    others = [
        each for run_id in known for each in read_profiles(store.download(run_id, PROFILE)) if not each.same(found)
    ]
    settings = {
        "device": found.device,
        "runtime": found.runtime,
        "precision": found.precision,
        "threads": str(found.threads),
    }
    tags = {"kind": "profile", "bundle": found.bundle, "bundle_version": found.bundle_version, **settings}
    name = f"{found.bundle} {found.name} on {found.device}"
    with store.run(PROFILES, name, tags) as run, tempfile.TemporaryDirectory() as folder:
        run.params({**settings, "certified": found.certified, "taken": found.taken, "host": found.host})
        run.metrics(as_metrics(found))
        for path in draw(found, others, Path(folder)):
            run.file(path, "figures")
        texts = {PROFILE: as_json([found], indent=2) + "\n"}
        if found.layers:
            texts["layers.csv"] = layers_csv(found.layers)
        for file, text in texts.items():
            write_text(Path(folder) / file, text)
            run.file(Path(folder) / file)
        return run.id


def as_text(found: Profile) -> str:
    """A table for people; milliseconds."""
    from l2r2_export.layers import layers_text

    compared = "" if found.certified else "; never compared with the reference"
    lines = [
        f"{found.bundle} {found.bundle_version}, {found.name}{compared}",
        f"{found.device}, {found.host.get('processor flags', '')}".rstrip(", "),
        "",
        f"{'ms':20} {'first':>8} {'p50':>8} {'p90':>8} {'p99':>8} {'n':>5}",
    ]
    rows = {**found.steps, "cascade": found.cascade, "always both": found.always_both}
    for name, t in rows.items():
        lines.append(f"{name:20} {t.first_ms:8.1f} {t.p50_ms:8.1f} {t.p90_ms:8.1f} {t.p99_ms:8.1f} {t.n:5}")
    lines += ["", f"{'model alone':20} {'batch':>6} {'ms':>8} {'images/s':>9}"]
    lines += [f"{m.model:20} {m.batch:6} {m.batch_ms.p50_ms:8.1f} {m.images_per_s:9.1f}" for m in found.models]
    shares = ", ".join(f"{share}: {ms:.0f}" for share, ms in found.cost_ms.items() if share in {"0.0", "0.3", "1.0"})
    lines += ["", f"expected ms a photograph by the share that runs FULL: {shares}; here {found.escalated:.2f}"]
    told = f"{found.photographs_per_s:.2f} photographs/s one after the other"
    if found.photographs_per_s_together is not None:
        told += f", {found.photographs_per_s_together:.2f} with {found.callers} callers"
    lines.append(f"{told}; peak memory {found.peak_memory_mb:.0f} MB")
    if found.gpu_memory_mb is not None:
        lines.append(f"GPU memory {found.gpu_memory_mb:.0f} MB")
    for what, joules in (("processor", found.joules_per_photograph), ("GPU", found.gpu_joules_per_photograph)):
        if joules is not None:
            lines.append(f"{what}: {joules:.2f} J a photograph, neighbours included")
    return "\n".join(lines) + (f"\n{layers_text(found.layers)}" if found.layers else "")


def side_by_side(profiles: Sequence[Profile]) -> str:
    """One line a profile, with the speed against the first's."""
    first = profiles[0]
    width = max(len(found.name) for found in profiles) + 2
    alone = [m.model for m in first.models if m.batch == first.models[0].batch]
    columns = ("cascade ms", *(f"{name} ms" for name in alone), "one by one/s", f"{first.callers} callers/s")
    head = f"{'':{width}}" + "".join(f"{name:>18}" for name in columns) + f"{'MB':>7}{'points':>8}"
    lines = [f"medians, and how many times faster than {first.name}", head]
    for found in profiles:
        cells = [_cell(found.cascade.p50_ms, first.cascade.p50_ms / found.cascade.p50_ms)]
        for ours, theirs in zip(_alone(found), _alone(first), strict=True):
            cells.append(_cell(ours, theirs / ours))
        cells.append(_cell(found.photographs_per_s, found.photographs_per_s / first.photographs_per_s))
        together, then = found.photographs_per_s_together, first.photographs_per_s_together
        cells.append("" if together is None or then is None else _cell(together, together / then))
        change = "?" if found.accuracy_change is None else f"{100 * found.accuracy_change:+.1f}"
        row = "".join(f"{cell:>18}" for cell in cells)
        lines.append(f"{found.name:{width}}{row}{found.peak_memory_mb:7.0f}{change:>8}")
    lines.append("points: accuracy of the whole cascade against the reference; ? was never compared")
    return "\n".join(lines)


def _cell(value: float, ratio: float) -> str:
    return f"{value:.1f} ({ratio:.2f}×)"


def _alone(found: Profile) -> list[float]:
    """Milliseconds of each model alone, at the first batch size."""
    return [m.batch_ms.p50_ms for m in found.models if m.batch == found.models[0].batch]


def _parts(profiles: Sequence[Profile]) -> Iterator[str]:
    if len(profiles) == 1:
        yield as_text(profiles[0])
        return
    from l2r2_export.layers import layers_text

    yield side_by_side(profiles)
    yield from (f"{found.name}\n{layers_text(found.layers)}" for found in profiles if found.layers)


def _measure(bundle: Bundle, photographs: list[bytes], choice: Choice, options: dict[str, Any]) -> Profile:
    from l2r2.cli.progress import progress_bars
    from l2r2_export.profiling import profile_bundle

    runtime, precision, threads = choice
    with progress_bars() as bars:
        return profile_bundle(
            bundle, photographs, runtime=runtime, precision=precision, threads=threads, on_step=bars.follow, **options
        )


def _measure_each(
    bundle: Bundle, photographs: list[bytes], choices: Sequence[Choice], options: dict[str, Any]
) -> tuple[list[Profile], list[str]]:
    """Profiles, and a line a combination that could not be opened.

    Raises:
        InputError: none could.
    """
    from l2r2.cli.progress import progress_bars

    profiles: list[Profile] = []
    refused: list[str] = []
    seen: set[tuple[str, int]] = set()
    with progress_bars() as bars:
        bars.stage("profiling", len(choices))
        for number, choice in enumerate(choices, start=1):
            name = "/".join(part or "…" for part in choice[:2])
            try:
                found = _measure_apart(bundle, photographs, choice, options, seen)
                profiles += [] if found is None else [found]
            except L2R2Error as error:
                refused.append(f"{name}: {error}")
            bars.step(number, name)
    if not profiles:
        raise InputError(f"nothing could be profiled; {'; '.join(refused)}")
    return profiles, refused


def _measure_apart(
    bundle: Bundle, photographs: list[bytes], choice: Choice, options: dict[str, Any], seen: set[tuple[str, int]]
) -> Profile | None:
    """In a process of its own: memory is then its own, and no runtime's threads stand in another's way.

    Returns:
        None where another choice came to the same.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from l2r2.errors import BackendError
    from l2r2.runtimes import why_not
    from l2r2_export.profiling import profile_bundle

    runtime, precision, threads = choice
    deployment = bundle.deployment(runtime, precision, uncertified=True)
    key = (deployment.name, threads or deployment.threads)
    if key in seen:
        return None
    seen.add(key)
    reason = why_not(deployment.runtime)
    if reason is not None:
        raise BackendError(reason)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        work = pool.submit(
            profile_bundle, bundle, photographs, runtime=runtime, precision=precision, threads=threads, **options
        )
        try:
            return work.result()
        except BrokenProcessPool:
            raise BackendError("its process died; profile it alone to see why") from None


def _store(uri: str | None) -> Store:
    from l2r2.tracking import Store

    return Store(uri)


def _bundle(place: str, uri: str | None) -> Bundle:
    from l2r2.bundle import load_bundle

    return load_bundle(_store(uri).fetch(place) if place.startswith("models:/") else Path(place))


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


def _names(text: str | None) -> list[str | None]:
    return [None] if text is None else [part.strip() for part in text.split(",")]


def _numbers(text: str | None) -> list[int | None]:
    return [None] if text is None else [*_sizes(text, "threads")]


def _sizes(text: str, option: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--{option} is {text!r}; expected positive numbers such as 1,4,8")
    return sizes
