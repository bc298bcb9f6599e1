"""A file is read again when it has changed and nobody seems to be writing it."""

import os
import time
from pathlib import Path

import pytest

from l2r2_serving import renewing
from l2r2_serving.renewing import RenewedFiles
from tests.serving.renewed import put
from tests.serving.running import eventually


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return put(tmp_path / "a", "1"), put(tmp_path / "b", "1")


def texts(files: tuple[Path, Path]) -> str:
    return "".join(path.read_text() if path.exists() else "-" for path in files)


def test_a_change_is_read_once(files: tuple[Path, Path]) -> None:
    watched = RenewedFiles(files)
    assert watched.reread(lambda: texts(files)) is None
    for change, found in (
        (lambda: put(files[1], "1"), "11"),
        (files[0].unlink, "-1"),
        (lambda: put(files[0], "2"), "21"),
    ):
        change()
        assert watched.reread(lambda: texts(files)) == found
        assert watched.reread(lambda: texts(files)) is None


def test_a_change_waits_until_the_last_file_is_quiet(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    watched = RenewedFiles(files)
    monkeypatch.setattr(renewing, "QUIET_S", 1000.0)
    files[0].write_text("2")
    put(files[1], "2")
    assert watched.reread(lambda: texts(files)) is None
    put(files[0], "3")
    assert watched.reread(lambda: texts(files)) == "32"


def test_a_change_is_read_when_its_writer_has_been_quiet(files: tuple[Path, Path]) -> None:
    watched = RenewedFiles(files)
    files[0].write_text("2")
    eventually(lambda: watched.reread(lambda: texts(files)) == "21")


def test_what_was_written_while_it_was_read_is_not_believed(files: tuple[Path, Path]) -> None:
    watched = RenewedFiles(files)
    put(files[0], "2")

    def late() -> str:
        found = texts(files)
        put(files[1], "2")
        return found

    assert watched.reread(late) is None
    assert watched.reread(lambda: texts(files)) == "22"


def test_what_cannot_be_read_is_asked_once(files: tuple[Path, Path]) -> None:
    watched = RenewedFiles(files)
    put(files[0], "?")
    with pytest.raises(ValueError, match="invalid literal"):
        watched.reread(lambda: int(texts(files)))
    assert watched.reread(lambda: int(texts(files))) is None
    put(files[0], "4")
    assert watched.reread(lambda: int(texts(files))) == 41


def test_a_time_in_the_future_is_not_waited_for(files: tuple[Path, Path]) -> None:
    watched = RenewedFiles(files)
    os.utime(files[0], (time.time() + 1e6,) * 2)
    assert watched.reread(lambda: texts(files)) == "11"
