"""What is deployed: a folder with a manifest, model files, the priors and what fusion learned.

    manifest.json     everything that is not an array; sha256 of every other file
    models/           stage.onnx in float32; stage.PRECISION.RUNTIME.* beside it
    engines/          built ahead for named GPUs
    priors.parquet    class × metadata counts
    fusion.npz        what the fusion operator learned

Nothing in it is a pickle. A file that is missing, changed or of a newer schema is refused by name.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np

from l2r2.calibration import Temperature
from l2r2.cascade import Policy, Veto
from l2r2.classification import SessionClassifier
from l2r2.conformal import PredictionSets
from l2r2.errors import ArtifactError, ConfigError
from l2r2.files import sha256, whole_folder
from l2r2.fusion import make_operator
from l2r2.localization.opening import LOCALIZER, open_localizer
from l2r2.manifest import MANIFEST, REFERENCE, Deployment, Manifest, Model, PolicyManifest, read_manifest
from l2r2.priors import Priors
from l2r2.recognizer import Recognizer
from l2r2.runtimes import RuntimeSession, ShapeProfile, open_session
from l2r2.runtimes.batching import BatchingSession, Ran
from l2r2.runtimes.processor import saturates
from l2r2.runtimes.sessions import ENGINES as BUILT_AHEAD
from l2r2.runtimes.sessions import check_names
from l2r2.types import Stage
from l2r2.weights import cache_folder

READ_ONNX: Final = frozenset({"openvino", "onnxruntime-cuda", "onnxruntime-tensorrt"})
"""Runtimes that read the reference's files as they are."""

HALVING: Final = frozenset({"openvino", "onnxruntime-tensorrt"})
"""Those of them that compute float32 files in half precision when told to."""

ENGINES: Final = "engines"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle, ready to be opened.

    Attributes:
        version: Twelve hexadecimal digits of the manifest's sha256; changes with any file.
    """

    folder: Path
    manifest: Manifest
    version: str

    def deployment(
        self, runtime: str | None = None, precision: str | None = None, *, uncertified: bool = False
    ) -> Deployment:
        """One of the bundle's deployments; with neither runtime nor precision the one that serves.

        Args:
            runtime, precision: What is not given is as in the deployment that serves, where there is such a one.
            uncertified: Also what was never compared with the reference, and the reference's own files on a runtime
                that can read them.
        Raises:
            ConfigError: there is none, or it was never compared.
        """
        known = self.manifest.deployments
        serving = next(each for each in known if each.name == self.manifest.serving)
        wanted = (runtime or serving.runtime, precision or serving.precision)
        names = ", ".join(each.name for each in known)
        found = next((each for each in known if (each.runtime, each.precision) == wanted), None)
        if found is None and precision is None:
            found = next((each for each in known if each.runtime == runtime), None)
        if found is None and uncertified:
            found = self._plain(wanted[0], precision or "fp32")
        if found is None:
            raise ConfigError(
                f"{self.folder} has no deployment {'/'.join(wanted)}; it has {names}; add it: "
                f"l2r2 export {self.folder} --data DATA_SET --runtime {wanted[0]} --precision {wanted[1]}"
            )
        if not found.decisions and found is not self.manifest.reference and not uncertified:
            raise ConfigError(
                f"deployment {found.name} of {self.folder} was never compared with {'/'.join(REFERENCE)}; compare it "
                f"where it runs: l2r2 export {self.folder} --data DATA_SET --runtime {found.runtime} "
                f"--precision {found.precision}"
            )
        if found.eight_bits and saturates() and not uncertified:
            raise ConfigError(
                f"deployment {found.name} of {self.folder} was made and compared on a processor with VNNI, which this "
                f"one lacks, and would answer otherwise; make it here: l2r2 export {self.folder} --data DATA_SET "
                f"--runtime {found.runtime} --precision {found.precision}"
            )
        return found

    def recognizer(
        self,
        runtime: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        *,
        uncertified: bool = False,
        ran: Ran | None = None,
    ) -> Recognizer:
        """Load every model of a deployment.

        Args:
            runtime, precision, uncertified: As for `deployment`.
            threads: Of one inference; None: the deployment's.
            ran: As for `open`.
        Raises:
            ConfigError: there is no such deployment.
            BackendMissing, BackendError, ArtifactError: from the runtime or the tables.
        """
        return self.open(self.deployment(runtime, precision, uncertified=uncertified), threads, ran)

    def open(self, deployment: Deployment, threads: int | None = None, ran: Ran | None = None) -> Recognizer:
        """Load every model of a deployment whose files are in this folder.

        Args:
            ran: Told, where calls of several threads are joined, of each inference its stage and photographs.
        Raises:
            BackendMissing, BackendError, ArtifactError: from the runtime or the tables.
        """
        manifest = self.manifest
        classes = len(manifest.class_names)
        # The localizer, the dearest, beside the others: compiling is most of the time until a service is ready.
        first, *others = deployment.models
        with ThreadPoolExecutor(1) as pool:
            beside = [pool.submit(self._session, deployment, stage, threads, ran) for stage in others]
            sessions = {first: self._session(deployment, first, threads, ran)}
            sessions |= {stage: each.result() for stage, each in zip(others, beside, strict=True)}
        digests = {stage: manifest.files[model.file] for stage, model in deployment.models.items()}
        return Recognizer(
            class_names=manifest.class_names,
            localizer=open_localizer(
                manifest.localizer, sessions, digests, masks=manifest.localizer_masks, size_px=deployment.size_px
            ),
            classifiers={
                stage: SessionClassifier(sessions[stage], next(iter(sessions[stage].inputs)), classes)
                for stage in Stage
            },
            views=manifest.views,
            view_settings=manifest.view,
            policy=self.policy(),
            priors=self.priors(),
        )

    def policy(self) -> Policy:
        """Calibration, fusion and gate."""
        return read_policy(self.manifest.policy, self.folder / "fusion.npz", self.manifest.class_names)

    def priors(self) -> Priors:
        """Class × metadata counts."""
        prior = self.manifest.prior
        return Priors.load(self.folder / "priors.parquet", prior.alpha, prior.strength, prior.cap)

    def _session(self, deployment: Deployment, stage: str, threads: int | None, ran: Ran | None) -> RuntimeSession:
        model, manifest = deployment.models[stage], self.manifest
        session = open_session(
            self.folder / model.file,
            model.runtime or deployment.runtime,
            threads=threads or deployment.threads,
            precision=model.precision,
            pins=model.kept if model.file == manifest.reference.models[stage].file else (),  # else the file has them
            cache=_engines_of(self.folder, deployment),
            profile=ShapeProfile(model.shapes) if model.shapes else None,
        )
        if deployment.batch == 1:
            return session
        return BatchingSession(session, deployment.batch, None if ran is None else partial(ran, stage))

    def _plain(self, runtime: str, precision: str) -> Deployment | None:
        check_names(runtime, precision)
        if runtime not in READ_ONNX or not (precision == "fp32" or (runtime in HALVING and precision != "int8")):
            return None
        models = {
            stage: model.model_copy(update={"precision": precision, "parity": {}, "tolerance": {}})
            for stage, model in self.manifest.reference.models.items()
        }
        return Deployment(runtime=runtime, precision=precision, models=models)


def _engines_of(folder: Path, deployment: Deployment) -> Path | None:
    """Engines built ahead are in the bundle; what ONNX Runtime's TensorRT provider builds when opened is not."""
    if deployment.runtime in BUILT_AHEAD:
        return folder / ENGINES
    return cache_folder() / ENGINES if deployment.runtime == "onnxruntime-tensorrt" else None


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
        ArtifactError: a hazardous class is no class of the bundle, or the arrays cannot be read.
    """
    strange = set(manifest.hazardous) - set(class_names)
    if strange:
        raise ArtifactError(f"hazardous class {min(strange)!r} is none of the bundle's classes; export it again")
    try:
        with np.load(arrays, allow_pickle=False) as learned:
            values = dict(learned)
    except (ValueError, OSError, BadZipFile) as error:  # the first also where objects would have to be unpickled
        raise ArtifactError(f"{arrays} holds no plain arrays: {error}; export the bundle again") from None
    operator = make_operator(manifest.operator, values)
    temperatures = {stage: Temperature(np.asarray(each)) for stage, each in manifest.temperatures.items()}
    sets = None if manifest.coverage is None else PredictionSets(manifest.set_threshold, manifest.coverage)
    marked = np.isin(np.asarray(class_names), manifest.hazardous)
    veto = Veto(marked, manifest.hazard_mass) if marked.any() else None
    return Policy(temperatures, operator, manifest.threshold, sets, veto)


def write_bundle(
    folder: Path,
    manifest: Manifest,
    models: Mapping[str, Path],
    policy: Policy,
    priors: Priors,
    parity: Mapping[str, Mapping[str, float]] | None = None,
) -> Bundle:
    """Write a bundle with its reference deployment, whole or not at all.

    Args:
        manifest: Its `files` and `deployments` are filled in here.
        models: Stage (localizer, FG, FULL, …) → ONNX file.
        parity: Stage, and "decisions" → figures against the models that these were exported from.
    Raises:
        ArtifactError: a stage lacks its model, or the place cannot be written.
    """
    missing = {LOCALIZER, *Stage} - set(models)
    if missing:
        raise ArtifactError(f"no model for {', '.join(sorted(missing))}; a bundle needs localizer, FG and FULL")
    seen = parity or {}
    runtime, precision = REFERENCE
    reference = Deployment(
        runtime=runtime,
        precision=precision,
        models={
            str(stage): Model(file=f"models/{stage.lower()}.onnx", parity=dict(seen.get(stage, {}))) for stage in models
        },
        decisions=dict(seen.get("decisions", {})),
    )
    with whole_folder(folder) as beside:
        (beside / "models").mkdir()
        for stage, path in models.items():
            shutil.copyfile(path, beside / "models" / f"{stage.lower()}.onnx")
        priors.save(beside / "priors.parquet")
        np.savez(beside / "fusion.npz", **policy.operator.parameters())  # type: ignore[arg-type]
        _write_manifest(beside, manifest.model_copy(update={"deployments": (reference,)}))
    return load_bundle(folder)


def add_deployment(
    bundle: Bundle, deployment: Deployment, files: Mapping[str, Path], *, serving: bool = False
) -> Bundle:
    """Write the bundle anew with one deployment more, or in place of the one of its name; whole or not at all.

    Args:
        files: Path in the bundle → file to copy there; what the bundle has already need not be named. Of an OpenVINO
            IR both files, of an engine its header too.
        serving: Whether this deployment serves from now on.
    Raises:
        ArtifactError: a model's file is neither there nor given, or the place cannot be written.
    """
    old = bundle.manifest
    if deployment.name == old.reference.name and deployment.models != old.reference.models:
        raise ArtifactError(
            f"{deployment.name} is what all others are compared with; export the run again to change it"
        )
    others = tuple(each for each in old.deployments if each.name != deployment.name)
    listed = (deployment, *others) if deployment.name == old.reference.name else (*others, deployment)
    updated = old.model_copy(update={"deployments": listed, "serving": deployment.name if serving else old.serving})
    stay = {name for each in updated.deployments for name in each.files}
    with whole_folder(bundle.folder) as beside:
        for name in old.files:
            if not name.startswith("models/") or any(name == kept or _goes_with(name, kept) for kept in stay):
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.folder / name, beside / name)
        for name, path in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, beside / name)
        if lost := sorted(name for name in stay if not (beside / name).is_file()):
            raise ArtifactError(f"deployment {deployment.name} names {lost[0]}, which is not there; export it again")
        _write_manifest(beside, updated)
    return load_bundle(bundle.folder)


def _goes_with(name: str, model: str) -> bool:
    """Whether a file holds the weights of a model file."""
    return name in {str(Path(model).with_suffix(".bin")), f"{model}.data"}


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    files = {str(p.relative_to(folder).as_posix()): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    text = manifest.model_copy(update={"files": files}).model_dump_json(indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


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
    manifest = read_manifest(text, path)
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
    for name in ("priors.parquet", "fusion.npz"):
        if name not in manifest.files:
            raise ArtifactError(f"{path} has no checksum for {name}; refused, export the bundle again")
    return Bundle(folder, manifest, hashlib.sha256(text).hexdigest()[:12])
