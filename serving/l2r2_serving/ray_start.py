"""Starting Ray, or joining a cluster, with nothing open that need not be.

Of its own accord Ray sends usage statistics and lets anybody who reaches its ports run code. Here it does neither;
`ray_proxy` sees to the port that callers reach.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from l2r2.errors import BackendError, BackendMissing
from l2r2_serving.ray_proxy import HOOK

OBJECT_STORE_MB = 256
"""MiB of shared memory of a Ray of our own: photographs in flight, never a data set."""

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
        environment: Of Serve's processes, as `ray_proxy.listening` gives it.
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
