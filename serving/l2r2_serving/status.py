"""Errors ↔ gRPC statuses.

A status carries a google.rpc.Status in its trailing metadata: ErrorInfo names the error's class, BadRequest the field,
RetryInfo when to try again. A client turns it back into the same class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from l2r2 import errors
from l2r2.errors import DeadlinePassed, InputError, L2R2Error, Overloaded, ServingError
from l2r2_serving.errors import NotAllowed, NotReady, Unauthenticated, UnknownBundle
from l2r2_serving.limits import RETRY_AFTER_S

DOMAIN = "l2r2"
"""Of ErrorInfo."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that hold the google.rpc.Status. Source: gRPC's richer error model."""

MAX_MESSAGE_CHARS = 500
"""Of an error; all trailing metadata must fit into gRPC's 8 KiB, percent-encoded, twice."""

INTERNAL_MESSAGE = "the service failed on this request; nothing is wrong with what was sent, its log has the reason"

CODES: Mapping[type[L2R2Error], grpc.StatusCode] = {
    errors.L2R2Error: grpc.StatusCode.INTERNAL,
    errors.InputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ImageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MetadataError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DatasetError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ArtifactError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFittedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TrainingError: grpc.StatusCode.INTERNAL,
    errors.BackendError: grpc.StatusCode.INTERNAL,
    errors.BackendMissing: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExportError: grpc.StatusCode.INTERNAL,
    errors.ParityError: grpc.StatusCode.INTERNAL,
    errors.ServingError: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnknownBundle: grpc.StatusCode.NOT_FOUND,
    NotReady: grpc.StatusCode.FAILED_PRECONDITION,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
}
"""Every error class → its status. A test keeps it total."""

_BY_CODE: Mapping[int, type[L2R2Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: InputError,
    grpc.StatusCode.NOT_FOUND.value[0]: UnknownBundle,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: DeadlinePassed,
    grpc.StatusCode.INTERNAL.value[0]: errors.BackendError,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: NotAllowed,
}
"""Where a status names no class, since it was not the service that made it; else ServingError."""


class FieldError(Exception):
    """An error and the field of the request that it is about; never leaves the service.

    Attributes:
        field: Name in the message, "month" or "metadata[soil]".
        error: What is wrong with it.
    """

    def __init__(self, field: str, error: InputError) -> None:
        super().__init__(f"{field}: {error}")
        self.field = field
        self.error = error


@contextmanager
def naming(field: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Turn an error of `kind` inside into a FieldError about `field`."""
    try:
        yield
    except kind as error:
        raise FieldError(field, error) from error


def code_of(kind: type[BaseException]) -> grpc.StatusCode:
    """The code of an error's class, or of its nearest known parent; INTERNAL for what is not ours."""
    return next((CODES[parent] for parent in kind.__mro__ if parent in CODES), grpc.StatusCode.INTERNAL)


def grpc_code_of(problem: BaseException) -> grpc.StatusCode:
    """The code that an error ends a call with."""
    return code_of(type(problem.error if isinstance(problem, FieldError) else problem))


def reason_of(kind: type[BaseException]) -> str:
    """ImageError → IMAGE_ERROR."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", kind.__name__).upper()


def status_of(problem: Exception) -> status_pb2.Status:
    """Say an error as a google.rpc.Status.

    What is INTERNAL keeps its message to the server's log: it may name files and is of no use to a caller.
    """
    field, error = (problem.field, problem.error) if isinstance(problem, FieldError) else ("", problem)
    code = code_of(type(error))
    known = isinstance(error, L2R2Error)
    message = INTERNAL_MESSAGE if code is grpc.StatusCode.INTERNAL else _short(str(error))
    status = status_pb2.Status(code=code.value[0], message=message)
    reason = reason_of(type(error)) if known else "INTERNAL"
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message, reason=reason)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        delay = Duration(nanos=int(RETRY_AFTER_S % 1 * 1e9), seconds=int(RETRY_AFTER_S))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def error_of(status: status_pb2.Status) -> L2R2Error:
    """Turn a status back into the error that it was made of; where it names none, into the one its code suggests."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
    kinds = {reason_of(kind): kind for kind in CODES}
    if info.domain == DOMAIN and info.reason in kinds:
        return kinds[info.reason](status.message)
    if status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] and "larger than max" in status.message:
        return InputError(
            f"the message is too large for the server ({status.message}); send smaller or fewer photographs"
        )
    return _BY_CODE.get(status.code, ServingError)(status.message)


def read_details(code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status:
    """The google.rpc.Status of a failed call; from code and message alone where a proxy or gRPC itself refused it."""
    plain = status_pb2.Status(code=code.value[0], message=message)
    for key, value in trailing:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                rich = status_pb2.Status.FromString(value)
            except DecodeError:
                return plain
            return rich if rich.code == plain.code else plain
    return plain


def _short(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"
