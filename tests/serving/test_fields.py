"""Messages are counted as they are read: right for every message there is, whatever it is made of."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from l2r2.errors import InputError
from l2r2_serving.fields import MAX_FIELDS, check_fields
from l2r2_serving.inference import grpc_predict_v2_pb2 as kserve
from l2r2_serving.limits import MAX_BATCH, MAX_NAME_CHARS, MAX_SOURCES, MAX_VALUE_CHARS
from l2r2_serving.v1 import recognition_pb2 as pb

KINDS = (pb.BatchRecognizeRequest, pb.StreamRecognizeRequest, kserve.ModelInferRequest)


def count(data: bytes, kind: Any) -> int:
    """The least bound that lets a message through."""
    low, high = 0, 10_000
    while low < high:
        middle = (low + high) // 2
        try:
            check_fields(data, kind.DESCRIPTOR, middle)
            high = middle
        except InputError:
            low = middle + 1
    return low


def test_all_parts_count_wherever_they_are() -> None:
    request = pb.RecognizeRequest(image=b"\x0a\x00" * 1000, metadata={"a": "b", "c": ""}, month=3)
    assert count(request.SerializeToString(), pb.RecognizeRequest) == 1 + 1 + 2 + 4  # an entry has a key and a value
    batch = pb.BatchRecognizeRequest(requests=[request] * 3)
    assert count(batch.SerializeToString(), pb.BatchRecognizeRequest) == 3 * 9
    assert count(b"\x0a\x00" * 500, pb.BatchRecognizeRequest) == 500
    assert count(b"", pb.BatchRecognizeRequest) == 0


def test_the_fullest_message_that_is_allowed_passes() -> None:
    names = [f"{n:0{MAX_NAME_CHARS}}" for n in range(MAX_SOURCES)]
    request = pb.RecognizeRequest(image=b"x", metadata=dict.fromkeys(names, "v" * MAX_VALUE_CHARS), month=1)
    request.habitat = request.substrate = request.bundle = "h"
    batch = pb.BatchRecognizeRequest(requests=[request] * MAX_BATCH)
    assert count(batch.SerializeToString(), pb.BatchRecognizeRequest) < MAX_FIELDS / 2
    contents = kserve.InferTensorContents(fp32_contents=[0.5] * 150_000)
    tensor = kserve.ModelInferRequest.InferInputTensor(name="a", datatype="FP32", shape=[1, 3, 224, 224])
    tensor.contents.CopyFrom(contents)
    assert count(kserve.ModelInferRequest(inputs=[tensor]).SerializeToString(), kserve.ModelInferRequest) < 20


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_are_refused(kind: Any) -> None:
    number = next(each.number for each in kind.DESCRIPTOR.fields if each.message_type is not None)
    with pytest.raises(InputError, match="the message has more than 20,000 fields; send less at once"):
        check_fields(bytes([number << 3 | 2, 0]) * (MAX_FIELDS + 1), kind.DESCRIPTOR)
    check_fields(bytes([number << 3 | 2, 0]) * MAX_FIELDS, kind.DESCRIPTOR)


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_whatever_comes_ends_and_refuses_nothing_that_can_be_read(data: bytes, kind: Any) -> None:
    check_fields(data, kind.DESCRIPTOR)  # two bytes a field at least
    try:
        message = kind.FromString(data)
    except DecodeError:
        return
    assert count(data, kind) >= len(message.ListFields())
