"""From a bundle to the same with one deployment more: each stage in its precision, compared, then the cascade."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from l2r2.bundle import ENGINES, Bundle, add_deployment, load_bundle
from l2r2.classification import SessionClassifier
from l2r2.config import SaliencySettings
from l2r2.errors import ConfigError, ExportError
from l2r2.localization import SaliencyLocalizer
from l2r2.localization.opening import LOCALIZER
from l2r2.manifest import REFERENCE, Deployment, Model, Precision
from l2r2.runtimes import OnnxRuntimeSession, ShapeProfile, ShapeRange, build_ahead, open_session, why_not
from l2r2.runtimes.cuda_device import Cuda
from l2r2.runtimes.processor import saturates
from l2r2.runtimes.sessions import ENGINES as ENGINE_RUNTIMES
from l2r2.types import Stage
from l2r2_export.cascade_parity import CASCADE_TOLERANCES, compare_cascades, decide_all
from l2r2_export.localizers import compare_localizer
from l2r2_export.precision_parity import TOLERANCES, compare_precision, gate
from l2r2_export.slices import evenly
from l2r2_export.variants import Variant, classifier_variant, localizer_variant
from l2r2_export.yardstick import BATCH, OnStep, Yardstick

LARGEST_BATCH = 8
"""Of a classifier, that an engine is built for."""

DETECTOR_VALIDATION = 24
"""Photographs that a detector's instances are compared on; each is a pass of seconds on a CPU, several times."""

CPU_RUNTIMES = frozenset({"onnxruntime", "openvino"})

SHAPED = frozenset({*ENGINE_RUNTIMES, "onnxruntime-tensorrt", "openvino"})
"""Runtimes that build or compile for shapes."""

TorchFile = Callable[[Stage, Path], Path]
"""Writes a stage's network for the runtime torch; gives the path."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is asked for.

    Attributes:
        size_px: The localizer's input; None: the bundle's.
        threads: Of one inference, on a CPU.
        architectures: GPUs that TensorRT-RTX engines are built for, such as SM89; none: the one that is here.
        build: Whether engines are built.
    """

    runtime: str
    precision: Precision
    size_px: int | None = None
    threads: int = 1
    architectures: tuple[str, ...] = ()
    build: bool = False

    @property
    def name(self) -> str:
        """As in "openvino/int8"."""
        return f"{self.runtime}/{self.precision}"


@dataclass(frozen=True, slots=True)
class Lowered:
    """Every stage in a deployment's precision, in a folder of its own, not yet in the bundle.

    Attributes:
        deployment: Its stages compared one by one; the cascade not yet.
        files: Path in the bundle → file.
        log: Stage → the steps of its sensitivity search.
    """

    deployment: Deployment
    files: Mapping[str, Path]
    log: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)


def deploy(
    bundle: Bundle,
    yardstick: Yardstick,
    choice: Choice,
    *,
    serving: bool = False,
    torch_file: TorchFile | None = None,
    on_step: OnStep = lambda _what, _done, _total: None,
) -> tuple[Bundle, Lowered]:
    """Add a deployment to a bundle, once it is proven to answer as the reference does.

    Where the runtime cannot run here (an engine built ahead for another machine's GPU) its stages are compared on ONNX
    Runtime and the cascade is not: the bundle then says that this deployment was never compared.

    Args:
        serving: Whether it serves from now on; never what was not compared.
        torch_file: Writes a stage's network; needed for the runtime torch alone.
    Raises:
        ParityError: a stage or the cascade is outside its tolerance. The bundle is as it was.
        ExportError, ConfigError, BackendMissing, BackendError, ArtifactError: from quantizers, builders and runtimes.
    """
    if (choice.runtime, choice.precision) == REFERENCE:
        raise ConfigError(f"{choice.name} is what all others are compared with, every bundle has it; choose another")
    reason = why_not(choice.runtime)
    if reason is not None and serving:
        raise ConfigError(f"{choice.name} cannot be compared here, so it cannot serve: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        lowered = lower(bundle, yardstick, choice, Path(folder), torch_file, on_step)
        found = lowered.deployment
        if reason is None:
            with staged(bundle, lowered) as there:
                found = certify(there, found, yardstick, on_step)
        added = add_deployment(bundle, found, lowered.files, serving=serving)
        return added, Lowered(found, {}, lowered.log)


def lower(
    bundle: Bundle,
    yardstick: Yardstick,
    choice: Choice,
    folder: Path,
    torch_file: TorchFile | None = None,
    on_step: OnStep = lambda _what, _done, _total: None,
) -> Lowered:
    """Make each stage's model and compare it with the reference's.

    Raises:
        ParityError, ExportError, ConfigError, BackendMissing, BackendError, ArtifactError: as `deploy`.
    """
    reason = why_not(choice.runtime)
    if reason is not None and not (choice.build and choice.architectures):
        ahead = "; engines for other machines need --build --architectures"
        raise ExportError(
            f"{choice.runtime} does not run here: {reason}{ahead if choice.runtime == 'tensorrt-rtx' else ''}"
        )
    making = _Making(bundle, yardstick, choice, torch_file)
    stages = bundle.manifest.reference.models
    models: dict[str, Model] = {}
    files: dict[str, Path] = {}
    log = {}
    for done, stage in enumerate(stages):
        on_step(f"{choice.name}: {stage}", done, len(stages))
        (folder / stage).mkdir(parents=True)
        variant = making.variant(stage, folder / stage)
        model, there = making.placed(stage, variant)
        if choice.runtime in SHAPED and (choice.runtime != "openvino" or making.fixed(stage)):
            model = model.model_copy(update={"shapes": making.shapes(stage, variant.file)})
        if choice.runtime in ENGINE_RUNTIMES and choice.build:
            pins = () if there else model.kept  # a file of its own is typed already
            there |= _engines(variant.file, model, pins, choice, folder / ENGINES, on_step)
        models[stage], log[stage] = model, variant.log
        files |= there
    deployment = Deployment(
        runtime=choice.runtime,
        precision=choice.precision,
        models=models,
        size_px=None if choice.size_px == side_of(bundle) else choice.size_px,
        threads=choice.threads,
        eight_bits=choice.runtime in CPU_RUNTIMES
        and not saturates()
        and any(model.precision == "int8" for model in models.values()),
    )
    return Lowered(deployment, files, log)


def certify(
    bundle: Bundle, deployment: Deployment, yardstick: Yardstick, on_step: OnStep = lambda _what, _done, _total: None
) -> Deployment:
    """The deployment with the figures of its cascade, and of a detector with those of what it finds.

    Args:
        bundle: Has the deployment's files.
    Raises:
        ParityError: the cascade is outside its tolerance.
    """
    what, total = f"{deployment.name}: decisions", len(yardstick.opened)
    recognizer = bundle.open(deployment, deployment.threads)
    models = dict(deployment.models)
    if not isinstance(bundle.manifest.localizer, SaliencySettings):
        few = [yardstick.photos[i] for i in evenly(len(yardstick.photos), DETECTOR_VALIDATION)]
        figures = compare_localizer(yardstick.reference.localizer, recognizer.localizer, few)
        models[LOCALIZER] = models[LOCALIZER].model_copy(update={"parity": figures})
    decisions = decide_all(recognizer, yardstick.opened, yardstick.metadata, lambda done: on_step(what, done, total))
    figures = compare_cascades(yardstick.decisions, decisions, yardstick.labels, yardstick.groups)
    limits = CASCADE_TOLERANCES[deployment.precision]
    gate(f"the cascade of {deployment.name}", figures, limits)
    return deployment.model_copy(update={"models": models, "decisions": figures, "tolerance": asdict(limits)})


@contextmanager
def staged(bundle: Bundle, lowered: Lowered) -> Iterator[Bundle]:
    """A copy of the bundle that has the deployment, to compare and to measure; gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / bundle.folder.name
        shutil.copytree(bundle.folder, copy, ignore=shutil.ignore_patterns(".*"))
        yield add_deployment(load_bundle(copy), lowered.deployment, lowered.files)


def side_of(bundle: Bundle) -> int | None:
    """The saliency localizer's input, in pixels; None for detectors, which take photographs of several sizes."""
    described = bundle.manifest.localizer
    return described.size_px if isinstance(described, SaliencySettings) else None


@dataclass(frozen=True, slots=True)
class _Making:
    """One deployment under way."""

    bundle: Bundle
    yardstick: Yardstick
    choice: Choice
    torch_file: TorchFile | None

    def variant(self, stage: str, folder: Path) -> Variant:
        """A stage's model for the runtime, compared with the reference's."""
        source = self.bundle.folder / self.bundle.manifest.reference.models[stage].file
        if stage in set(Stage):
            return self._classifier(Stage(stage), source, folder)
        settings, reference = self.bundle.manifest.localizer, self.yardstick.reference.localizer
        if isinstance(settings, SaliencySettings) and isinstance(reference, SaliencyLocalizer):
            return localizer_variant(
                source,
                self._runtime(stage),
                "fp32" if self.choice.runtime == "torch" else self.choice.precision,
                folder,
                settings=settings,
                size_px=self.choice.size_px or settings.size_px,
                reference=reference,
                calibration=self.yardstick.calibration_photos,
                validation=self.yardstick.photos,
                threads=self.choice.threads,
                fallback=True,
            )
        if self.choice.size_px is not None:
            raise ConfigError(f"--size-px {self.choice.size_px} is for u2netp; this bundle has a detector")
        # A detector runs in FP32 in every deployment; `certify` compares what it finds.
        return Variant(source, "fp32", (), {}, {}, (), self._runtime(stage))

    def _classifier(self, stage: Stage, source: Path, folder: Path) -> Variant:
        yardstick, choice = self.yardstick, self.choice
        if choice.runtime == "torch" and self.torch_file is None:
            raise ExportError("runtime torch needs the run that the bundle is of; give the store that has it")
        reference, classes = yardstick.reference.classifiers[stage], len(self.bundle.manifest.class_names)
        validation = yardstick.validation[stage]
        if choice.runtime == "torch" and self.torch_file is not None:
            file = self.torch_file(stage, folder / f"{stage.lower()}.safetensors")
            session = open_session(file, "torch", threads=choice.threads, precision=choice.precision)
            other = SessionClassifier(session, next(iter(session.inputs)), classes)
            wanted, got = (
                np.concatenate([each.logits(validation[i : i + BATCH]) for i in range(0, len(validation), BATCH)])
                for each in (reference, other)
            )
            figures = compare_precision(wanted, got, yardstick.labels, yardstick.groups, stage)
            limits = TOLERANCES[choice.precision]
            gate(f"{stage} in {choice.name}", figures, limits)
            return Variant(file, choice.precision, (), figures, asdict(limits), (), "torch")
        return classifier_variant(
            source,
            choice.runtime,
            choice.precision,
            folder,
            name=stage,
            reference=reference,
            classes=classes,
            calibration=yardstick.calibration[stage],
            validation=validation,
            labels=yardstick.labels,
            groups=yardstick.groups,
            threads=choice.threads,
        )

    def placed(self, stage: str, variant: Variant) -> tuple[Model, dict[str, Path]]:
        """The model as the manifest has it, and its files: none where it reads those of the reference as they are."""
        reference = self.bundle.manifest.reference.models[stage].file
        place, files = reference, {}
        if variant.file != self.bundle.folder / reference:
            suffix = variant.file.suffix
            place = f"models/{stage.lower()}.{variant.precision}.{self.choice.runtime}{suffix}"
            files = {place: variant.file}
            if suffix == ".xml":
                files[str(Path(place).with_suffix(".bin"))] = variant.file.with_suffix(".bin")
        runtime = self._runtime(stage)
        model = Model(
            file=place,
            precision=variant.precision,
            kept=variant.kept,
            runtime=None if runtime == self.choice.runtime else runtime,
            parity=variant.figures,
            tolerance=variant.tolerance,
            compared_on=None if variant.compared_on == runtime else variant.compared_on,
        )
        return model, files

    def fixed(self, stage: str) -> bool:
        """Whether a stage is always fed one size."""
        return stage in set(Stage) or side_of(self.bundle) is not None

    def shapes(self, stage: str, file: Path) -> dict[str, ShapeRange]:
        """What an engine is built for: batches of 1 … `LARGEST_BATCH`, and the sizes that the stage is fed."""
        described = self.bundle.manifest.localizer
        ranges: dict[str, ShapeRange] = {}
        for name, (batch, *rest) in OnnxRuntimeSession(file).inputs.items():
            if isinstance(described, SaliencySettings):
                low = best = high = self.choice.size_px or described.size_px
            else:
                low, high = described.preprocessing.size_px[0] // 2, max(described.preprocessing.size_px)
                best = described.preprocessing.size_px[0]
            sides = [[axis if isinstance(axis, int) else side for axis in rest] for side in (low, best, high)]
            largest = LARGEST_BATCH if stage in set(Stage) and self.choice.runtime != "openvino" else 1
            batches = [batch] * 3 if isinstance(batch, int) else [1, 1, largest]
            ranges[name] = ShapeRange(*((size, *side) for size, side in zip(batches, sides, strict=True)))
        return ranges

    def _runtime(self, stage: str) -> str:
        """torch has classifiers only."""
        return REFERENCE[0] if self.choice.runtime == "torch" and stage not in set(Stage) else self.choice.runtime


def _engines(
    file: Path, model: Model, pins: Sequence[str], choice: Choice, cache: Path, on_step: OnStep
) -> dict[str, Path]:
    """Engines and their headers, by their paths in the bundle."""
    architectures = choice.architectures
    if choice.runtime == "tensorrt-rtx" and not architectures and why_not(choice.runtime) is None:
        architectures = (Cuda().architecture,)
    built = build_ahead(
        file,
        choice.runtime,
        cache,
        architectures=architectures,
        precision=model.precision,
        pins=pins,
        profile=ShapeProfile(model.shapes),
        progress=lambda what, share: on_step(what, round(100 * share), 100),
    )
    return {
        f"{ENGINES}/{engine.parent.name}/{file.name}": file
        for engine in built
        for file in sorted(engine.parent.iterdir())
    }
