"""Commands whose packages may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from l2r2.errors import BackendMissing


@contextmanager
def needing_grpc() -> Iterator[None]:
    """Name the extra that brings what cannot be imported inside."""
    try:
        yield
    except ImportError as error:
        raise BackendMissing(f"{error.name or 'gRPC'} is not installed; run: pip install 'l2r2[serve]'") from error
