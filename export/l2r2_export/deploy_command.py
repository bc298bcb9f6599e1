"""What `l2r2 export` does for a bundle: one more deployment, or the best of those that run here."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from l2r2.errors import ConfigError
from l2r2.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from l2r2.bundle import Bundle
    from l2r2.cli.progress import Bars
    from l2r2.datasets import Dataset
    from l2r2.manifest import Deployment, Precision
    from l2r2.tracking import Store
    from l2r2_export.auto import Search
    from l2r2_export.deploy import Choice, TorchFile
    from l2r2_export.yardstick import Yardstick


@dataclass(frozen=True, slots=True)
class Request:
    """The options of `l2r2 export` that are about deployments."""

    runtime: str | None
    precision: str | None
    size_px: int | None
    threads: int
    serving: bool
    build: bool
    architectures: str
    auto: bool
    latency_ms: float | None
    throughput: float | None
    accuracy_drop: float
    validation: int

    @property
    def asks(self) -> bool:
        """Whether there is a deployment to add."""
        return self.auto or self.runtime is not None or self.precision is not None


def check_request(request: Request) -> None:
    """Refuse options that do not go together, before anything costs time.

    Raises:
        ConfigError: they do not, or there is no such runtime or precision.
    """
    from l2r2.runtimes.sessions import check_names

    for runtime in _names(request.runtime) or ["onnxruntime"]:
        for precision in _names(request.precision) or ["fp32"]:
            check_names(runtime, precision)
    if request.auto:
        given = [("--serving", request.serving), ("--size-px", request.size_px), ("--build", request.build)]
        if wrong := [name for name, value in given if value]:
            raise ConfigError(f"{wrong[0]} does not go with --auto, which decides that; leave it out")
        return
    if request.latency_ms is not None or request.throughput is not None:
        raise ConfigError("--latency-ms and --throughput are goals of --auto; add --auto, or leave them out")
    if request.asks and (request.runtime is None or request.precision is None):
        raise ConfigError("a deployment needs --runtime and --precision, both; or --auto")
    if request.architectures and not request.build:
        raise ConfigError(f"--architectures {request.architectures} is for --build; add it, or leave both out")


def add(
    store: Store, bundle: Bundle, photographs: Dataset, request: Request, bars: Bars
) -> tuple[Bundle, dict[str, object]]:
    """Add what was asked for; its certificate goes into the bundle and to the bundle's run.

    Returns:
        The bundle, and what to tell in JSON.
    Raises:
        ParityError, ExportError, …: from `deploy` and `deploy_best`; the bundle is as it was.
    """
    from l2r2_export.deploy import deploy
    from l2r2_export.yardstick import measure_reference

    yardstick = measure_reference(bundle, photographs, validation_size=request.validation, on_step=bars.follow)
    if request.auto:
        return _best(store, bundle, yardstick, request, bars)
    torch_file = _torch_file(store, bundle) if request.runtime == "torch" else None
    added, lowered = deploy(
        bundle, yardstick, _choice(request), serving=request.serving, torch_file=torch_file, on_step=bars.follow
    )
    _track(store, added, lowered.deployment, lowered.log)
    if not lowered.deployment.decisions:
        typer.echo(f"{lowered.deployment.name} was not compared as a whole: {_why(lowered.deployment)}", err=True)
    return added, {"deployment": lowered.deployment.name}


def _best(
    store: Store, bundle: Bundle, yardstick: Yardstick, request: Request, bars: Bars
) -> tuple[Bundle, dict[str, object]]:
    from l2r2_export.auto import Goal, all_choices, deploy_best

    runtimes, precisions = _names(request.runtime), _names(request.precision)
    choices = [
        choice
        for choice in all_choices()
        if (not runtimes or choice.runtime in runtimes) and (not precisions or choice.precision in precisions)
    ]
    goal = Goal(request.latency_ms, request.throughput, request.accuracy_drop)
    added, found = deploy_best(bundle, yardstick, goal, choices=choices, on_step=bars.follow)
    _track(store, added, found.deployment, found.log, found)
    typer.echo(table(found), err=True)
    values = {"deployment": found.deployment.name, "refused": dict(found.refused)}
    return added, {**values, "tried": [asdict(each) for each in found.tried], "picked": asdict(found.picked)}


def table(found: Search) -> str:
    """What was tried, for people."""
    lines = [f"{'deployment':24} {'px':>4} {'threads':>7} {'batch':>5} {'ms':>8} {'photos/s':>9} {'points lost':>11}"]
    for t in found.tried:
        mark = "  <- serves" if t == found.picked else ""
        lines.append(
            f"{t.name:24} {t.size_px or '':4} {t.threads:7} {t.batch:5} {t.latency_ms:8.1f} {t.throughput:9.2f} "
            f"{t.drop + 0.0:11.2f}{mark}"  # no minus before a zero
        )
    lines += [f"not measured: {name}: {why}" for name, why in found.refused.items()]
    return "\n".join(lines)


def _choice(request: Request) -> Choice:
    from l2r2_export.deploy import Choice

    return Choice(
        runtime=str(request.runtime),
        precision=cast("Precision", request.precision),
        size_px=request.size_px,
        threads=request.threads,
        architectures=tuple(_names(request.architectures)),
        build=request.build,
    )


def _torch_file(store: Store, bundle: Bundle) -> TorchFile | None:
    run_id = bundle.manifest.run_id
    if not store.has(run_id):
        return None
    from l2r2.experiments import load_experiment
    from l2r2_export.export import save_torch

    experiment = load_experiment(store, run_id)
    return lambda stage, path: save_torch(experiment, stage, path)


def _names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _why(deployment: Deployment) -> str:
    from l2r2.runtimes import why_not

    return why_not(deployment.runtime) or "it does not run here"


def _track(
    store: Store,
    bundle: Bundle,
    deployment: Deployment,
    log: Mapping[str, Sequence[Mapping[str, object]]],
    search: Search | None = None,
) -> None:
    """Figures as metrics and the certificate as a file of the bundle's run, where the store has it."""
    from l2r2_export.host import facts

    run_id = bundle.manifest.run_id
    if not store.has(run_id):
        typer.echo(f"run {run_id} is not in {store.uri}: the certificate is in the bundle alone", err=True)
        return
    run = store.adopt(run_id)
    run.metrics(
        {
            f"parity.{deployment.name}.{part}.{name}": value
            for part, figures in deployment.parity.items()
            for name, value in figures.items()
        }
    )
    certificate: dict[str, object] = {
        "bundle": bundle.version,
        "deployment": deployment.model_dump(mode="json"),
        "search": {stage: list(steps) for stage, steps in log.items() if steps},
        "host": facts(),
    }
    if search is not None:
        certificate["tried"] = [asdict(each) for each in search.tried]
        certificate["refused"] = dict(search.refused)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{deployment.name.replace('/', '-')}.json"
        write_text(file, json.dumps(certificate, indent=2) + "\n")
        run.file(file, "export")
