"""Callers that each ask again as soon as they are answered, of any server: `python -m tests.bench.peers.load '{…}'`.

One client for all, so that none is charged for another's: threads, with the standard library's HTTP client, or with
gRPC that neither writes nor reads messages, since the bodies are made before.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Ask = Callable[[bytes], str]
"""Body → how it ended; OK where all is well."""

TIMEOUT_S = 60.0


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Ask for so many seconds.

    Args:
        order: url (http://HOST:PORT/PATH or grpc://HOST:PORT/PACKAGE.SERVICE/METHOD), content_type, bodies (files),
            callers, seconds.
    Returns:
        rate (answers a second while all callers asked; of the whole, where those are hardly any), latencies of what
        was answered (seconds), codes.
    """
    bodies = [Path(path).read_bytes() for path in order["bodies"]]
    asks = _askers(order["url"], order["content_type"], order["callers"])
    turn, lock = itertools.cycle(bodies), threading.Lock()
    calls: list[tuple[float, float, str]] = []
    began = time.perf_counter()

    def work(ask: Ask) -> None:
        while time.perf_counter() - began < order["seconds"]:
            with lock:
                body = next(turn)
            start = time.perf_counter()
            code = ask(body)
            calls.append((start - began, time.perf_counter() - start, code))

    threads = [threading.Thread(target=work, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [(start, took) for start, took, code in calls if code == "OK"]
    # Without the first answer of each caller, and what was answered after the first of them had stopped.
    ends = sorted(start + took for start, took in good)[order["callers"] :]
    ends = [end for end in ends if end <= order["seconds"]]
    whole = time.perf_counter() - began
    rate = (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else len(good) / whole
    codes = Counter(code for *_, code in calls)
    return {"rate": rate, "latencies": sorted(took for _, took in good), "codes": dict(codes)}


def _askers(url: str, content_type: str, callers: int) -> list[Ask]:
    """One a caller; gRPC's share a connection, as it is meant."""
    place = urlsplit(url)
    if place.scheme == "http":
        return [_over_http(str(place.netloc), place.path, content_type) for _ in range(callers)]
    import grpc

    channel = grpc.insecure_channel(place.netloc, [("grpc.max_send_message_length", 2**25)])
    method = channel.unary_unary(place.path)

    def ask(body: bytes) -> str:
        try:
            method(body, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    return [ask] * callers


def _over_http(address: str, path: str, content_type: str) -> Ask:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)

    def ask(body: bytes) -> str:
        try:
            connection.request("POST", path, body, {"Content-Type": content_type})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__
        return "OK" if response.status == http.client.OK else str(response.status)

    return ask


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
