"""HTTP/2 by hand: callers that no client library would be. Frames as RFC 9113, headers as RFC 7541 without tables."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM, END_HEADERS = 1, 4


class RawCaller:
    """One connection with at most one call."""

    def __init__(self, address: str) -> None:
        """Connect and say no more than a client must."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(PREFACE + frame(SETTINGS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def begin(self, method: str) -> None:
        """Open a call: of l2r2.v1.RecognitionService, or of "/SERVICE/METHOD"."""
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method if method.startswith("/") else f"/l2r2.v1.RecognitionService/{method}",
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self.socket.sendall(frame(HEADERS, block, END_HEADERS, 1))

    def send(self, data: bytes, *, last: bool = False) -> None:
        """A part of a message as `message` gives it, at most 16 KiB."""
        self.socket.sendall(frame(DATA, data, END_STREAM if last else 0, 1))

    def ping(self) -> None:
        """Ask whether the server is there."""
        self.socket.sendall(frame(PING, bytes(8)))

    def heard(self, wanted: bytes) -> bool:
        """Whether that comes before the server hangs up."""
        seen = bytearray()
        while wanted not in seen:
            data = self.socket.recv(65536)
            if not data:
                return False
            seen += data
        return True

    def widen(self, more: int) -> None:
        """Let the server send so many bytes beyond the 65,535 that it may send unasked."""
        for stream in (0, 1):
            self.socket.sendall(frame(WINDOW_UPDATE, struct.pack(">I", more), stream=stream))

    def data(self) -> bytes:
        """All of the call's answers, until it ends."""
        found = bytearray()
        with self.socket.makefile("rb") as stream:
            while True:
                head = stream.read(9)
                payload = stream.read(int.from_bytes(head[:3], "big"))
                if head[3] == DATA:
                    found += payload
                if head[3] == HEADERS and head[4] & END_STREAM:
                    return bytes(found)

    def vanish(self) -> None:
        """As a phone that loses its network and comes back: a reset, no goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def message(data: bytes) -> bytes:
    """As gRPC sends a message, uncompressed."""
    return b"\0" + struct.pack(">I", len(data)) + data


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode("ascii")
