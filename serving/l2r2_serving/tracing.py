"""OpenTelemetry traces: a span a call, one a photograph, one a step, made once the times are known."""

from __future__ import annotations

import threading
from importlib.metadata import version
from weakref import WeakKeyDictionary

from l2r2.errors import BackendMissing, ConfigError
from l2r2_serving.callers import TRACEPARENT
from l2r2_serving.observing import Call, Item

try:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as missing:
    raise BackendMissing(f"{missing.name} is not installed; run: pip install 'l2r2[observe]'") from missing

FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes that are the server's failure; the others are the caller's. Source: OpenTelemetry's conventions for gRPC."""

EXPORT_S = 5.0
"""How long a collector gets to take spans, also at the end: one that is away may not hold up a stop."""

MAX_NAME_CHARS = 80
"""Of a bundle's name that a caller made up."""

Times = tuple[str, int, int]
"""A step, its beginning and its end, in nanoseconds since 1970."""


class Traces:
    """Turns what it is told into spans. Fulfils `Observer`; spans leave in a thread of the processor's own.

    What a caller sent stands in no attribute, but for its request id and the name of the bundle that it asked for. A
    call whose caller is itself traced is part of that trace, and kept exactly where the caller's is.
    """

    def __init__(self, processor: SpanProcessor, ratio: float = 1.0) -> None:
        """Make a tracer.

        Args:
            processor: Where spans go; it is this object's from now on.
            ratio: Share of the calls without a traced caller that are kept, [0, 1].
        Raises:
            ConfigError: the ratio is outside its range.
        """
        _check_ratio(ratio)
        resource = Resource({"service.name": "l2r2", "service.version": version("l2r2")})
        self._provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()),  # OTEL_SERVICE_NAME and its like win
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("l2r2_serving")
        self._spans: WeakKeyDictionary[Call, Span] = WeakKeyDictionary()

    def item(self, call: Call, item: Item) -> None:
        """Make a photograph's span and those of its steps, which lie end to end."""
        within = set_span_in_context(self._span(call))
        span = self._tracer.start_span("photograph", within, start_time=item.began_ns)
        if not span.is_recording():
            return
        within = set_span_in_context(span)
        for step, began, ended in steps(item):
            self._tracer.start_span(step, within, start_time=began).end(ended)
        span.set_attribute("rpc.response.status_code", item.code)
        span.set_attribute("l2r2.replayed", item.replayed)
        if item.answer is None:
            span.set_attribute("l2r2.bundle", item.bundle[:MAX_NAME_CHARS])
        else:
            prediction = item.answer.prediction
            span.set_attribute("l2r2.bundle", item.answer.bundle_name)
            span.set_attribute("l2r2.bundle_version", item.answer.bundle_version)
            span.set_attribute("l2r2.stages", [str(stage) for stage in prediction.stages])
            span.set_attribute("l2r2.cautions", [str(caution) for caution in prediction.cautions])
            span.set_attribute("l2r2.degraded", prediction.degraded)
            span.set_attribute("l2r2.withheld", prediction.withheld)
        _finish(span, item.code, item.began_ns, item.ended_ns)

    def call(self, call: Call) -> None:
        """End the call's span. What a stream works out after its caller left still belongs to it."""
        span = self._span(call)
        span.set_attribute("rpc.response.status_code", call.code)
        _finish(span, call.code, call.began_ns, call.ended_ns)

    def close(self) -> None:
        """Send what is left, as long as `EXPORT_S` allows."""
        # A collector that is away would otherwise hold the process for the half minute that the SDK gives it.
        leaving = threading.Thread(target=self._provider.shutdown, name="l2r2-traces", daemon=True)
        leaving.start()
        leaving.join(EXPORT_S)

    def _span(self, call: Call) -> Span:
        """The call's, begun when it is first wanted and with the time at which the call began."""
        span = self._spans.get(call)
        if span is None:
            parent = TraceContextTextMapPropagator().extract({TRACEPARENT: call.traceparent})
            said = {
                "rpc.system.name": "grpc",
                "rpc.method": call.method,
                "l2r2.request_id": call.request_id,
            }
            span = self._tracer.start_span(
                call.method, parent, kind=SpanKind.SERVER, attributes=said, start_time=call.began_ns
            )
            self._spans[call] = span
        return span


def steps(item: Item) -> list[Times]:
    """When each step of a photograph was: waiting, then its latencies in their order, none longer than the whole."""
    if item.answer is None:
        return []
    latencies = {"queue": 1000 * item.queued_s, **item.answer.prediction.latency_ms}
    times, now = [], item.began_ns
    for step, ms in latencies.items():
        then = max(now, min(now + round(1e6 * ms), item.ended_ns))
        times.append((step, now, then))
        now = then
    return times


def open_traces(endpoint: str | None = None, ratio: float = 1.0) -> Traces:
    """Send traces to a collector, by OTLP over gRPC.

    Args:
        endpoint: http://HOST:PORT or https://HOST:PORT; None: as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
            OTEL_EXPORTER_OTLP_ENDPOINT say, else http://localhost:4317. The other OTEL_EXPORTER_OTLP_… and OTEL_BSP_…
            variables (headers, certificates, batches) count as well.
        ratio: As `Traces`.
    Raises:
        ConfigError: the endpoint or the ratio cannot be used.
    """
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"traces endpoint is {endpoint!r}; expected http://HOST:PORT or https://HOST:PORT")
    _check_ratio(ratio)  # before there is a thread
    return Traces(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_S)), ratio)


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ConfigError(f"the share of traces kept is {ratio}; expected 0 to 1")


def _finish(span: Span, code: str, began_ns: int, ended_ns: int) -> None:
    if code in FAULTS:
        span.set_status(Status(StatusCode.ERROR))
    span.end(max(began_ns, ended_ns))  # a clock may be set back meanwhile
