"""Logits of a vision-language model for every labelled split; nothing is trained."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import ConcatDataset, Subset

from l2r2 import datasets
from l2r2.classification.vlm import Vlm, ZeroShotNetwork
from l2r2.classification.vlm_towers import build_tower
from l2r2.config import ImageSettings, ViewSettings
from l2r2.errors import ArtifactError, BackendError, DatasetError, InputError
from l2r2.files import whole_file, write_table, write_text
from l2r2.training.loading import Item, ViewDataset, loader
from l2r2.types import Region, View

LOGITS, KEY = "logits.parquet", "logits.key"

OnStep = Callable[[int, int], None]
"""Called after each batch with the photographs done and how many there are."""


def score_zero_shot(
    photographs: datasets.Dataset,
    regions: Mapping[str, Region | None],
    view: View,
    vlm: Vlm,
    words: Sequence[str],
    images: ImageSettings,
    folder: Path,
    on_step: OnStep = lambda _done, _total: None,
    *,
    settings: ViewSettings | None = None,
    batch_size: int = 32,
    chunk: int = 16,
    workers: int = 0,
) -> Path:
    """Write what the model says of one view of every photograph whose split has labels.

    The table is that of `l2r2.training.fit`: digest, split, group, label, found, logits. Runs on CUDA where there is
    a GPU. Called again with the same folder after a kill, it goes on from the last whole chunk; called again when done,
    it gives what is there.

    Args:
        regions: Photograph's digest → region or None; without one every view but CENTERCROP is FULL.
        words: Of each class, in the order of `photographs.class_names`.
        folder: Of this view and model alone.
        settings: Of the view; None: `vlm.view`. A recipe's go through `vlm.view_settings` first.
        chunk: Batches that are kept on disk at once.
        workers: Loader processes.
    Raises:
        DatasetError: no split has labels.
        InputError: not one text a class, or the view needs masks that the regions lack.
        BackendError: logits that are not finite; the vocabulary cannot be had.
    """
    settings = settings or vlm.view
    if len(words) != len(photographs.class_names):
        raise InputError(f"got words for {len(words)} classes; expected {len(photographs.class_names)}, one text each")
    photographs = replace(photographs, table=photographs.table.sort("digest", "label"))
    splits = {name: photographs.split(name) for name in sorted(set(photographs.table["split"]))}
    splits = {name: part for name, part in splits.items() if part.table["label"].null_count() == 0}
    if not splits:
        raise DatasetError(f"{photographs.folder} has no split whose photographs all have labels; nothing to score")
    table = polars.concat([_rows(part, name, regions) for name, part in splits.items()])
    key = _key(vlm, words, view, settings, images, table, regions)
    path, done = folder / LOGITS, folder / KEY
    if path.is_file() and done.is_file() and done.read_text(encoding="utf-8") == key:
        on_step(len(table), len(table))
        return path
    items: ConcatDataset[Item] = ConcatDataset(
        [ViewDataset(part, regions, view, settings, images) for part in splits.values()]
    )
    network = vlm.network(words).to("cuda" if torch.cuda.is_available() else "cpu")
    chunks, parts = folder / f"chunks-{key}", []
    for start in range(0, len(items), batch_size * chunk):
        rows = range(start, min(start + batch_size * chunk, len(items)))
        place = chunks / f"{rows.start}-{rows.stop}.npy"
        part = _read_chunk(place, (len(rows), len(words)))
        if part is None:
            part = np.empty((0, len(words)), np.float32)
            for batch, _ in loader(Subset(items, rows), batch_size, workers):
                part = np.concatenate([part, _logits(network, batch)])
                on_step(start + len(part), len(items))
            with whole_file(place) as beside, beside.open("wb") as file:
                np.save(file, part)
        else:
            on_step(rows.stop, len(items))
        parts.append(part)
    network.cpu()
    done.unlink(missing_ok=True)  # from here on the old table is not to be trusted
    write_table(path, table.with_columns(polars.Series("logits", np.concatenate(parts))))
    write_text(done, key)
    shutil.rmtree(chunks, ignore_errors=True)
    return path


def fitted_weights(network: ZeroShotNetwork, path: Path) -> Path:
    """Write image tower, prototypes, scale and what the tower is built of: all that `load_zero_shot_network` needs.

    Raises:
        ArtifactError: the place cannot be written.
    """
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    with whole_file(path) as beside:
        beside.write_bytes(save(state, {"architecture": network.architecture}))
    return path


def load_zero_shot_network(path: Path) -> ZeroShotNetwork:
    """Rebuild what `fitted_weights` wrote; needs no text tower, no vocabulary and no hub.

    Raises:
        BackendMissing: the library that the tower comes from is not installed.
        ArtifactError: the file is missing, damaged or no such network.
    """
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            architecture = file.metadata()["architecture"]
        network = ZeroShotNetwork(build_tower(architecture), state["prototypes"], state["scale"], architecture)
        network.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is no zero-shot network of ours: {reason}; score again") from error
    return network


def _rows(part: datasets.Dataset, split: str, regions: Mapping[str, Region | None]) -> polars.DataFrame:
    digests = part.table["digest"]
    return polars.DataFrame(
        {
            "digest": digests,
            "split": split,
            "group": part.table["group"],
            "label": part.labels(),
            "found": [regions[digest] is not None for digest in digests],
        }
    )


def _key(
    vlm: Vlm,
    words: Sequence[str],
    view: View,
    settings: ViewSettings,
    images: ImageSettings,
    table: polars.DataFrame,
    regions: Mapping[str, Region | None],
) -> str:
    """Changes with all that a logit or a row depends on; of masks only the area is looked at."""
    parts = [vlm.key, list(words), view, settings.digest(), images.digest(), table.write_csv()]
    key = hashlib.sha256(json.dumps(parts).encode())
    for digest in table["digest"]:
        region = regions[digest]
        if region is not None:
            area = None if region.mask is None else int(np.count_nonzero(region.mask))
            key.update(repr((digest, *map(float, region.box_xyxy_px), area)).encode())
    return key.hexdigest()[:16]


def _logits(network: ZeroShotNetwork, batch: torch.Tensor) -> Float32[np.ndarray, "n k"]:
    with torch.inference_mode():
        logits: np.ndarray = network(batch.to(network.scale.device)).cpu().numpy()
    if not np.isfinite(logits).all():
        raise BackendError("the model gave logits that are not finite; its weights are broken, fetch them again")
    return logits


def _read_chunk(path: Path, shape: tuple[int, int]) -> Float32[np.ndarray, "n k"] | None:
    """None where there is none, or none that is whole."""
    try:
        part: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return part if part.shape == shape and part.dtype == np.float32 else None
