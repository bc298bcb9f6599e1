"""How a server runs: every number with its unit, default and source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from l2r2.config import Settings
from l2r2.machine import available_cores
from l2r2_serving.limits import MAX_MESSAGE_MB, REQUESTS_A_WORKER
from l2r2_serving.memory import MEMORY_S


class TlsSettings(Settings):
    """Who the server is, and whether callers must say so too. Files are PEM; a renewed one is taken up as it is."""

    certificate: Path
    """The server's, with those that vouch for it."""
    key: Path
    """Its private key, without a passphrase."""
    client_ca: Path | None = None
    """Certificates that callers' own must come from (mTLS); None: callers need none."""


class MetricsSettings(Settings):
    """Where Prometheus finds the metrics: plain HTTP, /metrics."""

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(9464, ge=0, le=65535)
    """0: a free one. Source of the default: OpenTelemetry's, for Prometheus."""


class TracesSettings(Settings):
    """Where OpenTelemetry spans go, by OTLP over gRPC."""

    endpoint: str | None = None
    """http://HOST:PORT; None: as the standard OTEL_… variables say."""
    ratio: float = Field(1.0, ge=0, le=1)
    """Share of the calls that are traced, where the caller has not decided that itself."""


class RaySettings(Settings):
    """How many replicas there are on Ray Serve, and what each is given."""

    address: str | None = None
    """Of a Ray cluster, HOST:PORT or "auto"; None: one of its own on this machine."""
    min_replicas: int = Field(1, ge=1)
    """There always are."""
    max_replicas: int | None = Field(None, ge=1)
    """There may be; None: as many as this machine has cores for."""
    target_ongoing_requests: float = Field(2.0, gt=0)
    """Of a replica on average; above it there will be more of them, below it fewer."""
    upscale_delay_s: float = Field(10.0, ge=0)
    """How long the load must be above that."""
    downscale_delay_s: float = Field(300.0, ge=0)
    """How long it must be below."""
    num_cpus: float = Field(1.0, gt=0)
    """Cores of a replica; it recognizes as many photographs at once."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs of a replica; 0.25: four share one."""


class ServerSettings(Settings):
    """What `l2r2 serve` may be told."""

    bundles: tuple[str, ...] = ()
    """Folders, or models:/NAME@ALIAS; each of another name."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; another than loopback needs TLS, or `insecure`."""
    port: int = Field(50051, ge=0, le=65535)
    """0: a free one."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Photographs recognized at once; None: one a core, the fastest where each inference has one thread, or twice the
    deployment's batch where that is more: one batch gathers while another runs."""
    processes: int = Field(1, ge=1, le=64)
    """Server processes on the port (Linux); `l2r2_serving.processes` says when several help. `workers` is of each, its
    default a share of the cores."""
    runtime: str | None = None
    """Of the bundle's deployments; None: the one that serves."""
    precision: str | None = None
    """As `runtime`."""
    threads: int | None = Field(None, ge=1)
    """Of one inference, on a CPU; None: as the deployment says. Workers times threads should not exceed the cores."""
    max_queue: int | None = Field(None, ge=1)
    """Requests in flight, running and waiting, beyond which callers are refused; None: eight a worker."""
    max_per_client: int | None = Field(None, ge=1)
    """Of those, requests of one caller; None: no less than of all. With several field apps behind one address, name
    callers by tokens or certificates before setting this."""
    memory_s: float = Field(MEMORY_S, gt=0)
    """Seconds that the answers of streams are remembered, for a caller whose connection broke."""
    max_message_mb: int = Field(MAX_MESSAGE_MB, ge=1, le=1024)
    """MiB of one message, either way."""
    reflection: bool = False
    """Whether callers may ask which services and messages there are."""
    tls: TlsSettings | None = None
    """None: plain text."""
    tokens: Path | None = None
    """File of the callers, by token or certificate, as `l2r2 token` writes it; None: nobody is asked."""
    insecure: bool = False
    """Whether plain text may leave this machine: behind a proxy that encrypts, or in a network of your own."""
    metrics: MetricsSettings | None = None
    """None: none are shown."""
    traces: TracesSettings | None = None
    """None: none are sent."""
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """At info a line a call: who, what, how it ended and how long it took; never what was sent."""
    tracking_uri: str | None = None
    """Where models:/ is; None: as MLflow is configured."""
    max_connection_age_s: float | None = Field(None, gt=0)
    """Seconds after which a connection is closed, once its calls have ended, so that callers look for other servers
    and show their certificate again; gRPC spreads it by a tenth. None: connections stay."""
    watch_s: float = Field(0.0, ge=0)
    """Seconds between looks for a new version of each bundle; 0: none is looked for."""
    drain_s: float = Field(0.0, ge=0)
    """Seconds, once the server is asked to stop, in which health says NOT_SERVING and calls are still taken: what load
    balancers need to look elsewhere. Before `grace_s`."""
    grace_s: float = Field(30.0, ge=0)
    """Seconds that requests in flight get once the server is asked to stop; what Kubernetes waits, too."""
    ray: RaySettings | None = None
    """On Ray Serve; `workers` and `max_queue` are of each replica. None: a server of its own."""

    @property
    def worker_count(self) -> int:
        return self.workers or max(1, available_cores() // self.processes)

    def for_batch(self, batch: int) -> ServerSettings:
        """These settings with workers enough for a deployment's batch, unless they say how many."""
        if self.workers is not None or batch == 1:
            return self
        return self.model_copy(update={"workers": max(self.worker_count, 2 * batch)})

    @property
    def slot_count(self) -> int:
        return self.max_queue or REQUESTS_A_WORKER * self.worker_count
