"""The console over HTTP: whom it answers, what it refuses, and how it starts."""

import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from l2r2.bundle import Bundle
from l2r2.cli import build
from l2r2.errors import ConfigError
from l2r2.manifest import PolicyManifest
from l2r2.types import Stage
from l2r2_serving.console.app import AT_ONCE, Console
from tests.serving.running import PATIENCE_S, Running, running
from tests.serving.tables import Tables
from tests.tiny import BLUE, DARK_GREEN, MUDDY, encode, make_photo, make_tiny_bundle


@contextmanager
def opened(console: Console, hosts: frozenset[str] | None = frozenset({"127.0.0.1"})) -> Iterator[str]:
    """The console on a free port of loopback; its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(console.app(hosts), log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listening.close()
        console.close()


@pytest.fixture(scope="module")
def address(served: Running) -> Iterator[str]:
    with opened(Console(served.address)) as at:
        yield at


def fetch(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def ask(address: str, photo: bytes, **question: Any) -> tuple[int, str]:
    return fetch(address + "recognize", json.dumps(question).encode() + b"\n" + photo)[:2]


def test_the_page_fetches_nothing_from_elsewhere(address: str) -> None:
    code, html, headers = fetch(address)
    assert code == 200
    assert "habitat" in html
    style, script = fetch(address + "console.css"), fetch(address + "console.js")
    assert (style[2]["content-type"], script[2]["content-type"]) == (
        "text/css; charset=utf-8",
        "text/javascript; charset=utf-8",
    )
    for text in (html, style[1], script[1]):
        assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}|@import|url\(", text)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_a_photo_is_answered_with_both_stages(address: str) -> None:
    code, html = ask(address, encode(make_photo(MUDDY, DARK_GREEN)), metadata={"habitat": "meadow", "month": "5"})
    assert code == 200
    numbers = [row[-1] for row in Tables(html).rows]
    parts = [float(each.replace("−", "-")) for each in numbers if re.fullmatch(r"[+−]?\d+\.\d\d", each)]
    assert len(parts) == 5  # FG, FULL, habitat, month, total
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.03)
    assert "FG (" in html
    assert "→ FULL (" in html
    assert "data:image/jpeg;base64," in html


@pytest.mark.parametrize(
    ("question", "photo", "said"),
    [
        ({}, b"this is no photograph", "No answer: the 21 bytes are no image"),
        ({"metadata": {"month": "13"}}, b"photo", "month is"),
        ({"top_k": 1000}, b"photo", "top_k"),
        ({"bundle": "none"}, b"photo", "no bundle"),
    ],
)
def test_what_cannot_be_used_is_one_readable_line(
    address: str, question: dict[str, Any], photo: bytes, said: str
) -> None:
    code, html = ask(address, photo, **question)
    assert code == 400
    assert said in Tables(html).text
    assert Tables(html).tags == ["p", "b"]
    assert "Traceback" not in html


def test_a_body_beyond_the_limit_is_refused_by_its_length(address: str) -> None:
    host = address.removeprefix("http://").rstrip("/")
    with socket.create_connection(tuple(host.split(":")), timeout=PATIENCE_S) as line:  # type: ignore[arg-type]
        line.sendall(f"POST /recognize HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 400 ")


def test_other_pages_of_a_browser_are_refused(address: str) -> None:
    assert fetch(address + "recognize", b"{}\nphoto", Origin="http://evil.example")[0] == 403
    assert fetch(address + "recognize", b"{}\nphoto", Origin="null")[0] == 403
    assert fetch(address, Host="evil.example")[0] == 403
    own = address.rstrip("/")
    assert fetch(address + "recognize", b"{}\n" + encode(make_photo()), Origin=own)[0] == 200


def test_only_so_many_photos_are_in_work(served: Running) -> None:
    console = Console(served.address)
    with opened(console) as at, pytest.MonkeyPatch.context() as patch:
        patch.setattr(console._slots, "taken", AT_ONCE)
        code, html = ask(at, encode(make_photo()))
        assert code == 429
        assert "in flight" in html


def test_an_unreachable_server_is_a_readable_page() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
    with opened(Console(nowhere, timeout_s=1.0)) as at:
        code, html, _ = fetch(at)
        assert code == 502
        assert f"{nowhere} cannot be reached" in Tables(html).text
        assert ask(at, encode(make_photo()))[0] == 502


def test_bundles_are_told_apart(tmp_path: Path, bundle: Bundle) -> None:
    policy = PolicyManifest(
        temperatures={Stage.FG: (1.0,), Stage.FULL: (1.0,)}, operator="smax", threshold=0.8, hazardous=("red",)
    )
    careful = make_tiny_bundle(tmp_path / "careful", name="careful", policy=policy)
    with running(bundle, careful) as place, opened(Console(place.address)) as at:
        assert '<option value="careful" selected>' in fetch(at)[1]  # the first by name
        assert '<option value="tiny" selected>' in fetch(at + "?bundle=tiny")[1]
        assert fetch(at + "?bundle=none")[0] == 502
        photo = encode(make_photo(MUDDY, DARK_GREEN))
        assert "Withheld" in ask(at, photo, bundle="careful")[1]
        assert "Withheld" not in ask(at, photo, bundle="tiny")[1]


def test_a_sure_foreground_leaves_full_out(address: str) -> None:
    _, html = ask(address, encode(make_photo(BLUE)))
    assert html.count("did not run") == 4  # of three classes, and as evidence
    assert "blue, " in Tables(html).text


def test_a_token_never_travels_in_plain_text() -> None:
    with pytest.raises(ConfigError, match="plain text"):
        Console("example.org:50051", token="t")


def test_a_missing_or_empty_token_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "token"
    for made in (False, True):
        if made:
            empty.write_text("\n")
        done = CliRunner().invoke(build(), ["console", "--port", "0", "--token-file", str(empty)])
        assert isinstance(done.exception, ConfigError)


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = CliRunner().invoke(build(), ["console", "--port", str(taken.getsockname()[1])])
    assert isinstance(done.exception, ConfigError)
    assert "--port" in str(done.exception)


def test_help_has_an_example() -> None:
    done = CliRunner().invoke(build(), ["console", "--help"])
    assert done.exit_code == 0
    assert "Example: l2r2 console " in done.stdout
