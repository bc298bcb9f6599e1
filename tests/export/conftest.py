"""Real weights and real photographs, each made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from l2r2 import weights
from l2r2.calibration import no_temperature
from l2r2.cascade import Policy
from l2r2.classification.timm_model import build_network
from l2r2.config import Recipe, SaliencySettings, TrainSettings
from l2r2.datasets import Dataset
from l2r2.datasets.user import from_folder
from l2r2.errors import BackendError
from l2r2.experiments import Experiment
from l2r2.experiments.experiment import Context
from l2r2.fusion import MaxScaledConfidence
from l2r2.localization import SaliencyLocalizer
from l2r2.manifest import PolicyManifest, PriorManifest
from l2r2.priors import count_priors
from l2r2.runtimes import OnnxRuntimeSession
from l2r2.types import Pixels, Stage, View
from l2r2_export.classifiers import export_classifier
from l2r2_export.localizer import export_saliency

CLASSES = ("china", "flower")
LITE0 = "tf_efficientnet_lite0"
LOCALIZER_SIZE = 320


@pytest.fixture(scope="session")
def photos() -> dict[str, list[Pixels]]:
    """China and a flower, by scikit-learn: eight crops each, half of them mirrored."""
    cut: dict[str, list[Pixels]] = {}
    for name, photo in zip(CLASSES, load_sample_images().images, strict=True):
        crops = [photo[top : top + 340, left : left + 500] for top in (0, 80) for left in (0, 60, 100, 140)]
        cut[name] = [np.ascontiguousarray(crop[:, ::-1] if i % 2 else crop) for i, crop in enumerate(crops)]
    return cut


@pytest.fixture(scope="session")
def u2netp() -> Path:
    try:
        return weights.fetch("u2netp")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def saliency_file(u2netp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The localizer, rewritten."""
    path = tmp_path_factory.mktemp("localizer") / "saliency.onnx"
    export_saliency(u2netp, path, LOCALIZER_SIZE)
    return path


@pytest.fixture(scope="session")
def lite0() -> torch.nn.Module:
    """EfficientNet-Lite0 with its real features and a random head of two classes."""
    try:
        network = build_network(TrainSettings(), len(CLASSES))
    except BackendError as error:
        pytest.skip(str(error))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head = network.get_submodule("classifier")
        assert isinstance(head, torch.nn.Linear)
        head.weight.copy_(0.2 * torch.randn(head.weight.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="session")
def lite0_file(lite0: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier, exported."""
    path = tmp_path_factory.mktemp("classifier") / "lite0.onnx"
    export_classifier(lite0, 224, path)
    return path


@pytest.fixture(scope="session")
def dataset(photos: dict[str, list[Pixels]], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Class folders of the crops: of each class four train, three val, one test."""
    folder = tmp_path_factory.mktemp("data")
    for name, crops in photos.items():
        for i, crop in enumerate(crops):
            place = folder / "photos" / ("train" if i < 4 else "val" if i < 7 else "test") / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop).save(place / f"{i}.png")
    return from_folder(folder / "photos", folder / "set")


@pytest.fixture(scope="session")
def experiment(lite0: torch.nn.Module, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """As `l2r2 train` would leave it, both stages with one network."""
    weights_file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(lite0.state_dict(), weights_file)
    recipe = Recipe(name="samples")
    labels = dataset.split("train").labels()
    return Experiment(
        run_id="0" * 32,
        recipe=recipe,
        context=Context(
            class_names=dataset.class_names,
            dataset=dataset.card.name,
            dataset_digest=dataset.digest,
            dataset_folder=dataset.folder,
            simulated_metadata=False,
            view=recipe.view,
            views={Stage.FG: View.FG_C, Stage.FULL: View.FULL},
            localizer_key="unused",
            children={},
            validation={"escalated": 0.5},
        ),
        policy=Policy(dict.fromkeys(Stage, no_temperature()), MaxScaledConfidence(), 0.8),
        policy_manifest=PolicyManifest(temperatures=dict.fromkeys(Stage, (1.0,)), operator="smax", threshold=0.8),
        priors=count_priors(labels, {}, len(CLASSES)),
        prior_manifest=PriorManifest(alpha=1.0, strength=1.0, vocabularies={}),
        weights=dict.fromkeys(Stage, weights_file),
    )


def make_localizer(file: Path, size_px: int = LOCALIZER_SIZE) -> SaliencyLocalizer:
    """A localizer on a model file."""
    session = OnnxRuntimeSession(file, threads=2)
    settings = SaliencySettings(size_px=size_px)
    return SaliencyLocalizer(session, settings, "0" * 12, input_name=next(iter(session.inputs)))
