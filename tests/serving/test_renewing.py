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


def test_a_change_is_told_once(files: tuple[Path, Path]) -> None:
    watched = RenewedFiles(files)
    assert not watched.renewed()
    for change in (lambda: put(files[1], "1"), files[0].unlink, lambda: put(files[0], "1")):
        change()
        assert watched.renewed()
        assert not watched.renewed()


def test_a_change_waits_until_the_last_file_is_quiet(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    watched = RenewedFiles(files)
    monkeypatch.setattr(renewing, "QUIET_S", 1000.0)
    files[0].write_text("2")
    put(files[1], "2")
    assert not watched.renewed()
    put(files[0], "3")
    assert watched.renewed()


def test_a_change_is_told_when_its_writer_has_been_quiet(files: tuple[Path, Path]) -> None:
    watched = RenewedFiles(files)
    files[0].write_text("2")
    eventually(watched.renewed)


def test_a_time_in_the_future_is_not_waited_for(files: tuple[Path, Path]) -> None:
    watched = RenewedFiles(files)
    os.utime(files[0], (time.time() + 1e6,) * 2)
    assert watched.renewed()
