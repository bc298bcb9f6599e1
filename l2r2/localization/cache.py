"""Regions on disk: found once a photograph, localizer and setting, and never lost to a kill."""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from l2r2.errors import ArtifactError
from l2r2.files import write_table
from l2r2.types import Mask, Region

Find = Callable[[], Region | None]
"""Loads one photograph and locates its foreground."""

_SCHEMA = {
    "digest": pl.String,
    "x0": pl.Float64,
    "y0": pl.Float64,
    "x1": pl.Float64,
    "y1": pl.Float64,
    "score": pl.Float64,
    "mask_png": pl.Binary,
}
_SHARD, _SHARD_S = 32, 10.0
"""A shard is written when it has so many photographs, or after so many seconds."""


class RegionCache:
    """A folder of Parquet shards for one localizer key; a photograph is known by the digest of its bytes.

    Shards are written whole, so a kill loses at most the shard under way. A photograph with nothing found has a row of
    nulls: it is not looked at again.
    """

    def __init__(self, folder: Path, localizer_key: str) -> None:
        self.folder = folder / localizer_key

    def load(self) -> dict[str, Region | None]:
        """Digest → region, or None where nothing was found.

        Raises:
            ArtifactError: a shard cannot be read.
        """
        regions: dict[str, Region | None] = {}
        for shard in sorted(self.folder.glob("*.parquet")):
            try:
                rows = pl.read_parquet(shard).select(list(_SCHEMA)).rows()
            except (OSError, pl.exceptions.PolarsError) as error:
                raise ArtifactError(
                    f"{shard} is no readable table of regions: {error}; delete it to redo it"
                ) from error
            for digest, x0, y0, x1, y1, score, mask_png in rows:
                mask = None if mask_png is None else _mask(mask_png)
                regions[digest] = None if x0 is None else Region((x0, y0, x1, y1), score, mask)
        return regions

    def fill(self, photos: Sequence[tuple[str, Find]], workers: int = 1) -> Iterator[int]:
        """Locate what is missing; yields how many photographs each finished shard added.

        Args:
            photos: Digest and how to find its region; a digest that occurs twice is looked at once.
            workers: Threads; each locates one photograph at a time.
        """
        known = self.load()
        todo = {digest: find for digest, find in dict(photos).items() if digest not in known}
        pool = ThreadPoolExecutor(workers)
        rows: list[tuple[object, ...]] = []
        due = time.monotonic() + _SHARD_S
        try:
            for digest, region in zip(todo, pool.map(lambda find: find(), todo.values()), strict=True):
                rows.append(_row(digest, region))
                if len(rows) == _SHARD or time.monotonic() > due:
                    done, rows, due = rows, [], time.monotonic() + _SHARD_S
                    yield self._write(done)
        finally:  # also where a photograph cannot be read: what was located stays
            pool.shutdown(cancel_futures=True)
            left = self._write(rows) if rows else 0
        if left:
            yield left

    def _write(self, rows: list[tuple[object, ...]]) -> int:
        frame = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
        write_table(self.folder / f"{secrets.token_hex(8)}.parquet", frame)
        return len(rows)


def _row(digest: str, region: Region | None) -> tuple[object, ...]:
    if region is None:
        return (digest, None, None, None, None, None, None)
    return (digest, *region.box_xyxy_px, region.score, None if region.mask is None else _png(region.mask))


def _mask(png: bytes) -> Mask:
    return np.asarray(Image.open(io.BytesIO(png)))


def _png(mask: Mask) -> bytes:
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG")
    return out.getvalue()
