"""Ask a server for its health: `python -m l2r2_serving.probe HOST:PORT`, for what has no gRPC probe of its own.

Exit code 0: SERVING; 1: not, or not reached in time, with the reason on stderr; 2: a wrong command line. It imports
little, since it runs every few seconds beside the server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0
"""Shorter than a container engine waits for its probe, so that the reason is still told."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe once.

    Returns:
        The exit code, 0 or 1.
    Raises:
        SystemExit: a wrong command line.
    """
    asked = _parser().parse_args(arguments)
    try:
        status = health(
            asked.server, asked.service, asked.timeout_s, asked.tls, (asked.key, asked.certificate), asked.name
        )
    except (OSError, grpc.RpcError) as error:
        print(f"{asked.server}: {_reason(error)}", file=sys.stderr)  # noqa: T201
        return 1
    if status == health_pb2.HealthCheckResponse.SERVING:
        return 0
    print(f"{asked.server}: {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}", file=sys.stderr)  # noqa: T201
    return 1


def health(
    server: str,
    service: str = "",
    timeout_s: float = TIMEOUT_S,
    tls: Path | None = None,
    own: tuple[Path | None, Path | None] = (None, None),
    name: str | None = None,
) -> int:
    """A grpc.health.v1 ServingStatus.

    Args:
        server: HOST:PORT.
        service: Whose; empty: the whole server's.
        timeout_s: How long to wait for it.
        tls: Certificates that the server's must come from, or that certificate itself, PEM; None: plain text.
        own: Key and certificate of the caller, PEM, for mTLS.
        name: What the certificate is for, if that is not HOST.
    Raises:
        OSError: a file cannot be read.
        grpc.RpcError: no answer, or an error in its place.
    """
    if tls is None:
        channel = grpc.insecure_channel(server, [("grpc.enable_http_proxy", 0)])
    else:
        pem = [None if path is None else path.read_bytes() for path in (tls, *own)]
        options = [] if name is None else [("grpc.ssl_target_name_override", name)]
        channel = grpc.secure_channel(server, grpc.ssl_channel_credentials(*pem), options)
    with channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s).status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m l2r2_serving.probe", description="Exit with 0 if a server serves.")
    parser.add_argument("server", metavar="HOST:PORT")
    parser.add_argument("--service", default="", help="whose health, such as l2r2.v1.RecognitionService/BUNDLE")
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S, help=f"seconds; {TIMEOUT_S:g}")
    parser.add_argument("--tls", type=Path, metavar="PEM", help="authorities of the server's certificate, or itself")
    parser.add_argument("--name", help="what that certificate is for, if not HOST")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="a certificate of one's own, for mTLS")
    parser.add_argument("--key", type=Path, metavar="PEM", help="its key")
    return parser


def _reason(error: OSError | grpc.RpcError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read: {error.strerror}"
    return f"{error.code().name} {error.details()}"


if __name__ == "__main__":
    sys.exit(main())
