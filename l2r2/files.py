"""Files that are whole or not there: write beside, then rename; and digests."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from l2r2.errors import ArtifactError

if TYPE_CHECKING:
    import polars as pl


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it into place on success, remove it on any error.

    Raises:
        ArtifactError: the disk is full or the place cannot be written; what stood at `path` before still does.
    """
    with _reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(path)
        try:
            yield beside
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a folder. A folder that stands at `path` is replaced in the end, never half.

    Raises:
        ArtifactError: as `whole_file`.
    """
    with _reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside, old = _beside(path), _beside(path)
        beside.mkdir()
        try:
            yield beside
            if path.exists():
                path.replace(old)
            beside.replace(path)
        finally:
            if old.exists() and not path.exists():
                old.replace(path)
            shutil.rmtree(beside, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_table(path: Path, frame: pl.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    encoded = io.BytesIO()  # polars reports a full disk as an error of its own; plain bytes give an OSError
    frame.write_parquet(encoded)
    with whole_file(path) as beside:
        beside.write_bytes(encoded.getbuffer())


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(
            f"cannot write {path}: {reason}; nothing was changed, make room and run it again"
        ) from error
