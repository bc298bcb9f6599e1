"""What a frozen backbone makes of each photograph: computed once, kept in a file for other seeds and partitions.

The file is safetensors: `plain` "n d", `mirrored` "m d", and `mirrored_of` "m" (rows of `plain`); the header's
`digests` names the photograph of each row of `plain`, parted by blanks. It knows nothing of splits or labels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import polars
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from l2r2 import datasets
from l2r2.classification.timm_model import inference, pooled
from l2r2.config import ImageSettings, TrainSettings, ViewSettings
from l2r2.files import whole_file
from l2r2.training.loading import ViewDataset, loader
from l2r2.types import Region, View

log = logging.getLogger(__name__)

FEATURE_BATCH = 8
"""Photographs at once through a frozen backbone on the CPU; more only make the allocator return its memory."""


@dataclass
class Rows:
    """Features by photograph: `values` has one row a digest, "n d" float32."""

    digests: list[str]
    values: torch.Tensor

    def of(self, digests: Iterable[str]) -> torch.Tensor:
        places = {digest: i for i, digest in enumerate(self.digests)}
        return self.values[[places[digest] for digest in digests]]

    def add(self, digests: list[str], values: torch.Tensor) -> None:
        """Those that are not there yet."""
        have = set(self.digests)
        new = [i for i, digest in enumerate(digests) if digest not in have]
        self.digests = self.digests + [digests[i] for i in new]
        self.values = torch.cat([self.values, values[new]]) if len(self.values) else values[new]


@dataclass
class Features:
    """Of the photographs as they are, and of some mirrored."""

    plain: Rows
    mirrored: Rows


def frozen_features(
    network: nn.Module,
    photographs: datasets.Dataset,
    regions: Mapping[str, Region | None],
    view: View,
    settings: TrainSettings,
    view_settings: ViewSettings,
    images: ImageSettings,
    kept: Path | None,
) -> Features:
    """Features of every photograph; of those in train also mirrored, where `settings.flip` says so.

    Args:
        photographs: Every label known.
        kept: Holds what was computed before; what is missing is added. A damaged file is made anew. None: no file.
    """
    table = photographs.table
    twice = set(table.filter(polars.col("split") == "train")["digest"]) if settings.flip else set()
    features = _read(kept) if kept is not None and kept.is_file() else None
    features = features or Features(Rows([], torch.empty(0, 0)), Rows([], torch.empty(0, 0)))
    distinct = table.unique("digest", keep="first", maintain_order=True)
    both = polars.col("digest").is_in(twice)
    missing = [
        distinct.filter(both & ~polars.col("digest").is_in(features.mirrored.digests)),
        distinct.filter(~both & ~polars.col("digest").is_in(features.plain.digests)),
    ]
    network.eval()
    for rows, mirror in zip(missing, (True, False), strict=True):
        if rows.is_empty():
            continue
        part = replace(photographs, table=rows)
        part.__dict__["class_names"] = photographs.class_names  # a part may lack training rows
        dataset = ViewDataset(part, regions, view, view_settings, images)
        plain, mirrored = _compute(network, dataset, settings, mirror=mirror)
        features.plain.add(rows["digest"].to_list(), plain)
        if mirror:
            features.mirrored.add(rows["digest"].to_list(), mirrored)
    if kept is not None and any(len(rows) for rows in missing):
        _write(kept, features)
    return features


def _compute(
    network: nn.Module, dataset: ViewDataset, settings: TrainSettings, *, mirror: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    plain, mirrored = [], []
    with inference() as device:
        network.to(device)
        batch_size = FEATURE_BATCH if device.type == "cpu" else settings.batch_size
        for batch, _ in loader(dataset, batch_size, settings.workers):
            on_device = batch.to(device)
            plain.append(pooled(network, on_device).float().cpu())
            if mirror:
                mirrored.append(pooled(network, on_device.flip(-1)).float().cpu())
        network.cpu()
    joined = torch.cat(plain).clone()  # outside of inference mode, so that a head may be trained on them
    return joined, torch.cat(mirrored).clone() if mirror else joined[:0]


def _read(path: Path) -> Features | None:
    try:
        with safe_open(path, "pt") as file:
            plain, mirrored, of = (file.get_tensor(name) for name in ("plain", "mirrored", "mirrored_of"))
            digests = file.metadata()["digests"].split()
        features = Features(Rows(digests, plain), Rows([digests[i] for i in of.tolist()], mirrored))
    except (OSError, SafetensorError, KeyError, IndexError, TypeError, AttributeError) as error:
        log.warning("%s holds no features (%s); they are computed anew", path, error)
        return None
    fits = len(digests) == len(plain) and len(of) == len(mirrored) and plain.shape[1:] == mirrored.shape[1:]
    if not fits:
        log.warning("%s holds features that do not fit together; they are computed anew", path)
    return features if fits else None


def _write(path: Path, features: Features) -> None:
    places = {digest: i for i, digest in enumerate(features.plain.digests)}
    tensors = {
        "plain": features.plain.values,
        "mirrored": features.mirrored.values.reshape(-1, features.plain.values.shape[1]),
        "mirrored_of": torch.tensor([places[digest] for digest in features.mirrored.digests], dtype=torch.int64),
    }
    with whole_file(path) as beside:
        beside.write_bytes(save(tensors, {"digests": " ".join(features.plain.digests)}))
