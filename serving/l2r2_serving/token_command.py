"""`l2r2 token`: callers and what they may do; of their tokens only hashes are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2r2.errors import ConfigError
from l2r2.files import whole_file
from l2r2_serving.needing import needing_grpc

if TYPE_CHECKING:
    from l2r2_serving.auth import Callers, Rights

FILE = Path("tokens.toml")

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def token(
    name: Annotated[str | None, typer.Argument(help="The caller's: letters, digits, - and _.")] = None,
    *,
    file: Annotated[Path, typer.Option(help="Token file; made where there is none.")] = FILE,
    methods: Annotated[
        str | None, typer.Option(help="What it may call: Recognize,GetBundle.", show_default="everything")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="How long it is good.", show_default="for ever")
    ] = None,
    certificate: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Make no token: the caller is known by this name in its certificate (mTLS)."),
    ] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the caller's token and certificate away.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List callers, what they may call and until when.")] = False,
) -> None:
    """Make a token, print it this once and keep its hash; or take one away. A running server takes up the change.

    Example: l2r2 token herbarium-app --methods Recognize,StreamRecognize --days 365
    """
    with needing_grpc():
        from l2r2_serving.auth import Certificate, Token, hash_of, new_token, read_callers
    if show:
        for line in _table(read_callers(file)):
            typer.echo(line)
        return
    if name is None:
        raise ConfigError("no caller is named; give a name, or --list for all of them")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a caller named {name!r}; expected letters, digits, - and _")
    if certificate is not None and not (certificate.isprintable() and certificate.strip()):
        raise ConfigError(f"a certificate named {certificate!r}; expected a name as it stands in it")
    rights: dict[str, Any] = {
        "methods": _methods(methods),
        "expires": None if days is None else datetime.now(UTC).date() + timedelta(days=days),
    }
    made = None
    with _changing(file) as known:
        if revoke:
            _take_away(known, name, file)
        elif certificate is None:
            _require_new(name, known.tokens, file)
            made = new_token()
            known.tokens[name] = Token(sha256=hash_of(made), **rights)
        else:
            _require_new(name, known.certificates, file)
            _require_new(certificate, [each.name for each in known.certificates.values()], file)
            known.certificates[name] = Certificate(name=certificate, **rights)
    if made is not None:
        typer.echo(made)


def _require_new(name: str, taken: Container[str], file: Path) -> None:
    if name in taken:
        raise ConfigError(f"{file} has a caller {name!r} already; take its rights away first: --revoke")


def _take_away(known: Callers, name: str, file: Path) -> None:
    if not [table for table in (known.tokens, known.certificates) if table.pop(name, None) is not None]:
        names = ", ".join({**known.tokens, **known.certificates}) or "none"
        raise ConfigError(f"{file} has no caller {name!r}; it has {names}")


@contextmanager
def _changing(file: Path) -> Iterator[Callers]:
    """What the file has, to be changed inside; nobody else changes it meanwhile, and an error leaves it as it was."""
    from l2r2.runtimes.locks import held
    from l2r2_serving.auth import Callers, read_callers

    with held(file.with_name(f".{file.name}.lock"), lambda _owner: None):
        known = read_callers(file) if file.exists() else Callers()
        yield known
        sections = [
            _section(f"{kind}.{_key(caller)}", rights)
            for kind, table in (("tokens", known.tokens), ("certificates", known.certificates))
            for caller, rights in table.items()
        ]
        with whole_file(file) as beside:
            beside.write_text("\n".join(sections), encoding="utf-8")
            if file.exists():
                _give(beside, file)


def _give(new: Path, file: Path) -> None:
    """A file's owner, group and mode to the one that takes its place: the server must be able to read it.

    Raises:
        ConfigError: they cannot be given by whoever this is.
    """
    known = file.stat()
    try:
        if (known.st_uid, known.st_gid) != (new.stat().st_uid, new.stat().st_gid):
            os.chown(new, known.st_uid, known.st_gid)
        shutil.copymode(file, new)
    except OSError as error:
        raise ConfigError(
            f"{file} is of user {known.st_uid}, group {known.st_gid}, and what is written now cannot be given to them: "
            f"{error.strerror}; nothing was changed, run this as that user"
        ) from None


def _methods(given: str | None) -> tuple[str, ...] | None:
    """Names between commas; None: all of l2r2.v1.

    Raises:
        ConfigError: none is named, or one is neither a method of l2r2.v1 nor a service's full name.
    """
    if given is None:
        return None
    from l2r2_serving.v1 import recognition_pb2 as pb

    own = list(pb.DESCRIPTOR.services_by_name["RecognitionService"].methods_by_name)
    found = tuple(part.strip() for part in given.split(",") if part.strip())
    if not found:
        raise ConfigError(f"--methods {given!r} names none; expected some of {', '.join(own)}, or leave it out for all")
    for each in found:
        if each not in own and not re.fullmatch(r"\w+(\.\w+)+", each):
            raise ConfigError(f"no method {each!r}; expected some of {', '.join(own)}, or a service's full name")
    return found


def _table(known: Callers) -> Iterator[str]:
    """Lines, without hashes: they are of no use to a reader."""
    rows = [("CALLER", "KNOWN BY", "MAY CALL", "UNTIL")]
    rows += [(name, "token", *_rights(each)) for name, each in known.tokens.items()]
    rows += [(name, f"certificate {each.name}", *_rights(each)) for name, each in known.certificates.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _rights(rights: Rights) -> tuple[str, str]:
    until = "for ever" if rights.expires is None else f"{rights.expires}{', expired' if rights.over else ''}"
    may = "all of l2r2.v1" if rights.methods is None else ", ".join(rights.methods) or "nothing"
    return may, until


def _section(place: str, rights: Rights) -> str:
    lines = [f"[{place}]"]
    lines += [f"{key} = {_text(getattr(rights, key))}" for key in ("sha256", "name") if hasattr(rights, key)]
    if rights.methods is not None:
        lines.append(f"methods = [{', '.join(map(_text, rights.methods))}]")
    if rights.expires is not None:
        lines.append(f"expires = {rights.expires}")
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _NAME.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
