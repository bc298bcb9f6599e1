"""What is deployed: a folder with a manifest, one model file a stage, the priors and what fusion learned.

    manifest.json     everything that is not an array; sha256 of every other file
    models/*.onnx     localizer, FG, FULL
    priors.parquet    class × metadata counts
    fusion.npz        what the fusion operator learned

Nothing in it is a pickle. A file that is missing, changed or of a newer schema is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import Field, ValidationError

from l2r2.calibration import Temperature
from l2r2.cascade import Policy, Veto
from l2r2.classification import SessionClassifier
from l2r2.config import ImageSettings, SaliencySettings, Settings, ViewSettings
from l2r2.conformal import PredictionSets
from l2r2.errors import ArtifactError, ConfigError
from l2r2.files import sha256, whole_folder
from l2r2.fusion import make_operator
from l2r2.localization import SaliencyLocalizer
from l2r2.priors import Priors
from l2r2.recognizer import Recognizer
from l2r2.runtimes import open_session
from l2r2.types import Stage, View

SCHEMA: Final = 2
"""Of the manifest; raised whenever an older reader would misread a newer bundle."""

MANIFEST = "manifest.json"

ONNX = "onnxruntime"
READ_ONNX = frozenset({"openvino", "onnxruntime-cuda", "onnxruntime-tensorrt"})
"""Runtimes that read ONNX files as they are."""


class PolicyManifest(Settings):
    """Calibration, fusion and gate."""

    temperatures: dict[Stage, tuple[float, ...]]
    """One number, or one a class."""
    operator: str
    threshold: float = Field(ge=0, le=1)
    coverage: float | None = Field(None, gt=0, lt=1)
    """Of prediction sets; None: the bundle has none."""
    set_threshold: float = Field(0.0, ge=0, le=1)
    """Probability from which a class is in the set."""
    hazardous: tuple[str, ...] = ()
    """Classes for which an unsure foreground withholds the answer."""
    hazard_mass: float = Field(0.05, ge=0, le=1)


class PriorManifest(Settings):
    """α, λ and the vocabularies; the counts are in priors.parquet."""

    alpha: float = Field(gt=0)
    strength: float = Field(ge=0)
    cap: float | None = Field(None, gt=0)
    """Nats; None: no cap."""
    vocabularies: dict[str, tuple[str, ...]]
    simulated: bool = False
    """Whether the metadata it was counted on were drawn from a table rather than observed."""


class Manifest(Settings):
    """Everything about a bundle that is not an array."""

    schema_version: Literal[1, 2] = SCHEMA
    """2 added prediction sets, the veto and the prior's cap; a bundle of schema 1 has none of them."""
    name: str
    created: str
    """UTC, ISO 8601."""
    class_names: tuple[str, ...] = Field(min_length=2)
    images: ImageSettings
    localizer: SaliencySettings
    localizer_masks: bool
    views: dict[Stage, View]
    view: ViewSettings
    policy: PolicyManifest
    prior: PriorManifest
    models: dict[str, dict[str, str]]
    """Stage (localizer, FG, FULL) → runtime → file."""
    model_names: dict[Stage, str]
    dataset: str
    dataset_digest: str
    run_id: str
    """MLflow run that fitted the policy."""
    parity: dict[str, dict[str, float]]
    """Stage → how far the exported model was from the one it came from."""
    validation: dict[str, float]
    """Rates on the validation split, for comparison with those in the field."""
    files: dict[str, str] = {}
    """Path in the bundle → sha256."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle, ready to be opened.

    Attributes:
        version: Twelve hexadecimal digits of the manifest's sha256; changes with any file.
    """

    folder: Path
    manifest: Manifest
    version: str

    def recognizer(self, threads: int = 1, runtime: str = "onnxruntime") -> Recognizer:
        """Load every model.

        Args:
            threads: Of one inference.
            runtime: As named in the manifest, or one that reads its ONNX files.
        Raises:
            ConfigError: the bundle has no models for that runtime.
            BackendMissing, ArtifactError: from the runtime or the tables.
        """
        manifest = self.manifest
        masks = manifest.localizer_masks
        localizer_file = self._model("localizer", runtime)
        session = open_session(localizer_file, runtime, threads=threads)
        classes = len(manifest.class_names)
        classifiers = {}
        for stage in Stage:
            model = open_session(self._model(stage, runtime), runtime, threads=threads)
            classifiers[stage] = SessionClassifier(model, next(iter(model.inputs)), classes)
        return Recognizer(
            class_names=manifest.class_names,
            localizer=SaliencyLocalizer(
                session,
                manifest.localizer,
                manifest.files[str(localizer_file.relative_to(self.folder).as_posix())],
                input_name=next(iter(session.inputs)),
                masks=masks,
            ),
            classifiers=classifiers,
            views=manifest.views,
            view_settings=manifest.view,
            policy=self.policy(),
            priors=Priors.load(
                self.folder / "priors.parquet", manifest.prior.alpha, manifest.prior.strength, manifest.prior.cap
            ),
        )

    def policy(self) -> Policy:
        """Calibration, fusion and gate."""
        return read_policy(self.manifest.policy, self.folder / "fusion.npz", self.manifest.class_names)

    def _model(self, stage: str, runtime: str) -> Path:
        files = self.manifest.models[stage]
        if runtime in READ_ONNX and runtime not in files:
            runtime = ONNX
        if runtime not in files:
            raise ConfigError(f"{self.folder} has no {stage} model for {runtime!r}; it has {', '.join(sorted(files))}")
        return self.folder / files[runtime]


def describe_policy(policy: Policy, class_names: Sequence[str]) -> PolicyManifest:
    """The numbers of a policy; its operator's arrays go into fusion.npz."""
    veto = policy.veto
    return PolicyManifest(
        temperatures={stage: tuple(t.values.tolist()) for stage, t in policy.temperatures.items()},
        operator=policy.operator.name,
        threshold=policy.threshold,
        **({} if policy.sets is None else {"coverage": policy.sets.coverage, "set_threshold": policy.sets.threshold}),
        **({} if veto is None else {"hazardous": hazardous_names(veto, class_names), "hazard_mass": veto.mass}),
    )


def hazardous_names(veto: Veto, class_names: Sequence[str]) -> tuple[str, ...]:
    """The classes that a veto is about."""
    return tuple(name for name, marked in zip(class_names, veto.hazardous, strict=True) if marked)


def read_policy(manifest: PolicyManifest, arrays: Path, class_names: Sequence[str]) -> Policy:
    """Join the numbers of a manifest and the arrays beside it.

    Raises:
        ArtifactError: a hazardous class is no class of the bundle.
    """
    strange = set(manifest.hazardous) - set(class_names)
    if strange:
        raise ArtifactError(f"hazardous class {min(strange)!r} is none of the bundle's classes; export it again")
    with np.load(arrays, allow_pickle=False) as learned:
        operator = make_operator(manifest.operator, dict(learned))
    temperatures = {stage: Temperature(np.asarray(values)) for stage, values in manifest.temperatures.items()}
    sets = None if manifest.coverage is None else PredictionSets(manifest.set_threshold, manifest.coverage)
    marked = np.isin(np.asarray(class_names), manifest.hazardous)
    veto = Veto(marked, manifest.hazard_mass) if marked.any() else None
    return Policy(temperatures, operator, manifest.threshold, sets, veto)


def write_bundle(
    folder: Path, manifest: Manifest, models: Mapping[str, Path], policy: Policy, priors: Priors
) -> Bundle:
    """Write a bundle, whole or not at all.

    Args:
        manifest: Its `files` and `models` are filled in here.
        models: Stage (localizer, FG, FULL) → ONNX file.
    Raises:
        ArtifactError: a stage lacks its model, or the place cannot be written.
    """
    missing = {"localizer", *Stage} - set(models)
    if missing:
        raise ArtifactError(f"no model for {', '.join(sorted(missing))}; a bundle needs localizer, FG and FULL")
    with whole_folder(folder) as beside:
        (beside / "models").mkdir()
        for stage, path in models.items():
            shutil.copyfile(path, beside / "models" / f"{stage.lower()}.onnx")
        priors.save(beside / "priors.parquet")
        np.savez(beside / "fusion.npz", **policy.operator.parameters())  # type: ignore[arg-type]
        places = {str(stage): {"onnxruntime": f"models/{stage.lower()}.onnx"} for stage in models}
        files = {str(p.relative_to(beside).as_posix()): sha256(p) for p in sorted(beside.rglob("*")) if p.is_file()}
        full = manifest.model_copy(update={"models": places, "files": files})
        (beside / MANIFEST).write_text(full.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return load_bundle(folder)


def load_bundle(folder: Path) -> Bundle:
    """Check a bundle: schema, every file there, every checksum right.

    Raises:
        ArtifactError: anything is not so; the message names the file.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{folder} is no bundle: {MANIFEST} cannot be read ({error.strerror})") from None
    manifest = _parse(text, path)
    for name, digest in manifest.files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{path} names {name!r}, which lies outside the bundle; refused")
        if not file.is_file():
            raise ArtifactError(f"{file} is missing; the bundle is incomplete, copy it again")
        if sha256(file) != digest:
            raise ArtifactError(
                f"{file} has changed since the bundle was written (sha256 differs); refused, copy it again"
            )
    for name in {"priors.parquet", "fusion.npz", *(f for files in manifest.models.values() for f in files.values())}:
        if name not in manifest.files:
            raise ArtifactError(f"{path} has no checksum for {name}; refused, export the bundle again")
    return Bundle(folder, manifest, hashlib.sha256(text).hexdigest()[:12])


def _parse(text: bytes, path: Path) -> Manifest:
    try:
        values = json.loads(text)
        schema = values.get("schema_version")
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is no manifest: {error}; copy the bundle again") from None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ArtifactError(f"{path} has schema {schema!r}; this version reads up to {SCHEMA}, upgrade l2r2")
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {place}: {first['msg']}; export the bundle again") from None
    if {"localizer", *Stage} - set(manifest.models) or set(Stage) - set(manifest.views):
        raise ArtifactError(f"{path} lacks a model or a view for localizer, FG or FULL; export the bundle again")
    if set(Stage) - set(manifest.policy.temperatures):
        raise ArtifactError(f"{path} lacks a temperature for FG or FULL; export the bundle again")
    return manifest
