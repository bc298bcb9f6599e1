"""From a fitted experiment to a bundle: three models exported, compared on real photographs, then written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from l2r2.bundle import Bundle, write_bundle
from l2r2.classification import SessionClassifier
from l2r2.datasets import Dataset
from l2r2.errors import DatasetError, ExportError
from l2r2.experiments import Experiment
from l2r2.experiments.localizing import MASKED
from l2r2.manifest import MANIFEST, Manifest
from l2r2.recognizer import Recognizer
from l2r2.runtimes import OnnxRuntimeSession
from l2r2.types import Classifier, Localizer, Photos, Stage
from l2r2.views import normalize, render
from l2r2_export import classifiers
from l2r2_export.graphs import require_onnx
from l2r2_export.localizers import ExportedLocalizer, compare_localizer, export_localizer, reference_localizer
from l2r2_export.parity import check_classifier, check_decisions
from l2r2_export.slices import Photographs, evenly

if TYPE_CHECKING:
    import torch

SLICE_SIZE = 48
"""Validation photographs that the comparison runs on; a minute or two on two cores."""

THREADS = 2
"""Of one inference while comparing."""

STEPS = ("localizer", "FG", "FULL", "comparing localizers", "comparing FG", "comparing FULL", "comparing decisions")
"""What `on_step` is told, in order."""

Parity = dict[str, dict[str, float]]
"""localizer, FG, FULL and decisions → the figures of `l2r2_export.parity`."""

OnStep = Callable[[int, str], None]
"""Called with the steps done and the name of the one that begins."""


def export_experiment(
    experiment: Experiment,
    photographs: Dataset,
    out: Path,
    slice_size: int = SLICE_SIZE,
    on_step: OnStep = lambda _done, _name: None,
) -> Bundle:
    """Export, compare, write.

    Args:
        photographs: The data set that the experiment was fitted on; an evenly spread slice of its validation split is
            compared.
        out: The bundle's folder. A bundle that stands there is replaced in the end, or stays untouched on any error.
        slice_size: At least 1; fewer when the split has fewer.
    Raises:
        DatasetError: another data set, or slice_size is not positive.
        ExportError: a model cannot be exported, or `out` holds something other than a bundle.
        ParityError: an exported model, or the cascade of them, answers differently.
        BackendMissing, ArtifactError: a package is not installed; weights cannot be read, or `out` not written.
    """
    require_onnx()
    check_dataset(experiment, photographs)
    if slice_size < 1:
        raise DatasetError(f"slice_size is {slice_size}; expected at least 1 photograph to compare on")
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} is there and is no bundle; it would be replaced, give another --out")
    with tempfile.TemporaryDirectory() as folder:
        models, references, located_by = _export(experiment, Path(folder), on_step)
        parity = _compare(experiment, photographs.split("val"), models, references, located_by, slice_size, on_step)
        return write_bundle(
            out, _manifest(experiment, located_by), models, experiment.policy, experiment.priors, parity
        )


def check_dataset(experiment: Experiment, photographs: Dataset) -> None:
    """Refuse a data set that the experiment was not fitted on.

    Raises:
        DatasetError: the digests differ.
    """
    fitted = experiment.context
    if photographs.digest != fitted.dataset_digest:
        raise DatasetError(
            f"{photographs.folder} has digest {photographs.digest}, but run {experiment.run_id} was fitted on "
            f"{fitted.dataset} {fitted.dataset_digest}; expected the same, it was at {fitted.dataset_folder}"
        )


def _export(
    experiment: Experiment, folder: Path, on_step: OnStep
) -> tuple[dict[str, Path], dict[Stage, Classifier], ExportedLocalizer]:
    """Model files, the classifiers in PyTorch that they came from, and the localizer among them."""
    from l2r2.classification.timm_model import TorchClassifier

    context = experiment.context
    on_step(0, STEPS[0])
    located_by = export_localizer(experiment.recipe.localizer, folder)
    models: dict[str, Path] = dict(located_by.models)
    references: dict[Stage, Classifier] = {}
    for done, stage in enumerate(Stage, start=1):
        on_step(done, STEPS[done])
        network = _network(experiment, stage)
        references[stage] = TorchClassifier(network)
        models[stage] = folder / f"{stage}.onnx"
        classifiers.export_classifier(network, context.view.size_px, models[stage])
    return models, references, located_by


def _network(experiment: Experiment, stage: Stage) -> torch.nn.Module:
    from l2r2.classification.timm_model import create_network, load_network

    recipe, weights_file = experiment.recipe, experiment.weights[stage]
    if recipe.vlm is not None:
        from l2r2.training.zero_shot import load_zero_shot_network

        return load_zero_shot_network(weights_file)
    network = create_network(
        recipe.train.model, len(experiment.context.class_names), size_px=experiment.context.view.size_px
    )
    load_network(network, weights_file)
    return network


def save_torch(experiment: Experiment, stage: Stage, path: Path) -> Path:
    """Write a stage's network for the runtime torch; gives the path.

    Raises:
        ExportError: it is no timm model.
        ArtifactError: the place cannot be written.
    """
    from l2r2.classification.timm_model import takes_size
    from l2r2.runtimes.torch_session import save_timm

    model, context = experiment.recipe.train.model, experiment.context
    if experiment.recipe.vlm is not None or ":" in model:
        name = model if experiment.recipe.vlm is None else experiment.recipe.vlm.model
        raise ExportError(f"runtime torch runs timm models, and {name!r} is none; choose another runtime")
    network = _network(experiment, stage)
    save_timm(path, network, model, len(context.class_names), context.view.size_px, takes_size(model))
    return path


def _compare(
    experiment: Experiment,
    validation: Dataset,
    models: Mapping[str, Path],
    references: Mapping[Stage, Classifier],
    located_by: ExportedLocalizer,
    slice_size: int,
    on_step: OnStep,
) -> Parity:
    recipe, context = experiment.recipe, experiment.context
    chosen = evenly(len(validation), slice_size)
    paths, metadata = validation.paths(), validation.metadata(recipe.prior.sources)
    photos = Photographs([paths[i] for i in chosen], recipe.images)
    masks = _masks(experiment)
    before = reference_localizer(recipe.localizer, masks=masks)
    after = located_by.open(masks=masks)
    exported = {
        stage: SessionClassifier(
            OnnxRuntimeSession(models[stage], THREADS), classifiers.INPUT, len(context.class_names)
        )
        for stage in Stage
    }
    on_step(3, STEPS[3])
    parity = {"localizer": compare_localizer(before, after, photos)}
    for done, stage in enumerate(Stage, start=4):
        on_step(done, STEPS[done])
        images = _images(experiment, stage, before, photos)
        parity[stage] = check_classifier(references[stage], exported[stage], images, what=stage)
    on_step(6, STEPS[6])
    parity["decisions"] = check_decisions(
        _recognizer(experiment, before, references),
        _recognizer(experiment, after, exported),
        photos,
        [metadata[i] for i in chosen],
    )
    on_step(len(STEPS), "")
    return parity


def _images(
    experiment: Experiment, stage: Stage, before: Localizer, photos: Photos
) -> Float32[np.ndarray, "n 3 size size"]:
    view, settings = experiment.context.views[stage], experiment.context.view
    return normalize([render(photo, before.locate([photo])[0], view, settings) for photo in photos], settings)


def _recognizer(experiment: Experiment, located_by: Localizer, stages: Mapping[Stage, Classifier]) -> Recognizer:
    context = experiment.context
    return Recognizer(
        class_names=context.class_names,
        localizer=located_by,
        classifiers=stages,
        views=context.views,
        view_settings=context.view,
        policy=experiment.policy,
        priors=experiment.priors,
    )


def _manifest(experiment: Experiment, located_by: ExportedLocalizer) -> Manifest:
    recipe, context = experiment.recipe, experiment.context
    return Manifest(
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        class_names=context.class_names,
        images=recipe.images,
        localizer=located_by.described,
        localizer_masks=_masks(experiment),
        views=context.views,
        view=context.view,
        policy=experiment.policy_manifest,
        prior=experiment.prior_manifest,
        model_names=dict.fromkeys(Stage, recipe.train.model if recipe.vlm is None else recipe.vlm.model),
        dataset=context.dataset,
        dataset_digest=context.dataset_digest,
        run_id=experiment.run_id,
        validation=context.validation,
    )


def _masks(experiment: Experiment) -> bool:
    return bool(MASKED & set(experiment.context.views.values()))
