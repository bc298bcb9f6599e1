"""Starting Ray, or joining a cluster, with nothing open that need not be.

Of its own accord Ray sends usage statistics, lets anybody who reaches its ports run code, and has Serve's gRPC proxy
listen on every address in plain text. Here it does none of that.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from l2r2.errors import BackendError, BackendMissing

if TYPE_CHECKING:
    from l2r2_serving.settings import ServerSettings

OBJECT_STORE_MB = 256
"""MiB of shared memory of a Ray of our own: photographs in flight, never a data set."""

LISTENING = "L2R2_RAY_LISTENING"
"""Environment variable that tells Ray's processes where the proxy listens, and with which certificates."""

HOOK = "l2r2_serving.ray_start.listen_as_told"

JOINED = "auto"
"""Address of the cluster that `ray start` began on this machine."""


@contextmanager
def ray_running(
    address: str | None = None, cpus: int | None = None, environment: dict[str, str] | None = None
) -> Iterator[Any]:
    """Ray until the block ends: one of its own on this machine, or a cluster that goes on afterwards.

    Args:
        address: Of a cluster, HOST:PORT or "auto"; None: one is started here, closed to whoever lacks its token.
        cpus: Of a Ray of its own; None: as many as the machine has.
        environment: Of Serve's processes; with `LISTENING` its proxy listens as that says.
    Raises:
        BackendMissing: Ray is not installed.
        BackendError: it cannot be started, or the cluster not be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it calls the actors of Ray Data an error
    if environment:
        os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever else this machine does comes first
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise BackendMissing(f"{error.name or 'ray'} is not installed; run: pip install 'l2r2[serve,ray]'") from error
    runtime: dict[str, Any] = {"env_vars": environment, "worker_process_setup_hook": HOOK} if environment else {}
    own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_MB * 2**20}
    try:
        with _nothing_on_stderr():
            # With `configure_logging` Ray would take over this process's log.
            ray.init(
                address=address or "local",
                log_to_driver=False,
                configure_logging=False,
                runtime_env=runtime or None,
                **(own if address is None else {}),
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        place = "Ray cannot be started here" if address is None else f"no Ray cluster can be reached at {address}"
        raise BackendError(f"{place}: {' '.join(str(error).split())[:300]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Not even the line with which Ray's C++ part says how little it will log; errors are raised."""
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def listening(settings: ServerSettings, port: int) -> dict[str, str]:
    """The environment that has Serve's proxy listen as a server of these settings would."""
    told = {"host": settings.host, "port": port, "tls": settings.tls and settings.tls.model_dump(mode="json")}
    return {LISTENING: json.dumps(told), "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(settings.max_message_mb * 2**20)}


def listen_as_told() -> None:
    """Run by Ray first thing in each of its processes.

    Serve has no setting for its gRPC proxy's address or certificates (2.60: "[::]", plain text), and says NOT_FOUND
    where there is no replica yet, or no longer. The functions that do so are replaced; where a later Ray has none of
    their names, its processes fail instead of listening everywhere.
    """
    from ray.serve._private import default_impl, proxy

    if not (hasattr(default_impl, "add_grpc_address") and hasattr(proxy.gRPCProxy, "not_found_response")):
        raise BackendError("this version of Ray opens the proxy's port otherwise; use Ray 2.60")
    default_impl.add_grpc_address = _add_address
    proxy.gRPCProxy.not_found_response = _unavailable


async def _unavailable(_proxy: object, _request: object) -> AsyncIterator[Any]:
    import grpc
    from ray.serve._private.proxy_request_response import ResponseStatus

    yield ResponseStatus(grpc.StatusCode.UNAVAILABLE, True, "the service is starting or stopping; try again")


def _add_address(server: Any, _everywhere: str) -> None:
    from l2r2_serving.settings import TlsSettings

    told = json.loads(os.environ[LISTENING])
    host = f"[{told['host']}]" if ":" in told["host"] else told["host"]
    place = f"{host}:{told['port']}"
    if told["tls"] is None:
        server.add_insecure_port(place)
    else:
        from l2r2_serving.tls import credentials

        server.add_secure_port(place, credentials(TlsSettings.model_validate(told["tls"])))
