"""`l2r2 serve`: settings put together, parts plugged in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2r2.bundle import Bundle
from l2r2.errors import ConfigError
from l2r2_serving.needing import needing_grpc
from l2r2_serving.ray_commands import serve_ray

if TYPE_CHECKING:
    from l2r2_serving.settings import ServerSettings

DEFAULT = "as --config or the environment say"


def serve(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(metavar="BUNDLE …", help="Folders of bundles, or models:/NAME@ALIAS; served by name."),
    ] = None,
    *,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings as TOML; --check prints them.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Print the settings as TOML and serve nothing.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes a free one.", show_default="50051")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Of the bundle's deployments.", show_default="as the bundle says")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the bundle's deployments.", show_default="as the bundle says")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of one inference, on a CPU.", show_default="as the bundle says")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Photos recognized at once.", show_default="number of cores")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Server processes on the port (Linux), with their share.", show_default="1"),
    ] = None,
    max_queue: Annotated[
        int | None,
        typer.Option(min=1, help="Requests in flight; more are refused at once.", show_default="8 × workers"),
    ] = None,
    max_per_client: Annotated[
        int | None, typer.Option(min=1, help="Of those, of one caller.", show_default="no limit")
    ] = None,
    max_message_mb: Annotated[
        int | None, typer.Option(min=1, max=1024, help="MiB of one message.", show_default="32")
    ] = None,
    reflection: Annotated[bool | None, typer.Option("--reflection", help="Let callers ask for the interface.")] = None,
    drain_s: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds of NOT_SERVING before calls are refused on a stop.", show_default="0"),
    ] = None,
    grace_s: Annotated[
        float | None, typer.Option(min=0, help="Seconds that calls in flight get on a stop.", show_default="30")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="The server's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM without passphrase.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Callers need a certificate from these (mTLS).")] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Callers, by token or certificate, are those of this file.")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Plain text beyond this machine, where something else encrypts.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Metrics for Prometheus, on loopback.", show_default="none")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", show_default="text")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info (a line a call), warning or error.", show_default="warning")
    ] = None,
    watch_s: Annotated[
        float | None, typer.Option(min=0, help="Look for new versions so often; 0: never.", show_default="0")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="Where models:/ is; only with it.", show_default="as MLflow is configured")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="On Ray Serve, as all these below.")] = False,
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster.", show_default="one of its own, here")
    ] = None,
    min_replicas: Annotated[int | None, typer.Option(min=1, help="That there always are.", show_default="1")] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="That there may be, by load.", show_default="number of cores")
    ] = None,
    replica_cpus: Annotated[float | None, typer.Option(min=0, help="Cores of a replica.", show_default="1")] = None,
    replica_gpus: Annotated[
        float | None, typer.Option(min=0, help="Its GPUs; 0.25: four share one.", show_default="0")
    ] = None,
) -> None:
    """Answer over gRPC until stopped (Ctrl-C or SIGTERM).

    Settings come from --config, then the environment (L2R2_SERVE_PORT, L2R2_SERVE_TLS__KEY, …), then these options.

    Example: l2r2 serve bundles/flowers --port 50051 --reflection
    """
    from l2r2_serving.configuration import as_toml, load_settings

    flags: dict[str, Any] = {
        "bundles": bundles or None,
        "host": host,
        "port": port,
        "runtime": runtime,
        "precision": precision,
        "threads": threads,
        "workers": workers,
        "processes": processes,
        "max_queue": max_queue,
        "max_per_client": max_per_client,
        "max_message_mb": max_message_mb,
        "reflection": reflection or None,
        "drain_s": drain_s,
        "grace_s": grace_s,
        "tls.certificate": tls_certificate,
        "tls.key": tls_key,
        "tls.client_ca": tls_client_ca,
        "tokens": tokens,
        "insecure": insecure or None,
        "metrics.port": metrics_port,
        "log_format": log_format,
        "log_level": log_level,
        "watch_s": watch_s,
        "tracking_uri": tracking_uri,
        "ray": {} if ray else None,
        "ray.address": ray_address,
        "ray.min_replicas": min_replicas,
        "ray.max_replicas": max_replicas,
        "ray.num_cpus": replica_cpus,
        "ray.num_gpus": replica_gpus,
    }
    settings = load_settings(config, os.environ, flags)
    if check:
        typer.echo(as_toml(settings), nl=False)
        return
    if not settings.bundles:
        raise ConfigError("no bundle to serve; give a folder or models:/NAME@ALIAS, or `bundles` in --config")
    if settings.ray is not None:
        serve_ray(settings)
        return
    with needing_grpc():
        (run if settings.processes == 1 else run_processes)(settings)


def run_processes(settings: ServerSettings) -> None:
    """Serve from several processes until stopped.

    Raises:
        As `run`; also ConfigError where a port cannot be shared, BackendError: processes die too often.
    """
    import asyncio

    from l2r2_serving.logs import set_up_logging
    from l2r2_serving.processes import Processes

    set_up_logging(settings.log_format, settings.log_level)

    def ready(line: str) -> None:
        typer.echo(f"{line}, {settings.processes} processes")

    asyncio.run(Processes(settings, _run_shared).run(ready))


def _run_shared(settings: ServerSettings, say: Callable[[str], None]) -> None:
    run(settings, say, shared_port=True)


def run(settings: ServerSettings, say: Callable[[str], None] = typer.echo, *, shared_port: bool = False) -> None:
    """Serve until stopped.

    Args:
        say: Called with a line once the server is ready.
        shared_port: As `RecognitionServer`.
    Raises:
        ConfigError, ArtifactError, BackendError: a part cannot be had; nothing listens any more.
    """
    import asyncio

    from l2r2_serving import server
    from l2r2_serving.bundles import find_bundle, latest
    from l2r2_serving.logs import AccessLog, set_up_logging
    from l2r2_serving.observing import Observer, Observers
    from l2r2_serving.tls import credentials, require_safe

    set_up_logging(settings.log_format, settings.log_level)
    require_safe(settings)
    parts: dict[str, Any] = {"shared_port": shared_port}
    if settings.tls is not None:
        parts["credentials"] = credentials(settings.tls)
    if settings.tokens is not None:
        from l2r2_serving.auth import TokenInterceptor, Tokens

        parts["interceptors"] = [TokenInterceptor(Tokens(settings.tokens))]
    places = [(place, settings.tracking_uri if place.startswith("models:/") else None) for place in settings.bundles]
    if settings.tracking_uri is not None and not any(uri for _, uri in places):
        find_bundle(settings.bundles[0], settings.tracking_uri)  # says what is wrong with that
    seen = [latest(*place) for place in places] if settings.watch_s else []
    found = [find_bundle(*place) for place in places]
    chosen = settings.runtime, settings.precision
    settings = settings.for_batch(max(bundle.deployment(*chosen).batch for bundle in found))
    observers: list[Observer] = [AccessLog()]
    with ExitStack() as stack:
        on_swap = _metrics(settings, observers, parts, stack) if settings.metrics is not None else None
        if settings.traces is not None:
            from l2r2_serving.tracing import open_traces

            traces = open_traces(settings.traces.endpoint, settings.traces.ratio)
            observers.append(traces)
            stack.callback(traces.close)
        watchers = []
        if settings.watch_s:
            from l2r2_serving.watching import BundleWatcher

            watchers = [
                BundleWatcher(bundle.manifest.name, *place, settings.watch_s, version, on_swap or (lambda _n, _b: None))
                for bundle, place, version in zip(found, places, seen, strict=True)
            ]
        parts["observer"] = Observers(*observers)
        asyncio.run(
            server.serve(found, settings, lambda address: say(_line(address, found, settings)), watchers, **parts)
        )


def _metrics(settings: ServerSettings, observers: list[Any], parts: dict[str, Any], stack: ExitStack) -> Any:
    """Show metrics; gives what is called when a bundle was swapped."""
    from l2r2_serving.metrics import Exposition, Metrics

    assert settings.metrics is not None
    metrics = Metrics()
    observers.append(metrics)
    stack.enter_context(Exposition(metrics, settings.metrics.host, settings.metrics.port))
    parts |= {"made": metrics.follow, "ran": metrics.inference}
    return lambda name, refused: metrics.swap(name, refused=refused)


def _line(address: str, bundles: Sequence[Bundle], settings: ServerSettings) -> str:
    names = ", ".join(
        f"bundle {bundle.manifest.name} {bundle.version}, "
        f"{bundle.deployment(settings.runtime, settings.precision).name}"
        for bundle in bundles
    )
    return f"l2r2 serve: ready on {address}, {names}"
