"""The service on Ray Serve, as a user starts it: the same answers, errors and limits through Ray's proxy."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from l2r2.bundle import Bundle
from l2r2.cli import build
from l2r2.errors import ArtifactError, ConfigError, ImageError
from l2r2_serving.auth import hash_of, new_token
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.calling import Retries
from l2r2_serving.client import Client
from l2r2_serving.errors import UnknownBundle
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc
from tests.serving.leaving import session, started
from tests.serving.statuses import detail, fields, reason, refused
from tests.serving.test_cli import L2R2
from tests.tiny import BLUE, MUDDY, RED, encode, make_photo

pytest.importorskip("ray")

pytestmark = pytest.mark.slow  # those with `place`, together

PATIENCE_S = 120.0
"""Ray takes seconds to start, more on a busy machine."""

PHOTO = encode(make_photo(RED))
LARGE = encode(make_photo(MUDDY).repeat(25, 0).repeat(25, 1))
"""12 megapixels: some tenths of a second."""

TOKEN, LESSER = new_token(), new_token()
BEARER, LESSER_BEARER = ((("authorization", f"Bearer {token}"),) for token in (TOKEN, LESSER))


# What is refused before Ray is started


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(build(), ["serve", *(str(argument) for argument in arguments)])


def test_it_is_settings_like_any_other(tmp_path: Path) -> None:
    assert "[ray]" not in invoke("bundle", "--check").stdout
    assert "[ray]\nmin_replicas = 1\n" in invoke("bundle", "--ray", "--check").stdout
    (tmp_path / "file").write_text("[ray]\ntarget_ongoing_requests = 4.0\n")
    shown = invoke("bundle", "--config", tmp_path / "file", "--replica-gpus", 0.25, "--check").stdout
    assert "\nnum_gpus = 0.25\n" in shown
    assert "\ntarget_ongoing_requests = 4.0\n" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "2", "--metrics-port", "0"], "processes, metrics mean nothing with --ray; leave them out"),
        (["other"], "2 bundles with --ray; expected one, start one service a bundle"),
        (["--min-replicas", "3", "--max-replicas", "2"], "max_replicas is 2; expected at least min_replicas, 3"),
        (["--replica-cpus", "0"], "flags: ray.num_cpus = 0.0: Input should be greater than 0"),
        (["--host", "0.0.0.0"], "0.0.0.0 is not loopback, and photographs would travel as plain text"),
        (["--tls-certificate", "no.pem", "--tls-key", "no.pem"], "no.pem cannot be read"),
        (["--runtime", "abacus"], "abacus"),
    ],
)
def test_settings_that_cannot_be(words: list[str], message: str, bundle: Bundle) -> None:
    error = invoke(bundle.folder, "--ray", *words).exception
    assert isinstance(error, ConfigError)
    assert message in str(error)


def test_reflection_would_ask_for_no_token(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text("")
    error = invoke(bundle.folder, "--ray", "--reflection", "--tokens", tmp_path / "tokens.toml").exception
    assert isinstance(error, ConfigError)
    assert "reflection answers whoever asks, with or without a token" in str(error)


def test_no_bundle_and_no_port(bundle: Bundle, tmp_path: Path) -> None:
    assert isinstance(invoke(tmp_path, "--ray").exception, ArtifactError)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        error = invoke(bundle.folder, "--ray", "--port", taken.getsockname()[1]).exception
    assert isinstance(error, ConfigError)
    assert "Address already in use; choose another --host or --port" in str(error)


# The whole, for real: one replica with one worker, TLS, tokens, and one request in flight


@dataclass
class OnRay:
    process: subprocess.Popen[str]
    log: Path
    address: str
    ca: Path

    def client(self, **options: Any) -> Client:
        return Client(self.address, tls=self.ca, token=TOKEN, timeout_s=PATIENCE_S, **options)

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        safe = grpc.ssl_channel_credentials(self.ca.read_bytes())
        alone = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        with grpc.secure_channel(self.address, safe, alone) as channel:
            yield channel

    @contextmanager
    def stub(self) -> Iterator[recognition_pb2_grpc.RecognitionServiceStub]:
        with self.channel() as channel:
            yield recognition_pb2_grpc.RecognitionServiceStub(channel)

    def replicas(self) -> list[int]:
        found = session(self.process.pid).items()
        return [pid for pid, line in found if line.startswith("ray::ServeReplica:l2r2:")]


@pytest.fixture(scope="module")
def place(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRay]:
    folder = tmp_path_factory.mktemp("ray")
    ca = trustme.CA()
    own = ca.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(folder / "key.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "tokens.toml").write_text(
        f'[tokens.app]\nsha256 = "{hash_of(TOKEN)}"\n'
        f'[tokens.lesser]\nsha256 = "{hash_of(LESSER)}"\nmethods = ["GetBundle"]\n'
    )
    words = ["--tls-certificate", folder / "cert.pem", "--tls-key", folder / "key.pem", "--max-replicas", 1]
    words += ["--tokens", folder / "tokens.toml", "--max-queue", 1, "--port", 0, "--ray"]
    log = folder / "log"
    with started([*L2R2, "serve", str(bundle.folder), *map(str, words)], log) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.endswith(f", bundle tiny {bundle.version}, onnxruntime/fp32, on Ray\n"), log.read_text()
        yield OnRay(process, log, line.split("ready on ")[1].split(",")[0], folder / "ca.pem")


def test_answers_are_the_bundles_own(place: OnRay, opened: OpenBundle) -> None:
    photo, known = encode(make_photo(MUDDY)), {"habitat": "forest", "substrate": "lava"}
    with place.client() as client:
        answer = client.recognize(photo, known, top_k=2)
    own = opened.answer(photo, known, 2)
    assert answer.bundle_version == own.bundle_version
    assert answer.unrecognized == {"substrate": "lava"}
    assert answer.prediction.stages == own.prediction.stages
    assert [(c.name, c.probability) for c in answer.prediction.candidates] == [
        (c.name, pytest.approx(c.probability, abs=1e-5)) for c in own.prediction.candidates
    ]


def test_a_batch_keeps_its_order_and_tells_each_error(place: OnRay) -> None:
    with place.client() as client:
        red, wrong, blue = client.recognize_batch([PHOTO, b"no photograph", encode(make_photo(BLUE))])
    assert isinstance(wrong, ImageError)
    assert [each.prediction.answer.name for each in (red, blue) if not isinstance(each, Exception)] == ["red", "blue"]


def test_a_stream_is_answered_once_an_item(place: OnRay) -> None:
    items = [
        pb.StreamRecognizeRequest(id=str(i), session="s" * 16, request=pb.RecognizeRequest(image=image))
        for i, image in enumerate([PHOTO, b"no photograph", encode(make_photo(BLUE)), PHOTO])
    ]
    with place.stub() as stub:
        first = {each.id: each for each in stub.StreamRecognize(iter(items), metadata=BEARER)}
        again = {each.id: each for each in stub.StreamRecognize(iter(items), metadata=BEARER)}
    names = {i: first[i].response.candidates[0].name for i in "023"}
    assert names == {"0": "red", "2": "blue", "3": "red"}
    assert first["1"].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert {i: each.replayed for i, each in again.items()} == dict.fromkeys("0123", True)
    with place.client() as client:
        queue = [(str(i), image, {}) for i, image in enumerate([PHOTO] * 9 + [b"no photograph"])]
        results = {each.id: each.result for each in client.recognize_stream(queue)}
    assert {i for i, result in results.items() if isinstance(result, ImageError)} == {"9"}
    assert len(results) == 10


def test_what_is_served_is_told(place: OnRay, bundle: Bundle) -> None:
    with place.client() as client:
        assert client.bundles() == {"tiny": bundle.version}
        card = client.bundle("tiny")
        with pytest.raises(UnknownBundle, match="no bundle 'other' is served; expected one of: tiny"):
            client.bundle("other")
    assert card.class_names == ("red", "green", "blue")
    assert card.vocabularies["habitat"] == ("forest", "meadow", "shore")


def test_errors_have_their_details(place: OnRay) -> None:
    with place.stub() as stub:
        code, status = refused(lambda: stub.Recognize(pb.RecognizeRequest(image=b"no photograph"), metadata=BEARER))
        assert (code, reason(status), fields(status)) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_ERROR", ["image"])
        code, status = refused(lambda: stub.Recognize(pb.RecognizeRequest(image=PHOTO)))
        assert (code, reason(status)) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        asked = lambda: stub.Recognize(pb.RecognizeRequest(image=PHOTO), metadata=LESSER_BEARER)  # noqa: E731
        code, status = refused(asked)
        assert (code, reason(status)) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
        assert stub.GetBundle(pb.GetBundleRequest(), metadata=LESSER_BEARER).bundle.info.name == "tiny"
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.StreamRecognize(iter([pb.StreamRecognizeRequest(id="1")])))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", ["Recognize", "StreamRecognize"])
def test_a_stranger_is_refused_before_its_message(method: str, place: OnRay) -> None:
    nothing = queue.Queue[None]()
    with place.channel() as channel:
        call = channel.stream_stream(f"/l2r2.v1.RecognitionService/{method}")  # on the wire as a unary one
        code, status = refused(lambda: list(call(iter(nothing.get, None), timeout=PATIENCE_S)))
        assert (code, reason(status)) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        applications = channel.unary_unary("/ray.serve.RayServeAPIService/ListApplications")
        assert refused(lambda: applications(b""))[0] is grpc.StatusCode.UNAUTHENTICATED
        nothing.put(None)


def test_a_message_that_is_none_or_of_too_many_parts_is_refused_by_the_proxy(place: OnRay) -> None:
    with place.channel() as channel:
        batch = channel.unary_unary("/l2r2.v1.RecognitionService/BatchRecognize")
        for data, said in ((b"\xff", "the message cannot be read"), (b"\x0a\x00" * 2**16, "more than 20,000 fields")):
            code, status = refused(lambda data=data: batch(data, metadata=BEARER))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert said in status.message


def test_a_request_keeps_its_name(place: OnRay) -> None:
    with place.stub() as stub:
        named = (*BEARER, ("x-request-id", "field-trip-7"))
        _, call = stub.Recognize.with_call(pb.RecognizeRequest(image=PHOTO), metadata=named)
    assert ("x-request-id", "field-trip-7") in {(each.key, each.value) for each in call.trailing_metadata()}


def test_health_needs_no_token(place: OnRay) -> None:
    with place.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "l2r2.v1.RecognitionService", "l2r2.v1.RecognitionService/tiny"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as watching:
            list(stub.Watch(health_pb2.HealthCheckRequest()))
        assert watching.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert watching.value.details() == "on Ray there is only grpc.health.v1.Health/Check; ask it again and again"


def test_it_listens_where_it_was_told_and_speaks_tls(place: OnRay) -> None:
    port = int(place.address.rpartition(":")[2])
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", port)) != 0
    with grpc.insecure_channel(place.address) as channel:
        stub = recognition_pb2_grpc.RecognitionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetBundle(pb.GetBundleRequest(), metadata=BEARER)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_too_many_are_refused_at_once_and_told_when_to_come_again(place: OnRay) -> None:
    batch = pb.BatchRecognizeRequest(requests=[pb.RecognizeRequest(image=LARGE)] * 8)
    with place.stub() as stub:
        both = [stub.BatchRecognize.future(batch, metadata=BEARER) for _ in range(2)]
        (answered,) = [each for each in both if each.exception(PATIENCE_S) is None]
        (other,) = [each for each in both if each is not answered]
        assert len(answered.result().results) == 8
        code, status = refused(other.result)
    assert (code, reason(status)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 1


def test_a_replica_that_dies_is_replaced(place: OnRay) -> None:
    (before,) = place.replicas()
    os.kill(before, signal.SIGKILL)
    with place.client(retries=Retries(most=60, longest_s=1.0)) as client:
        assert client.recognize(PHOTO).prediction.answer.name == "red"
    (after,) = place.replicas()
    assert after != before


def test_a_stop_answers_what_is_in_flight_and_leaves_nothing(place: OnRay) -> None:
    """The last one: it stops the service of the others."""
    begun, answered, stopped = Event(), Event(), Event()
    batch = pb.BatchRecognizeRequest(requests=[pb.RecognizeRequest(image=LARGE)] * 8)

    def hold() -> int:
        with place.stub() as stub:
            while True:
                call = stub.BatchRecognize.future(batch, metadata=BEARER, timeout=PATIENCE_S)
                begun.set()
                if call.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # somebody else's photograph had the slot
                    break
            answered.set()
            return len([each.response.candidates[0].name for each in call.result().results])

    def ask() -> set[grpc.StatusCode]:
        """Until the service is gone."""
        codes = set()
        with place.stub() as stub:
            while not (stopped.is_set() and grpc.StatusCode.UNAVAILABLE in codes):
                try:
                    stub.Recognize(pb.RecognizeRequest(image=PHOTO), metadata=BEARER, timeout=PATIENCE_S)
                    codes.add(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    codes.add(error.code())
                time.sleep(0.01)
        return codes

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(hold)
        assert begun.wait(PATIENCE_S)
        with place.stub() as stub:
            probe = pb.RecognizeRequest(image=PHOTO)
            full = grpc.StatusCode.RESOURCE_EXHAUSTED
            while stub.Recognize.future(probe, metadata=BEARER, timeout=PATIENCE_S).code() is not full:
                time.sleep(0.1)  # until the batch has the one slot
        asking = pool.submit(ask)
        assert not answered.is_set()
        place.process.send_signal(signal.SIGTERM)
        stopped.set()
        assert holding.result(PATIENCE_S) == 8
        away = grpc.StatusCode.UNAVAILABLE
        assert asking.result(PATIENCE_S) <= {grpc.StatusCode.OK, full, away, grpc.StatusCode.CANCELLED}
    assert place.process.wait(PATIENCE_S) == 0
    assert place.log.read_text() == ""
    assert session(place.process.pid) == {}
