"""`l2r2 export`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
