"""`l2r2 console`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from l2r2.errors import BackendMissing, ConfigError

SYSTEM = "system"
"""Value of --tls that means the authorities which this machine trusts."""

CONNECTIONS = 64
"""Of browsers, at once."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(console)


def console(
    *,
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The service to ask.")] = "127.0.0.1:50051",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    tls: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help=f"The server's CA, PEM; '{SYSTEM}': as this machine trusts; else plain text."
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="L2R2_TOKEN", help="Yours, where the server asks.", show_envvar=True)
    ] = None,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file that holds it.")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the server, a photo.")] = 30.0,
) -> None:
    """Show a web page that recognizes photos on a server, until stopped (Ctrl-C or SIGTERM).

    The page needs nothing from the network but this console; no photo is kept.

    Example: l2r2 console --server 127.0.0.1:50051 --port 7860
    """
    try:
        import uvicorn

        from l2r2_serving.console.app import Console
    except ImportError as error:
        raise BackendMissing(
            f"{error.name or 'a package'} is not installed; run: pip install 'l2r2[console]'"
        ) from error
    from l2r2_serving.tls import is_loopback

    asking = Console(
        server,
        tls=True if tls == SYSTEM else Path(tls) if tls else None,
        token=token if token_file is None else _token(token_file),
        timeout_s=timeout_s,
    )
    local = is_loopback(host)
    with _listening(host, port) as listening:
        bare = host.strip("[]")
        shown = f"[{bare}]" if ":" in bare else bare
        hosts = frozenset({"localhost", "127.0.0.1", "::1", bare.lower()}) if local else None
        typer.echo(f"l2r2 console: open http://{shown}:{listening.getsockname()[1]}/ (asks {server})")
        if not local:
            typer.echo(
                f"l2r2 console: {host} is not loopback: whoever reaches it may ask the server, in plain text; put what "
                "encrypts and asks who it is in front of it",
                err=True,
            )
        config = uvicorn.Config(
            asking.app(hosts),
            access_log=False,
            log_level="warning",
            server_header=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=10,
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            asking.close()


def _listening(host: str, port: int) -> socket.socket:
    bare = host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ConfigError(f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port") from None


def _token(path: Path) -> str:
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'no text'}") from None
    if not token:
        raise ConfigError(f"{path} is empty; expected a token")
    return token
