"""Spans: one a call, one a photograph, its steps end to end; in the caller's trace, with nothing of what was sent."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from l2r2.bundle import Bundle
from l2r2.errors import ConfigError
from l2r2.types import Candidate, Prediction, Stage
from l2r2_serving import tracing
from l2r2_serving.answer import Answer
from l2r2_serving.observing import Call, Item
from l2r2_serving.tracing import Traces, open_traces
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import eventually, running
from tests.serving.statuses import refused
from tests.tiny import DARK, MUDDY, RED, encode, make_photo

METHOD = "l2r2.v1.RecognitionService/Recognize"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MS = 1_000_000
PHOTO = encode(make_photo(MUDDY, DARK))


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def made(kept: InMemorySpanExporter, ratio: float = 1.0) -> Traces:
    return Traces(SimpleSpanProcessor(kept), ratio)


def call(**fields: object) -> Call:
    return Call(METHOD, **{"began_ns": 1000 * MS, "ended_ns": 1100 * MS, "code": "OK", "request_id": "r-1", **fields})


def item(latency_ms: dict[str, float], **fields: object) -> Item:
    red = (Candidate(0, "red", 0.9),)
    prediction = Prediction(red, None, (8, 8), (Stage.FULL,), {}, None, (), (), latency_ms=latency_ms)
    said = {"began_ns": 1010 * MS, "ended_ns": 1090 * MS, "queued_s": 0.005, "code": "OK"}
    return Item("tiny", answer=Answer(prediction, "tiny", "0123"), **{**said, **fields})


def by_name(kept: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in kept.get_finished_spans()}


def test_steps_lie_end_to_end_after_the_queue(kept: InMemorySpanExporter) -> None:
    traces, this = made(kept), call()
    traces.item(this, item({"decode": 2.0, "locate": 30.0, "classify FULL": 10.0}))
    traces.call(this)
    spans = by_name(kept)
    times = {name: (span.start_time // MS, span.end_time // MS) for name, span in spans.items()}
    assert times == {  # milliseconds: 1010 + 5 + 2 + 30 + 10
        "queue": (1010, 1015),
        "decode": (1015, 1017),
        "locate": (1017, 1047),
        "classify FULL": (1047, 1057),
        "photograph": (1010, 1090),
        METHOD: (1000, 1100),
    }
    assert {name: span.parent and span.parent.span_id for name, span in spans.items()} == {
        **dict.fromkeys(("queue", "decode", "locate", "classify FULL"), spans["photograph"].context.span_id),
        "photograph": spans[METHOD].context.span_id,
        METHOD: None,
    }
    assert spans[METHOD].kind is SpanKind.SERVER


def test_no_step_is_longer_than_its_photograph_whatever_the_clock_did(kept: InMemorySpanExporter) -> None:
    traces, this = made(kept), call(ended_ns=900 * MS)
    traces.item(this, item({"decode": 500.0, "locate": 500.0}, ended_ns=1020 * MS))
    traces.item(this, item({"decode": 1.0}, ended_ns=1 * MS))
    traces.call(this)
    assert len(kept.get_finished_spans()) == 8
    assert all(span.start_time <= span.end_time for span in kept.get_finished_spans())
    first = next(span for span in kept.get_finished_spans() if span.name == "locate")
    assert first.end_time == 1020 * MS


@pytest.mark.parametrize(("flags", "ratio", "spans"), [("01", 0.0, 1), ("00", 1.0, 0), ("", 0.0, 0), ("", 1.0, 1)])
def test_a_traced_caller_decides_and_else_the_ratio(
    kept: InMemorySpanExporter, flags: str, ratio: float, spans: int
) -> None:
    traces = made(kept, ratio)
    traces.call(call(traceparent=f"00-{TRACE}-{PARENT}-{flags}" if flags else ""))
    assert len(kept.get_finished_spans()) == spans
    if flags and spans:
        (span,) = kept.get_finished_spans()
        assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)


@pytest.mark.parametrize(("code", "status"), [("INTERNAL", StatusCode.ERROR), ("INVALID_ARGUMENT", StatusCode.UNSET)])
def test_only_the_servers_faults_are_errors(kept: InMemorySpanExporter, code: str, status: StatusCode) -> None:
    made(kept).call(call(code=code))
    (span,) = kept.get_finished_spans()
    assert span.status.status_code is status
    assert span.attributes["rpc.response.status_code"] == code


def test_what_is_worked_out_after_the_call_is_part_of_it(kept: InMemorySpanExporter) -> None:
    traces, this = made(kept), call()
    traces.call(this)
    traces.item(this, item({}))
    spans = by_name(kept)
    assert spans["photograph"].parent.span_id == spans[METHOD].context.span_id


def test_calls_of_a_real_server_with_nothing_of_what_was_sent(bundle: Bundle, kept: InMemorySpanExporter) -> None:
    said = {"habitat": "my secret place", "metadata": {"finder": "Jane Doe"}}
    sent = [("x-request-id", "mine-1"), ("traceparent", f"00-{TRACE}-{PARENT}-01")]
    with running(bundle, observer=made(kept)) as place, place.stub() as stub:
        stub.Recognize(pb.RecognizeRequest(image=PHOTO, **said), metadata=sent)
        refused(lambda: stub.Recognize(pb.RecognizeRequest(image=b"secret", **said), metadata=sent))
        eventually(lambda: sum(span.name == METHOD for span in kept.get_finished_spans()) == 2)
    spans = kept.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    answered = next(span for span in spans if span.name == "photograph")
    assert answered.attributes["l2r2.bundle"] == "tiny"
    assert answered.attributes["l2r2.stages"] == ("FG", "FULL")  # a muddy one
    names = [span.name for span in spans if span.parent.span_id == answered.context.span_id]
    assert names[0] == "queue"
    assert {"decode", "locate", "render FG", "classify FG", "classify FULL"} <= set(names)
    assert [span.attributes["l2r2.request_id"] for span in spans if span.name == METHOD] == ["mine-1"] * 2
    for word in ("secret", "Jane", "finder", "red"):
        assert not any(word in span.to_json() for span in spans), word


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.services: set[str] = set()

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext) -> object:
        for resource in request.resource_spans:
            self.services |= {
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            }
            self.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_collector_gets_them_by_the_time_it_is_closed(
    bundle: Bundle, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    with collecting() as (collector, endpoint):
        if how == "environment":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            monkeypatch.setenv("OTEL_SERVICE_NAME", "forest")
        traces = open_traces(endpoint if how == "argument" else None)
        with running(bundle, observer=traces) as place, place.stub() as stub:
            stub.Recognize(pb.RecognizeRequest(image=encode(make_photo(RED))))
        traces.close()
        assert {METHOD, "photograph", "locate"} <= set(collector.names)
        assert collector.services == {"forest" if how == "environment" else "l2r2"}


def test_a_collector_that_is_away_costs_no_answer_and_holds_up_no_stop(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    monkeypatch.setattr(tracing, "EXPORT_S", 0.5)
    traces = open_traces("http://127.0.0.1:1")
    with running(bundle, observer=traces) as place, place.stub() as stub:
        assert stub.Recognize(pb.RecognizeRequest(image=encode(make_photo(RED)))).candidates[0].name == "red"
    closing = threading.Thread(target=traces.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


@pytest.mark.parametrize(
    ("endpoint", "ratio", "message"),
    [("collector:4317", 1.0, "traces endpoint is 'collector:4317'"), (None, 1.5, "share of traces kept is 1.5")],
)
def test_what_cannot_be_used_is_said(endpoint: str | None, ratio: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_traces(endpoint, ratio)
