"""`l2r2 token`: tokens for callers, of which only hashes are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from l2r2.errors import ConfigError
from l2r2.files import write_text
from l2r2_serving.needing import needing_grpc

FILE = Path("tokens.toml")


def token(
    name: Annotated[str, typer.Argument(help="The caller's: letters, digits, - and _.")],
    *,
    file: Annotated[Path, typer.Option(help="Token file; made where there is none.")] = FILE,
    methods: Annotated[
        str | None, typer.Option(help="What it may call: Recognize,GetBundle.", show_default="everything")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="How long it is good.", show_default="for ever")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the caller's token away.")] = False,
) -> None:
    """Make a token, print it this once and keep its hash; or take one away. A running server takes up the change.

    Example: l2r2 token herbarium-app --methods Recognize,StreamRecognize --days 365
    """
    with needing_grpc():
        from l2r2_serving.auth import Token, hash_of, new_token, read_tokens
    if not name or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in name):
        raise ConfigError(f"a caller named {name!r}; expected letters, digits, - and _")
    known = dict(read_tokens(file)) if file.exists() else {}
    if revoke:
        if known.pop(name, None) is None:
            raise ConfigError(f"{file} has no caller {name!r}; it has {', '.join(known) or 'none'}")
    elif name in known:
        raise ConfigError(f"{file} has a caller {name!r} already; take its token away first: --revoke")
    else:
        made = new_token()
        known[name] = Token(
            sha256=hash_of(made),
            methods=tuple(part.strip() for part in (methods or "").split(",") if part.strip()),
            expires=None if days is None else datetime.now(UTC).date() + timedelta(days=days),
        )
        typer.echo(made)
    write_text(file, "\n".join(_section(caller, each) for caller, each in known.items()))


def _section(name: str, token: object) -> str:
    values = token.model_dump(mode="json", exclude_none=True)  # type: ignore[attr-defined]
    lines = [f"[tokens.{name}]", f'sha256 = "{values["sha256"]}"']
    if values["methods"]:
        lines.append("methods = [" + ", ".join(f'"{method}"' for method in values["methods"]) + "]")
    if "expires" in values:
        lines.append(f"expires = {values['expires']}")
    return "\n".join(lines) + "\n"
