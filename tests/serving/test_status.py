"""Errors ↔ statuses: total, the most specific class wins, and there and back."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import l2r2_serving.client
import l2r2_serving.server  # noqa: F401  both so that every subclass of L2R2Error is known
from l2r2 import errors
from l2r2.errors import ImageError, InputError, L2R2Error, MetadataError, Overloaded, ServingError
from l2r2_serving.errors import UnknownBundle
from l2r2_serving.status import (
    CODES,
    FieldError,
    code_of,
    error_of,
    naming,
    read_details,
    reason_of,
    status_of,
)
from tests.serving.statuses import detail, fields, reason


def every_error(root: type[L2R2Error] = L2R2Error) -> list[type[L2R2Error]]:
    """The classes of this project, not those that tests made."""
    below = [kind for child in root.__subclasses__() for kind in every_error(child)]
    return [root, *below] if root.__module__.startswith(("l2r2.", "l2r2_")) else below


def test_table_is_total() -> None:
    assert set(CODES) == set(every_error())


def test_table_has_every_public_error() -> None:
    public = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, L2R2Error)}
    assert public <= set(CODES)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ImageError, grpc.StatusCode.INVALID_ARGUMENT),
        (MetadataError, grpc.StatusCode.INVALID_ARGUMENT),
        (UnknownBundle, grpc.StatusCode.NOT_FOUND),
        (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.DeadlinePassed, grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.ArtifactError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.NotFittedError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.ServingError, grpc.StatusCode.UNAVAILABLE),
        (RuntimeError, grpc.StatusCode.INTERNAL),
        (ValueError, grpc.StatusCode.INTERNAL),
    ],
)
def test_codes(kind: type[Exception], code: grpc.StatusCode) -> None:
    assert code_of(kind) is code


def test_most_specific_class_wins() -> None:
    class Local(errors.Overloaded):
        pass

    assert code_of(Local) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", CODES)
def test_there_and_back(kind: type[L2R2Error]) -> None:
    status = status_of(kind("what, got, expected"))
    again = error_of(status_pb2.Status.FromString(status.SerializeToString()))
    assert type(again) is kind
    hidden = CODES[kind] is grpc.StatusCode.INTERNAL
    assert ("what, got, expected" in str(again)) is not hidden


def test_reasons_are_distinct_and_upper_snake() -> None:
    assert reason_of(ImageError) == "IMAGE_ERROR"
    assert reason_of(L2R2Error) == "L2R2_ERROR"
    assert reason_of(UnknownBundle) == "UNKNOWN_BUNDLE"
    assert len({reason_of(kind) for kind in CODES}) == len(CODES)


def test_a_field_is_named() -> None:
    with pytest.raises(FieldError) as caught, naming("month"):
        raise MetadataError("month is '13'")
    status = status_of(caught.value)
    assert fields(status) == ["month"]
    assert reason(status) == "METADATA_ERROR"
    assert status.message == "month is '13'"


def test_only_overload_says_when_to_retry() -> None:
    assert detail(status_of(Overloaded("full")), error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000
    kinds = {packed.TypeName() for packed in status_of(ServingError("stopping")).details}
    assert kinds == {"google.rpc.ErrorInfo"}


def test_what_is_unexpected_tells_nothing() -> None:
    status = status_of(RuntimeError("/srv/secret"))
    assert "secret" not in str(status)
    assert reason(status) == "INTERNAL"
    assert type(error_of(status)) is errors.BackendError


def test_a_long_message_still_fits_into_the_trailers() -> None:
    status = status_of(ImageError("×" * 100_000))
    assert len(status.message) == 500
    assert len(status.SerializeToString()) < 4096


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "", InputError),
        (grpc.StatusCode.NOT_FOUND, "", UnknownBundle),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPCs limit exceeded!", Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 8)", InputError),
        (grpc.StatusCode.UNAVAILABLE, "", ServingError),
        (grpc.StatusCode.UNIMPLEMENTED, "", ServingError),
    ],
)
def test_a_status_without_details(code: grpc.StatusCode, message: str, kind: type[L2R2Error]) -> None:
    for trailing in ([], [("grpc-status-details-bin", b"\xff\xff")], [("other", b"")]):
        assert type(error_of(read_details(code, message, trailing))) is kind


def test_details_of_another_domain_are_not_ours() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="from a proxy")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="IMAGE_ERROR", domain="proxy.example"))
    assert type(error_of(status)) is ServingError
