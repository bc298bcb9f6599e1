"""BatchRecognize: order kept, one by one, and what is bad loses nothing."""

import grpc
import pytest
from google.rpc import code_pb2, status_pb2

from l2r2.errors import ImageError, InputError, L2R2Error, MetadataError
from l2r2_serving.answer import Answer
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.errors import UnknownBundle
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import Running
from tests.serving.statuses import fields, refused
from tests.serving.test_recognize import CASES, same
from tests.tiny import BLUE, GREEN, RED, encode, make_photo


def test_equals_one_by_one(served: Running, opened: OpenBundle) -> None:
    photos = [encode(photo) for photo, _ in CASES.values()]
    metadata = [values for _, values in CASES.values()]
    with served.client() as client:
        answers = client.recognize_batch(photos, metadata)
        for answer, photo, values in zip(answers, photos, metadata, strict=True):
            assert isinstance(answer, Answer)
            same(answer, client.recognize(photo, values))
            same(answer, opened.answer(photo, values, 5))


def test_bad_items_keep_their_place(served: Running) -> None:
    photos = [encode(make_photo(RED)), b"", encode(make_photo(GREEN)), b"text", encode(make_photo(BLUE))]
    metadata = [{}, {}, {"month": "13"}, {}, {"habitat": "x" * 300}]
    with served.client() as client:
        answers = client.recognize_batch([*photos, photos[0]], [*metadata, {}])
    kinds = [type(answer) for answer in answers]
    assert kinds == [Answer, ImageError, MetadataError, ImageError, MetadataError, Answer]
    assert [a.prediction.answer.name for a in answers if isinstance(a, Answer)] == ["red", "red"]
    assert "empty (0 bytes)" in str(answers[1])


def test_item_status_is_a_google_rpc_status(served: Running) -> None:
    requests = [
        pb.RecognizeRequest(image=encode(make_photo(RED)), month=13),
        pb.RecognizeRequest(image=encode(make_photo(BLUE))),
        pb.RecognizeRequest(image=encode(make_photo(RED)), bundle="other"),
    ]
    with served.stub() as stub:
        results = stub.BatchRecognize(pb.BatchRecognizeRequest(requests=requests)).results
    assert [result.WhichOneof("result") for result in results] == ["status", "response", "status"]
    status = status_pb2.Status.FromString(results[0].status.SerializeToString())
    assert status.code == code_pb2.INVALID_ARGUMENT
    assert fields(status) == ["month"]
    assert results[2].status.code == code_pb2.NOT_FOUND


def test_many_keep_their_order(served: Running) -> None:
    colours = [(RED, "red"), (GREEN, "green"), (BLUE, "blue")] * 21 + [(GREEN, "green")]
    with served.client() as client:
        answers = client.recognize_batch([encode(make_photo(rgb)) for rgb, _ in colours])
    assert [a.prediction.answer.name for a in answers if isinstance(a, Answer)] == [name for _, name in colours]


def test_empty_batch_is_an_empty_answer(served: Running) -> None:
    with served.client() as client:
        assert client.recognize_batch([]) == []


def test_too_many_are_refused_as_a_whole(served: Running) -> None:
    with served.stub() as stub:
        code, status = refused(
            lambda: stub.BatchRecognize(pb.BatchRecognizeRequest(requests=[pb.RecognizeRequest()] * 65))
        )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(status) == ["requests"]
    assert status.message == "a batch of 65 requests; at most 64 are taken, send several"


def test_client_checks_that_lengths_agree(served: Running) -> None:
    with served.client() as client, pytest.raises(InputError, match="2 photographs but 1 metadata"):
        client.recognize_batch([b"", b""], [{}])


def test_unknown_bundle_is_each_items_status(served: Running) -> None:
    with served.client(bundle="other") as client:
        answers = client.recognize_batch([encode(make_photo(RED))] * 2)
    assert all(isinstance(answer, UnknownBundle) for answer in answers)
    assert all(isinstance(answer, L2R2Error) for answer in answers)
