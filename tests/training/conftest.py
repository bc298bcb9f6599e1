from __future__ import annotations

import pytest

from l2r2.datasets import Dataset
from l2r2.training import Fitted
from tests.training.noise import TRAINABLE, draw_noise, fit


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return draw_noise(tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="session")
def uninterrupted(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fitted]:
    """One whole fit of each kind."""
    return {kind: fit(dataset, tmp_path_factory.mktemp(kind), trainable=kind) for kind in TRAINABLE}
