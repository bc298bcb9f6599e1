"""What the service does, counted for Prometheus, beside what its bundles did on their validation photographs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from socket import AF_INET6
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary
from wsgiref.simple_server import WSGIRequestHandler, make_server

from l2r2.errors import BackendMissing, ConfigError
from l2r2.types import Caution, Prediction, Stage
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.limits import MAX_BATCH
from l2r2_serving.observing import Call, Item

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
    from prometheus_client.registry import Collector
except ImportError as missing:
    raise BackendMissing(f"{missing.name} is not installed; run: pip install 'l2r2[observe]'") from missing

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from l2r2_serving.server import RecognitionServer

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets of durations, seconds: from a step on a GPU to the last call that anyone waits for."""

SIZES = tuple(2**power for power in range(MAX_BATCH.bit_length()))
"""Upper bounds of the buckets of batches, photographs."""

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Upper bounds of the buckets of probabilities."""

RATES = (
    "escalated",
    "nothing_found",
    "disagreement_where_both_ran",
    "flipped_by_prior",
    "withheld",
    "unrecognized",
    "degraded",
)
"""What happens to a share of the answers; named as in `Manifest.validation`, where it says what share to expect."""

GAUGES: Mapping[str, str] = {
    "slots": "Calls that may be in flight.",
    "slots_taken": "Calls in flight, running and waiting.",
    "stream_memory_bytes": "Answers of streams that are kept to be replayed.",
    "ready": "1: warm and SERVING; 0: not, or not any more.",
}
"""What `Metrics.watch` may be given."""

PHOTOGRAPHS = "photographs"
"""What of `Manifest.validation` is a count: without it a rate's own error is not known."""

OTHER = "other"
"""In place of what a caller made up: labels are few, and no caller adds to them."""

_log = logging.getLogger(__name__)


class Metrics:
    """Counts what it is told. Fulfils `Observer`; threads may scrape it meanwhile.

    Attributes:
        registry: Where the metrics are; its own unless another was given.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, bundles: Callable[[], Iterable[OpenBundle]] = tuple
    ) -> None:
        """Make the metrics.

        Args:
            bundles: What is served, asked when somebody scrapes; `Shelf.all` is one such.
        """
        self.registry = registry or CollectorRegistry()
        self._bundles = bundles
        self._photographs_of: WeakKeyDictionary[Call, int] = WeakKeyDictionary()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"l2r2_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"l2r2_{name}", text, labels, buckets=buckets, registry=self.registry)

        self._calls = counter("calls", "Calls that ended.", "method", "code")
        self._call_s = histogram("call_seconds", "Calls, from the first byte to the last.", SECONDS, "method")
        self._batch = histogram("batch_photographs", "Photographs of a BatchRecognize call.", SIZES)
        self._inference = histogram(
            "inference_photographs", "Photographs of an inference that joins several calls.", SIZES, "stage"
        )
        self._photographs = counter("photographs", "Photographs answered or refused, replays apart.", "bundle", "code")
        self._replayed = counter("replayed", "Photographs whose answer was remembered.", "bundle")
        self._photograph_s = histogram(
            "photograph_seconds", "Photographs answered, waiting included.", SECONDS, "bundle"
        )
        self._queue_s = histogram("queue_seconds", "Waiting of a photograph for a worker.", SECONDS)
        self._step_s = histogram("step_seconds", "Steps of a photograph.", SECONDS, "bundle", "step")
        self._outcomes = counter("outcomes", "Answers to which this happened.", "bundle", "rate")
        self._chances = counter("chances", "Answers to which it could have happened.", "bundle", "rate")
        self._cautions = counter("cautions", "Cautions of answers.", "bundle", "caution")
        self._unseen = counter("unseen_metadata", "Metadata values that the bundle never saw.", "bundle", "source")
        self._confidence = histogram("confidence", "Probability of the answer.", SHARES, "bundle")
        self._swaps = counter("swaps", "New versions of a bundle, by what became of them.", "bundle", "outcome")
        self._watched = _Watched(bundles)
        self.registry.register(self._watched)
        ProcessCollector(registry=self.registry)

    def item(self, call: Call, item: Item) -> None:
        """Count a photograph."""
        self._photographs_of[call] = self._photographs_of.get(call, 0) + 1
        answer = item.answer
        bundle = self._name(item)
        if item.replayed:  # counted when it was worked out
            self._replayed.labels(bundle).inc()
            return
        self._photographs.labels(bundle, item.code).inc()
        if answer is not None or item.queued_s:
            self._queue_s.observe(item.queued_s)
        if answer is None or item.code != "OK":
            return
        self._photograph_s.labels(bundle).observe(max(0, item.ended_ns - item.began_ns) / 1e9)
        prediction = answer.prediction
        for step, ms in prediction.latency_ms.items():
            self._step_s.labels(bundle, step).observe(ms / 1000)
        for rate, happened in outcomes(prediction).items():
            self._chances.labels(bundle, rate).inc()
            self._outcomes.labels(bundle, rate).inc(happened)
        for caution in prediction.cautions:
            self._cautions.labels(bundle, caution).inc()
        if prediction.unrecognized:
            known = self._sources(bundle)
            for source in prediction.unrecognized:
                self._unseen.labels(bundle, source if source in known else OTHER).inc()
        self._confidence.labels(bundle).observe(prediction.answer.probability)

    def call(self, call: Call) -> None:
        """Count a call."""
        self._calls.labels(call.method, call.code).inc()
        self._call_s.labels(call.method).observe(max(0, call.ended_ns - call.began_ns) / 1e9)
        photographs = self._photographs_of.pop(call, 0)
        if photographs and call.method.endswith("/BatchRecognize"):
            self._batch.observe(photographs)

    def inference(self, stage: str, photographs: int) -> None:
        """Count an inference that joined the calls of several threads.

        Args:
            stage: As in `Deployment.models`.
            photographs: Along its first axis.
        """
        self._inference.labels(stage).observe(photographs)

    def swap(self, bundle: str, *, refused: bool) -> None:
        """Count a new version of a bundle: served from now on, or refused while the old one serves on."""
        self._swaps.labels(bundle, "refused" if refused else "served").inc()

    def follow(self, server: RecognitionServer) -> None:
        """Show a server's bundles, slots, memory and whether it is ready, as they are when somebody scrapes."""
        self._bundles = self._watched.bundles = server.bundles
        self.watch("slots", lambda: server.slots.size)
        self.watch("slots_taken", lambda: server.slots.taken)
        self.watch("stream_memory_bytes", lambda: server.memory.size)
        self.watch("ready", lambda: server.ready)

    def watch(self, name: str, function: Callable[[], float]) -> None:
        """Show a number that is read when somebody scrapes, as l2r2_NAME.

        Args:
            name: One of `GAUGES`.
            function: Quick, and safe to call from any thread; one that raises leaves its gauge out.
        Raises:
            ConfigError: another name.
        """
        if name not in GAUGES:
            raise ConfigError(f"there is no gauge {name!r}; expected one of: {', '.join(GAUGES)}")
        self._watched.functions[name] = function

    def _name(self, item: Item) -> str:
        if item.answer is not None:
            return item.answer.bundle_name
        served = [bundle.name for bundle in self._bundles()]
        if not item.bundle and len(served) == 1:
            return served[0]
        return item.bundle if item.bundle in served else OTHER

    def _sources(self, bundle: str) -> set[str]:
        return {
            source for each in self._bundles() if each.name == bundle for source in each.manifest.prior.vocabularies
        }


def outcomes(prediction: Prediction) -> dict[str, bool]:
    """Which of `RATES` could have happened to an answer, and whether it did.

    FULL was wanted where it ran, and where an answer is degraded since it could not: both are "escalated", as on
    validation. Nothing can be said to be missing where nobody looked, and FG and FULL differ only where both ran.
    """
    heads = [candidates[0].name for candidates in prediction.stage_candidates.values() if candidates]
    happened = {
        "escalated": Stage.FULL in prediction.stages or prediction.degraded,
        "flipped_by_prior": Caution.FLIPPED_BY_PRIOR in prediction.cautions,
        "withheld": prediction.withheld,
        "unrecognized": bool(prediction.unrecognized),
        "degraded": prediction.degraded,
    }
    if "locate" in prediction.latency_ms:
        happened["nothing_found"] = prediction.region is None
    if len(heads) == len(Stage):
        happened["disagreement_where_both_ran"] = len(set(heads)) > 1
    return happened


class _Watched(Collector):
    """What is read when somebody scrapes."""

    def __init__(self, bundles: Callable[[], Iterable[OpenBundle]]) -> None:
        self.functions: dict[str, Callable[[], float]] = {}
        self.bundles = bundles

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing is asked while it is registered."""
        return _families().values()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Ask, and leave out what fails."""
        families = _families()
        for name, function in list(self.functions.items()):
            try:
                families[name].add_metric([], float(function()))
            except Exception as error:  # noqa: BLE001  the other metrics are still wanted
                _log.warning("gauge %s cannot be read: %s", name, type(error).__name__)
        for bundle in self.bundles():
            families["bundle_info"].add_metric([bundle.name, bundle.version, bundle.deployment], 1.0)
            for rate, value in bundle.manifest.validation.items():
                if rate == PHOTOGRAPHS:
                    families["validation_photographs"].add_metric([bundle.name], value)
                else:
                    families["validation_rate"].add_metric([bundle.name, rate], value)
        return [family for family in families.values() if family.samples]


def _families() -> dict[str, GaugeMetricFamily]:
    families = {name: GaugeMetricFamily(f"l2r2_{name}", text) for name, text in GAUGES.items()}
    families["bundle_info"] = GaugeMetricFamily(
        "l2r2_bundle_info", "Bundles that are served.", labels=["bundle", "version", "deployment"]
    )
    families["validation_rate"] = GaugeMetricFamily(
        "l2r2_validation_rate",
        "What the bundle did on its validation photographs; l2r2_outcomes over l2r2_chances is held against it.",
        labels=["bundle", "rate"],
    )
    families["validation_photographs"] = GaugeMetricFamily(
        "l2r2_validation_photographs", "How many there were.", labels=["bundle"]
    )
    return families


class Exposition:
    """Metrics over plain HTTP, at /metrics and nowhere else, from a thread of its own. A context manager.

    Plain text or OpenMetrics, as the scraper asks. There is no encryption and nobody is asked who they are: bind it to
    loopback or to a network of your own.

    Attributes:
        address: HOST:PORT where it listens.
    """

    def __init__(self, metrics: Metrics, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen.

        Args:
            port: 0: a free one.
        Raises:
            ConfigError: the address cannot be listened on.
        """
        kind = _ServerV6 if ":" in host else _Server
        shown = f"[{host}]" if ":" in host else host
        try:
            self._server = make_server(host, port, _only_metrics(metrics.registry), kind, _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"metrics cannot listen on {shown}:{port}: {reason}; choose another address or port for them"
            ) from error
        self.address = f"{shown}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="l2r2-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Exposition:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _only_metrics(registry: CollectorRegistry) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start_response)  # type: ignore[no-any-return, unused-ignore]
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"metrics are at /metrics\n"]

    return app


class _Server(ThreadingWSGIServer):
    """A second server on the same port would silently share its scrapers, so the port is not shared."""

    allow_reuse_port = False

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a scraper that broke off like everything else, not on stderr."""
        _log.debug("a scrape broke off", exc_info=True)


class _ServerV6(_Server):
    address_family = AF_INET6


class _Handler(WSGIRequestHandler):
    """Says nothing, and waits for no scraper longer than this."""

    timeout = 10

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""
