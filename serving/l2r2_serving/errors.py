"""What only a service raises.

ServingError
├── UnknownBundle     nothing of that name is served
├── NotReady          nothing is served yet
├── Unauthenticated   who calls is not known
└── NotAllowed        who calls is known, and may not do this
"""

from __future__ import annotations

from l2r2.errors import ServingError


class UnknownBundle(ServingError):  # noqa: N818  the state, not the event
    """No bundle of that name is served."""


class NotReady(ServingError):  # noqa: N818
    """The server is still warming up."""


class Unauthenticated(ServingError):  # noqa: N818
    """No token, or none that is known and still good."""


class NotAllowed(ServingError):  # noqa: N818
    """Who calls is known, but may not call this method."""
