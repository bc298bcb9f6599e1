"""The same service on Ray Serve: its gRPC proxy in front, replicas that come and go with the load behind it.

While there is no warm replica, and while the service stops, callers hear UNAVAILABLE. `ray_replica` says what else
differs from a server of its own.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from l2r2.errors import BackendError, ConfigError
from l2r2_serving.bundles import REGISTRY, find_bundle
from l2r2_serving.ray_proxy import listening
from l2r2_serving.ray_replica import HEALTH_S, Replica
from l2r2_serving.ray_start import ray_running
from l2r2_serving.server import ARRIVING, check_address
from l2r2_serving.settings import RaySettings, ServerSettings
from l2r2_serving.tls import credentials, require_safe

APPLICATION = "l2r2"
"""Of Ray Serve. It is the only one, so that callers need not name it."""

METHODS = (
    "l2r2_serving.v1.recognition_pb2_grpc.add_RecognitionServiceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)
"""What the proxy answers to."""

UNSUPPORTED = ("processes", "metrics", "traces", "watch_s", "drain_s", "max_connection_age_s")
"""Settings of a server that mean nothing here: replicas are Ray's, and it has metrics of its own."""

_log = logging.getLogger(__name__)


def serve_on_ray(settings: ServerSettings, say: Callable[[str], None]) -> None:
    """Serve one bundle on Ray Serve until SIGINT or SIGTERM; calls in flight are answered first.

    Args:
        settings: Of the whole service.
        say: Called with a line once a replica is warm.
    Raises:
        ConfigError: settings that mean nothing on Ray, an address that cannot be had, or Serve runs there already.
        ArtifactError, BackendMissing, BackendError: the bundle or Ray cannot be had.
    """
    scaling = settings.ray or RaySettings()
    _check(settings, scaling)
    place, *_ = settings.bundles
    uri = settings.tracking_uri if place.startswith(REGISTRY) else None
    bundle = find_bundle(place, uri)
    deployment = bundle.deployment(settings.runtime, settings.precision)
    if not place.startswith(REGISTRY):
        place = str(Path(place).resolve())
    workers = max(1, int(scaling.num_cpus)) if deployment.batch == 1 else 2 * deployment.batch
    each = settings.model_copy(update={"workers": settings.workers or workers})
    check_address(settings.host, settings.port)
    port = settings.port or free_port(settings.host)
    with ray_running(scaling.address, environment=listening(settings, port)) as ray, _asked():
        from ray import serve

        if serve.status().applications:
            raise ConfigError("Ray Serve runs in that cluster already, with a proxy of its own; use another cluster")
        try:
            _deploy(place, each, scaling, port, int(ray.cluster_resources().get("CPU", 1)))
            _check_closed(settings.host, port)
            say(
                f"l2r2 serve: ready on {settings.host}:{port}, bundle {bundle.manifest.name} {bundle.version}, "
                f"{deployment.name}, on Ray"
            )
            threading.Event().wait()
        finally:
            serve.delete(APPLICATION)  # waits for what is in flight
            if scaling.address is not None:
                serve.shutdown()


def _check(settings: ServerSettings, scaling: RaySettings) -> None:
    require_safe(settings)
    fields = ServerSettings.model_fields
    changed = [name for name in UNSUPPORTED if name in fields and getattr(settings, name) != fields[name].default]
    if changed:
        raise ConfigError(f"{', '.join(changed)} mean nothing with --ray; leave them out")
    if settings.reflection and settings.tokens is not None:
        raise ConfigError("with --ray, reflection answers whoever asks, with or without a token; leave one of them out")
    if len(settings.bundles) != 1:
        raise ConfigError(f"{len(settings.bundles)} bundles with --ray; expected one, start one service a bundle")
    if scaling.max_replicas is not None and scaling.max_replicas < scaling.min_replicas:
        raise ConfigError(
            f"max_replicas is {scaling.max_replicas}; expected at least min_replicas, {scaling.min_replicas}"
        )
    if settings.tls is not None:
        credentials(settings.tls)  # says what is wrong with them before Ray is started


def _deploy(place: str, settings: ServerSettings, scaling: RaySettings, port: int, cpus: int) -> None:
    from ray import serve

    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    most = scaling.max_replicas or max(scaling.min_replicas, int(cpus / scaling.num_cpus))
    app = serve.deployment(Replica).options(
        name="recognition",
        # As many calls as a server's gRPC takes: so it is the replica that refuses, with RetryInfo, before Ray does.
        max_ongoing_requests=2 * settings.slot_count + ARRIVING,
        max_queued_requests=ARRIVING,
        user_config={"bundle": place},
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": most,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
        },
        graceful_shutdown_timeout_s=settings.grace_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_timeout_s=HEALTH_S,
        logging_config=quiet,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options={"host": "127.0.0.1", "port": free_port("127.0.0.1")},
        grpc_options={
            "port": port,
            "grpc_servicer_functions": list(METHODS),
            "enable_reflection": settings.reflection,
        },
        logging_config=quiet,
    )
    try:
        serve.run(app.bind(place, settings), name=APPLICATION)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BackendError(f"no replica came up: {lines[-1] if lines else error}; Ray's logs have more") from error


def _check_closed(host: str, port: int) -> None:
    """Whether a proxy that should be heard on one address of this machine is not heard on another."""
    if host != "127.0.0.1":
        return
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(("127.0.0.2", port)) == 0:
            raise BackendError(f"Ray's proxy listens beyond {host}; it was told not to, and nothing is served")


def free_port(host: str) -> int:
    """One that nobody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class _Asked(BaseException):
    """The service is asked to stop."""


@contextmanager
def _asked() -> Iterator[None]:
    """SIGINT and SIGTERM raise `_Asked` inside, once; a second one ends the process."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        for name in before:
            signal.signal(name, signal.SIG_DFL)
        raise _Asked

    before = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Asked:
        _log.info("stopped")
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
