"""Other servers with the same work or the same task, each as its own documentation sets it up; see README.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.measure import Figure


def figures() -> Iterator[tuple[str, Figure]]:
    """As `tests.bench.peers.comparing`; imported late, for the peers' own environments lack what it needs."""
    from tests.bench.peers.comparing import compare

    yield from compare()
