"""Reading a failed call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """The code and the google.rpc.Status of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailing = {item.key: item.value for item in caught.value.trailing_metadata() or ()}
    return caught.value.code(), status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))


def detail(status: status_pb2.Status, kind: type[Any]) -> Any:
    """The detail of that kind; exactly one."""
    found = []
    for packed in status.details:
        value = kind()
        if packed.Unpack(value):
            found.append(value)
    (only,) = found
    return only


def fields(status: status_pb2.Status) -> list[str]:
    """Names of the fields that the status complains about."""
    return [violation.field for violation in detail(status, error_details_pb2.BadRequest).field_violations]


def reason(status: status_pb2.Status) -> str:
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info.domain == "l2r2"
    return str(info.reason)
