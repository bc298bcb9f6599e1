"""What Prometheus sees: counts that are right, labels that callers cannot multiply, and nothing of what was sent."""

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest

from l2r2.bundle import Bundle
from l2r2.errors import ConfigError
from l2r2_serving.metrics import GAUGES, OTHER, RATES, Exposition, Metrics
from l2r2_serving.observing import Call, Item, Observers
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import Running, eventually, running
from tests.serving.statuses import refused
from tests.tiny import DARK, GREEN, MUDDY, RED, encode, make_photo, make_tiny_bundle, make_uniform

SERVICE = "l2r2.v1.RecognitionService/"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def place(bundle: Bundle, metrics: Metrics) -> Iterator[Running]:
    with running(bundle, observer=metrics) as found:
        metrics.follow(found.server)
        yield found


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"l2r2_{name}", labels) or 0.0


def photo(rgb: tuple[int, int, int] = RED, **fields: object) -> pb.RecognizeRequest:
    return pb.RecognizeRequest(image=encode(make_photo(rgb, DARK)), **fields)


def test_photographs_calls_and_what_happened_to_them(place: Running, metrics: Metrics) -> None:
    with place.stub() as stub:
        for request in (photo(), photo(GREEN), photo(MUDDY), pb.RecognizeRequest(image=encode(make_uniform()))):
            stub.Recognize(request)
        stub.Recognize(photo(habitat="lava", metadata={"soil": "chalk", "made-up": "x"}))
        refused(lambda: stub.Recognize(pb.RecognizeRequest(image=b"text")))
        stub.BatchRecognize(pb.BatchRecognizeRequest(requests=[photo()] * 3))
        eventually(lambda: value(metrics, "calls_total", method=SERVICE + "BatchRecognize", code="OK") == 1)
    assert value(metrics, "calls_total", method=SERVICE + "Recognize", code="OK") == 5
    assert value(metrics, "calls_total", method=SERVICE + "Recognize", code="INVALID_ARGUMENT") == 1
    assert value(metrics, "photographs_total", bundle="tiny", code="OK") == 8
    assert value(metrics, "photographs_total", bundle="tiny", code="INVALID_ARGUMENT") == 1
    assert value(metrics, "batch_photographs_sum") == 3
    assert value(metrics, "chances_total", bundle="tiny", rate="escalated") == 8
    assert value(metrics, "outcomes_total", bundle="tiny", rate="escalated") == 2  # the muddy one, and nothing found
    assert value(metrics, "outcomes_total", bundle="tiny", rate="nothing_found") == 1
    assert value(metrics, "chances_total", bundle="tiny", rate="disagreement_where_both_ran") == 1
    assert value(metrics, "outcomes_total", bundle="tiny", rate="unrecognized") == 1
    assert value(metrics, "unseen_metadata_total", bundle="tiny", source="habitat") == 1
    assert value(metrics, "unseen_metadata_total", bundle="tiny", source=OTHER) == 2
    assert value(metrics, "step_seconds_count", bundle="tiny", step="locate") == 8
    assert value(metrics, "queue_seconds_count") == 9
    assert value(metrics, "confidence_count", bundle="tiny") == 8


def test_photographs_of_inferences_that_join_several_calls(bundle: Bundle, metrics: Metrics) -> None:
    joining = bundle.manifest.reference.model_copy(update={"batch": 4})
    batched = replace(bundle, manifest=bundle.manifest.model_copy(update={"deployments": (joining,)}))
    with running(batched, observer=metrics, ran=metrics.inference, workers=4) as found, found.stub() as stub:
        began = value(metrics, "inference_photographs_sum", stage="FG")
        for call in [stub.Recognize.future(photo()) for _ in range(16)]:
            call.result()
        assert value(metrics, "inference_photographs_sum", stage="FG") == began + 16
    assert value(metrics, "inference_photographs_count", stage="localizer") > 0
    assert value(metrics, "inference_photographs_bucket", stage="FG", le="4.0") == value(
        metrics, "inference_photographs_count", stage="FG"
    )


def test_callers_cannot_multiply_labels(place: Running, metrics: Metrics) -> None:
    with place.stub() as stub:
        for number in range(20):
            refused(lambda number=number: stub.Recognize(photo(bundle=f"made-up-{number}")))
            stub.Recognize(photo(metadata={f"made-up-{number}": "x"}))
        eventually(lambda: value(metrics, "calls_total", method=SERVICE + "Recognize", code="OK") == 20)
    text = scraped(metrics)
    assert "made-up" not in text
    assert value(metrics, "photographs_total", bundle=OTHER, code="NOT_FOUND") == 20


def test_a_replayed_answer_is_counted_apart(place: Running, metrics: Metrics) -> None:
    item = pb.StreamRecognizeRequest(id="a", session="0123456789abcdef", request=photo())
    with place.stub() as stub:
        for _ in range(3):
            list(stub.StreamRecognize(iter([item])))
        eventually(lambda: value(metrics, "calls_total", method=SERVICE + "StreamRecognize", code="OK") == 3)
    assert value(metrics, "photographs_total", bundle="tiny", code="OK") == 1
    assert value(metrics, "replayed_total", bundle="tiny") == 2


def test_gauges_and_the_bundles_own_rates(tmp_path: object, metrics: Metrics) -> None:
    rates = {"escalated": 0.25, "photographs": 240.0}
    with running(make_tiny_bundle(tmp_path / "b", validation=rates), observer=metrics, max_queue=7) as found:
        metrics.follow(found.server)
        assert value(metrics, "slots") == 7
        assert value(metrics, "ready") == 1
        assert value(metrics, "validation_rate", bundle="tiny", rate="escalated") == 0.25
        assert value(metrics, "validation_photographs", bundle="tiny") == 240
        (opened,) = found.server.bundles()
        labels = {"bundle": "tiny", "version": opened.version, "deployment": "onnxruntime/fp32"}
        assert value(metrics, "bundle_info", **labels) == 1
    assert value(metrics, "ready") == 0
    metrics.swap("tiny", refused=True)
    assert value(metrics, "swaps_total", bundle="tiny", outcome="refused") == 1
    with pytest.raises(ConfigError, match="there is no gauge 'speed'"):
        metrics.watch("speed", lambda: 1.0)


def test_a_gauge_that_fails_leaves_the_others(metrics: Metrics) -> None:
    for name in GAUGES:
        metrics.watch(name, lambda: 1.0)
    metrics.watch("slots", lambda: 1 / 0)
    assert metrics.registry.get_sample_value("l2r2_slots") is None
    assert value(metrics, "slots_taken") == 1


def scraped(metrics: Metrics) -> str:
    with Exposition(metrics) as shown:
        with urllib.request.urlopen(f"http://{shown.address}/metrics", timeout=10) as response:
            text = response.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{shown.address}/", timeout=10)
    return text


def test_the_page_is_prometheus_text(place: Running, metrics: Metrics) -> None:
    with place.stub() as stub:
        stub.Recognize(photo())
    text = scraped(metrics)
    assert re.search(r'^l2r2_photographs_total\{bundle="tiny",code="OK"\} 1\.0$', text, re.MULTILINE)
    assert "process_resident_memory_bytes" in text


def test_a_port_that_is_taken_is_said(metrics: Metrics) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics cannot listen on 127.0.0.1:{port}"):
            Exposition(metrics, port=port)


def test_every_rate_that_validation_has_is_seen_in_the_field() -> None:
    assert set(RATES) >= {"escalated", "nothing_found", "disagreement_where_both_ran", "flipped_by_prior"}


def test_an_observer_that_fails_harms_nobody(
    bundle: Bundle, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def item(self, call: Call, item: Item) -> None:
            raise RuntimeError("broken")

        call = item

    with running(bundle, observer=Observers(Broken(), metrics)) as found, found.stub() as stub:
        for _ in range(3):
            assert stub.Recognize(photo()).candidates[0].name == "red"
        eventually(lambda: value(metrics, "calls_total", method=SERVICE + "Recognize", code="OK") == 3)
    assert len(caplog.records) == 1
