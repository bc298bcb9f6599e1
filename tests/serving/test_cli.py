"""`l2r2 serve` and `l2r2 recognize` as a user runs them."""

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from l2r2.bundle import Bundle
from l2r2.cli import build
from l2r2.errors import ArtifactError, ConfigError, MetadataError
from tests.serving.running import PATIENCE_S
from tests.tiny import BLUE, DARK_GREEN, MUDDY, RED, encode, make_photo, make_uniform

L2R2 = [sys.executable, "-m", "l2r2"]


def l2r2(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*L2R2, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S)


def invoke(*arguments: object) -> Any:
    """In this process: quicker, and an L2R2Error stays an exception."""
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photos")
    contents = {
        "red.jpg": encode(make_photo(RED), "JPEG", quality=95),
        "blue.png": encode(make_photo(BLUE)),
        "muddy.png": encode(make_photo(MUDDY, DARK_GREEN)),
        "uniform.png": encode(make_uniform(RED)),
        "text.jpg": b"this is no photograph",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents}


@pytest.fixture(scope="module")
def address(bundle: Bundle) -> Iterator[str]:
    """A server as a user starts it; stopped by SIGTERM, with exit code 0 and nothing on stderr."""
    with subprocess.Popen(
        [*L2R2, "serve", str(bundle.folder), "--port", "0", "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            start, end = "l2r2 serve: ready on ", f", bundle tiny {bundle.version}, onnxruntime/fp32\n"
            assert line.startswith(start)
            assert line.endswith(end)
            yield line[len(start) : -len(end)]
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=PATIENCE_S) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()


def without_times(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert line.pop("latency_ms").keys() >= {"decode", "locate", "fuse"}
    return lines


def test_server_and_bundle_give_the_same_json(address: str, bundle: Bundle, photos: dict[str, Path]) -> None:
    files = [photos["red.jpg"], photos["muddy.png"], photos["uniform.png"]]
    known = ["--habitat", "forest", "--substrate", "lava", "--month", "9", "--top-k", "2", "--json"]
    asked = l2r2("recognize", *files, "--server", address, *known)
    alone = l2r2("recognize", *files, "--bundle", bundle.folder, *known)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert (alone.returncode, alone.stderr) == (0, "")
    answers = without_times(asked.stdout)
    assert answers == without_times(alone.stdout)
    assert [answer["photo"] for answer in answers] == [str(file) for file in files]
    assert answers[0]["candidates"][0]["name"] == "red"
    assert len(answers[0]["candidates"]) == 2
    assert answers[0]["unrecognized"] == {"substrate": "lava"}
    assert answers[0]["bundle"] == {"name": "tiny", "version": bundle.version}
    assert answers[2]["region"] is None
    assert answers[2]["cautions"] == ["nothing_found"]


def test_a_bad_photo_does_not_lose_the_others(address: str, photos: dict[str, Path]) -> None:
    files = [photos["red.jpg"], photos["text.jpg"], photos["red.jpg"].with_name("missing.jpg"), photos["blue.png"]]
    done = l2r2("recognize", *files, "--server", address)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith(f"l2r2: error: {files[1]}: the 21 bytes are no image that can be read")
    assert second == f"l2r2: error: {files[2]}: cannot be read: No such file or directory"
    heads = [line for line in done.stdout.splitlines() if not line.startswith("  ")]
    assert [head.split(" ")[-2] for head in heads] == ["red", "blue"]


def test_text_says_what_where_how_and_why(bundle: Bundle, photos: dict[str, Path]) -> None:
    done = invoke(
        "recognize", photos["muddy.png"], "--bundle", bundle.folder, "--habitat", "lava", "--month", "9", "--top-k", 2
    )
    assert done.exit_code == 0
    head, *lines = done.stdout.splitlines()
    block = {line[2:10].strip(): line[11:] for line in lines}
    assert head.startswith(f"{photos['muddy.png']}: green 0.9")
    assert list(block) == ["others", "region", "stages", "why", "caution", "ignored", "bundle", "ms"]
    assert block["others"].startswith("red 0.0")
    assert block["region"].startswith("(52, 36) to (108, 84) of 160×120 px, score 1.00")
    assert block["stages"].startswith("FG 0.4")
    assert " → FULL 0.9" in block["stages"]
    assert "log-odds against red = FG -0." in block["why"]
    assert "FULL +5.35, habitat +0.00, month +0." in block["why"]
    assert block["caution"].startswith("the background may have decided")
    assert block["ignored"] == "habitat 'lava', which the bundle does not know"
    assert block["bundle"] == f"tiny {bundle.version}"
    assert block["ms"].startswith("decode ")


def test_the_bar_is_on_the_terminal_and_the_answers_on_stdout(bundle: Bundle, photos: dict[str, Path]) -> None:
    above, below = pty.openpty()
    seen = bytearray()

    def watch() -> None:
        try:
            while data := os.read(above, 4096):
                seen.extend(data)
        except OSError:  # the other end is closed
            pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    files = [photos["red.jpg"], photos["blue.png"]]
    done = subprocess.run(
        [*L2R2, "recognize", *map(str, files), "--bundle", str(bundle.folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=below,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(below)
    watcher.join(PATIENCE_S)
    os.close(above)
    assert done.returncode == 0
    assert [answer["candidates"][0]["name"] for answer in without_times(done.stdout)] == ["red", "blue"]
    assert b"recognizing" in seen


@pytest.mark.parametrize("where", [[], ["--server", "127.0.0.1:1", "--bundle", "somewhere"]])
def test_exactly_one_of_server_and_bundle(where: list[str], photos: dict[str, Path]) -> None:
    done = invoke("recognize", photos["red.jpg"], *where)
    assert done.exit_code == 2
    assert "exactly one of --server" in done.stderr


def test_nobody_there_is_said_once(photos: dict[str, Path]) -> None:
    done = l2r2("recognize", photos["red.jpg"], photos["blue.png"], "--server", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("l2r2: error: 127.0.0.1:1 cannot be reached")
    assert line.endswith("is `l2r2 serve` running there?")


def test_errors_before_any_photo(bundle: Bundle, photos: dict[str, Path], tmp_path: Path) -> None:
    assert isinstance(
        invoke("recognize", photos["red.jpg"], "--bundle", bundle.folder, "--month", 13).exception, MetadataError
    )
    assert isinstance(invoke("recognize", photos["red.jpg"], "--bundle", tmp_path).exception, ArtifactError)
    assert invoke("recognize", photos["red.jpg"], "--bundle", bundle.folder, "--top-k", 0).exit_code == 2
    assert invoke("recognize", "--bundle", bundle.folder).exit_code == 2


def test_serve_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    done = l2r2("serve", tmp_path, "--port", 0)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"l2r2: error: {tmp_path} is no bundle: manifest.json cannot be read")


def test_serve_refuses_a_bundle_that_was_changed(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(bundle.folder, folder)
    with (folder / "models" / "fg.onnx").open("ab") as file:
        file.write(b"!")
    done = l2r2("serve", folder, "--port", 0)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"l2r2: error: {folder / 'models' / 'fg.onnx'} has changed since the bundle was written")


def test_serve_refuses_a_port_that_is_taken(bundle: Bundle) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = l2r2("serve", bundle.folder, "--port", taken.getsockname()[1])
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("l2r2: error: cannot listen on 127.0.0.1:")
    assert line.endswith(": Address already in use; choose another --host or --port")


def test_serve_wants_no_tracking_uri_for_a_folder(bundle: Bundle) -> None:
    done = invoke("serve", bundle.folder, "--tracking-uri", "sqlite:///mlflow.db")
    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize("command", ["serve", "recognize"])
def test_help_has_an_example(command: str) -> None:
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert f"Example: l2r2 {command} " in done.stdout
