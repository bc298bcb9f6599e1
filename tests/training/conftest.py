from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from l2r2.datasets import Dataset
from l2r2.training import Fitted
from tests.training.noise import TRAINABLE, draw_noise, fit


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return draw_noise(tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="package")
def uninterrupted(one_thread: None, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fitted]:
    """One whole fit of each kind."""
    return {kind: fit(dataset, tmp_path_factory.mktemp(kind), trainable=kind) for kind in TRAINABLE}
