"""Regions on disk: found once a photograph, localizer and setting, and never lost to a kill."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from l2r2.errors import ArtifactError
from l2r2.files import write_table
from l2r2.types import Localizer, Mask, Pixels, Region

_SCHEMA = {
    "digest": pl.String,
    "x0": pl.Float64,
    "y0": pl.Float64,
    "x1": pl.Float64,
    "y1": pl.Float64,
    "score": pl.Float64,
    "mask_png": pl.Binary,
}
_SHARD = 32


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

    def fill(
        self, photos: Sequence[tuple[str, Callable[[], Pixels]]], localizer: Localizer, workers: int = 1
    ) -> Iterator[int]:
        """Locate what is missing; yields how many photographs each finished shard added.

        Args:
            photos: Digest and how to load the pixels; a digest that occurs twice is looked at once.
            workers: Threads; each locates one photograph at a time.
        """
        known = self.load()
        todo = [(digest, load) for digest, load in dict(photos).items() if digest not in known]
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(todo), _SHARD):
                shard = todo[start : start + _SHARD]
                regions = list(pool.map(lambda item: localizer.locate([item[1]()])[0], shard))
                frame = pl.DataFrame(
                    [_row(digest, region) for (digest, _), region in zip(shard, regions, strict=True)],
                    schema=_SCHEMA,
                    orient="row",
                )
                write_table(self.folder / f"{secrets.token_hex(8)}.parquet", frame)
                yield len(shard)


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
