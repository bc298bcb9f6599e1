"""What a bundle says of itself: everything that is not an array, as JSON that is checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from l2r2.config import ImageSettings, Settings, ViewSettings
from l2r2.errors import ArtifactError, InputError
from l2r2.localization.frozen import DeployedLocalizer
from l2r2.localization.opening import LOCALIZER
from l2r2.runtimes import ShapeRange
from l2r2.types import Stage, View

SCHEMA: Final = 3
"""Raised whenever an older reader would misread a newer bundle."""

MANIFEST: Final = "manifest.json"

REFERENCE: Final = ("onnxruntime", "fp32")
"""Runtime and precision that every bundle has, and that all others are compared with."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]


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


class Model(Settings):
    """One stage of a deployment."""

    file: str
    """Path in the bundle."""
    precision: Precision = "fp32"
    """What it runs in: a stage that breaks in the deployment's precision stays in a higher one."""
    kept: tuple[str, ...] = ()
    """Layers that stay in float32."""
    shapes: dict[str, ShapeRange] = {}
    """Input → shapes that an engine is built, or the model compiled for; empty: for any."""
    runtime: str | None = None
    """Where another than the deployment's runs it; None: the deployment's."""
    parity: dict[str, float] = {}
    """Figures against the model that it came from; empty: never compared."""
    tolerance: dict[str, float] = {}
    """What they had to keep to."""
    compared_on: str | None = None
    """The runtime that the figures are from, where an engine's file was compared without its GPU; None: its own."""


class Deployment(Settings):
    """One model a stage, for one runtime, compared as a whole with the reference."""

    runtime: str
    precision: Precision
    """Asked for."""
    models: dict[str, Model]
    """Stage (localizer, FG, FULL; with SAM also encoder and decoder) → model."""
    size_px: int | None = Field(None, gt=0)
    """The localizer's input, where it is not the bundle's."""
    threads: int = Field(1, ge=1)
    """Of one inference, on a CPU."""
    batch: int = Field(1, ge=1)
    """Photographs at once that it is fastest with."""
    eight_bits: bool = False
    """Whether INT8 weights have all eight bits, which processors without VNNI add up wrongly; else they have seven."""
    decisions: dict[str, float] = {}
    """Figures of its cascade against the reference's; empty: never compared, as on a machine without its GPU."""
    tolerance: dict[str, float] = {}
    """What they had to keep to."""

    @property
    def name(self) -> str:
        """As in "openvino/int8"."""
        return f"{self.runtime}/{self.precision}"

    @property
    def files(self) -> tuple[str, ...]:
        """Of its models."""
        return tuple(model.file for model in self.models.values())

    @property
    def parity(self) -> dict[str, dict[str, float]]:
        """Stage → figures, and "decisions" → those of the cascade; what was never compared is left out."""
        by_stage = {stage: model.parity for stage, model in self.models.items()}
        return {what: figures for what, figures in {**by_stage, "decisions": self.decisions}.items() if figures}


class Manifest(Settings):
    """Everything about a bundle that is not an array."""

    schema_version: Literal[3] = SCHEMA
    name: str
    created: str
    """UTC, ISO 8601."""
    class_names: tuple[str, ...] = Field(min_length=2)
    images: ImageSettings
    localizer: DeployedLocalizer
    localizer_masks: bool
    views: dict[Stage, View]
    view: ViewSettings
    policy: PolicyManifest
    prior: PriorManifest
    deployments: tuple[Deployment, ...] = ()
    """The reference first."""
    serving: str = "/".join(REFERENCE)
    """Name of the deployment that serves unless another is asked for."""
    model_names: dict[Stage, str]
    dataset: str
    dataset_digest: str
    run_id: str
    """MLflow run that fitted the policy."""
    validation: dict[str, float]
    """Rates on the validation split, for comparison with those in the field."""
    files: dict[str, str] = {}
    """Path in the bundle → sha256."""

    @property
    def reference(self) -> Deployment:
        """What every other deployment was compared with."""
        return self.deployments[0]


def read_manifest(text: bytes, path: Path) -> Manifest:
    """Check a manifest, of this schema or an older one.

    Args:
        path: Named in messages.
    Raises:
        ArtifactError: no manifest, of a newer schema, or incomplete.
    """
    try:
        values = json.loads(text)
        schema = values.get("schema_version")
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is no manifest: {error}; copy the bundle again") from None
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise ArtifactError(f"{path} has schema {schema!r}; this version reads up to {SCHEMA}, upgrade l2r2")
    try:
        manifest = Manifest.model_validate(values if schema == SCHEMA else _upgraded(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {place}: {first['msg']}; export the bundle again") from None
    except InputError as error:  # a frozen prompt that was tampered with
        raise ArtifactError(f"{path}: localizer: {error}") from None
    _check_whole(manifest, path)
    return manifest


def _upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 2 had one model a stage and its parity figures beside it; schema 1 is the same without sets and veto."""
    rest = {name: value for name, value in values.items() if name not in {"models", "parity"}}
    parity = values.get("parity", {})
    models = {
        stage: {"file": files.get(REFERENCE[0]), "parity": parity.get(stage, {})}
        for stage, files in values.get("models", {}).items()
    }
    runtime, precision = REFERENCE
    decisions = parity.get("decisions", {})
    reference = {"runtime": runtime, "precision": precision, "models": models, "decisions": decisions}
    return {**rest, "schema_version": SCHEMA, "deployments": [reference]}


def _check_whole(manifest: Manifest, path: Path) -> None:
    names = [deployment.name for deployment in manifest.deployments]
    if not names or (manifest.reference.runtime, manifest.reference.precision) != REFERENCE:
        raise ArtifactError(f"{path} does not begin with a deployment {'/'.join(REFERENCE)}; export the bundle again")
    if len(set(names)) < len(names) or manifest.serving not in names:
        raise ArtifactError(
            f"{path} serves {manifest.serving!r} of the deployments {', '.join(names)}; expected one of them, each "
            "once; export the bundle again"
        )
    for deployment in manifest.deployments:
        if {LOCALIZER, *Stage} - set(deployment.models):
            raise ArtifactError(
                f"{path}: deployment {deployment.name} lacks a model for localizer, FG or FULL; export the bundle again"
            )
        if strange := set(deployment.files) - set(manifest.files):
            raise ArtifactError(f"{path} has no checksum for {min(strange)}; refused, export the bundle again")
    if set(Stage) - set(manifest.views):
        raise ArtifactError(f"{path} lacks a view for FG or FULL; export the bundle again")
    if set(Stage) - set(manifest.policy.temperatures):
        raise ArtifactError(f"{path} lacks a temperature for FG or FULL; export the bundle again")
