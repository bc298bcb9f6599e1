"""How a server runs: every number with its unit, default and source."""

from __future__ import annotations

import os

from pydantic import Field

from l2r2.config import Settings
from l2r2_serving.limits import MAX_MESSAGE_MB, REQUESTS_A_WORKER
from l2r2_serving.memory import MEMORY_S


class ServerSettings(Settings):
    """What `l2r2 serve` may be told."""

    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on. The default is this machine alone: callers are not asked who they are."""
    port: int = Field(50051, ge=0, le=65535)
    """0: a free one."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Photographs recognized at once; None: one a core, the fastest where each inference has one thread."""
    runtime: str | None = None
    """Of the bundle's deployments; None: the one that serves."""
    precision: str | None = None
    """As `runtime`."""
    threads: int | None = Field(None, ge=1)
    """Of one inference, on a CPU; None: as the deployment says. Workers times threads should not exceed the cores."""
    max_queue: int | None = Field(None, ge=1)
    """Requests in flight, running and waiting, beyond which callers are refused; None: four a worker."""
    max_per_client: int | None = Field(None, ge=1)
    """Of those, requests of one caller; None: no less than of all. With several field apps behind one address, name
    callers by tokens or certificates before setting this."""
    memory_s: float = Field(MEMORY_S, gt=0)
    """Seconds that the answers of streams are remembered, for a caller whose connection broke."""
    max_message_mb: int = Field(MAX_MESSAGE_MB, ge=1, le=1024)
    """MiB of one message, either way."""
    reflection: bool = False
    """Whether callers may ask which services and messages there are."""
    grace_s: float = Field(30.0, ge=0)
    """Seconds that requests in flight get once the server is asked to stop; what Kubernetes waits, too."""

    @property
    def worker_count(self) -> int:
        return self.workers or available_cores()

    @property
    def slot_count(self) -> int:
        return self.max_queue or REQUESTS_A_WORKER * self.worker_count


def available_cores() -> int:
    """Cores that this process may use; in a container fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
