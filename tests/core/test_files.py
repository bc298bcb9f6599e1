import hashlib
import subprocess
import sys
import textwrap

import polars as pl
import pytest

from l2r2.errors import ArtifactError
from l2r2.files import sha256, whole_file, whole_folder, write_table, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_file_is_written_with_its_folders(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "grün")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "grün".encode()
    assert names(tmp_path / "a") == ["b.txt"]


def test_a_file_is_replaced(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_any_error_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def interrupted() -> None:
        with whole_file(tmp_path / "a.txt") as beside:
            beside.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_nobody_sees_the_file_before_it_is_whole(tmp_path):
    with whole_file(tmp_path / "a.txt") as beside:
        beside.write_text("half")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").exists()


def test_a_table_is_written(tmp_path):
    frame = pl.DataFrame({"a": [1, 2]})
    write_table(tmp_path / "a.parquet", frame)
    assert pl.read_parquet(tmp_path / "a.parquet").equals(frame)


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("old", "new"):
        with whole_folder(tmp_path / "a") as beside:
            (beside / f"{content}.txt").write_text(content)
    assert names(tmp_path / "a") == ["new.txt"]
    assert names(tmp_path) == ["a"]


def test_any_error_leaves_the_old_folder(tmp_path):
    with whole_folder(tmp_path / "a") as beside:
        (beside / "old.txt").write_text("old")

    def interrupted() -> None:
        with whole_folder(tmp_path / "a") as beside:
            (beside / "new.txt").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert names(tmp_path / "a") == ["old.txt"]
    assert names(tmp_path) == ["a"]


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path):
    with whole_folder(tmp_path / "a") as beside:
        (beside / "old.txt").write_text("old")
    with (
        pytest.raises(ArtifactError, match=r"^cannot write .*a: No such file or directory"),
        whole_folder(tmp_path / "a") as beside,
    ):
        beside.rmdir()
    assert names(tmp_path / "a") == ["old.txt"]
    assert names(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ArtifactError, match=r"^cannot write .*a\.txt: .*; nothing was changed, make room and run it again$"
    ):
        write_text(tmp_path / "file" / "a.txt", "x")


WRITERS = {
    "text": "write_text(place, 'x' * 10_000)",
    "table": "write_table(place, pl.DataFrame({'a': np.random.default_rng(0).random(10_000)}))",
    "folder": "write_folder(place)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_really_fails_leaves_what_was_there(tmp_path, writer):
    """The operating system refuses every byte past the first thousand, as a full disk would."""
    if writer == "folder":
        (tmp_path / "place").mkdir()
        (tmp_path / "place" / "old.txt").write_text("old")
    else:
        (tmp_path / "place").write_text("old")
    program = f"""
        import resource, signal
        from pathlib import Path
        import numpy as np, polars as pl
        from l2r2.errors import ArtifactError
        from l2r2.files import whole_folder, write_table, write_text

        def write_folder(place):
            with whole_folder(place) as beside:
                (beside / "small.txt").write_text("fits")
                np.savez(beside / "a.npz", a=np.arange(10_000))

        place = Path({str(tmp_path / "place")!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            {WRITERS[writer]}
        except ArtifactError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.endswith("place: File too large; nothing was changed, make room and run it again\n")
    assert names(tmp_path) == ["place"]
    old = tmp_path / "place" / "old.txt" if writer == "folder" else tmp_path / "place"
    assert old.read_text() == "old"
