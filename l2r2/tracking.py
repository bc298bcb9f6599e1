"""Runs, artifacts and the model registry. The only import of mlflow."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from l2r2.bundle import Bundle, load_bundle
from l2r2.errors import ArtifactError, BackendMissing, InputError
from l2r2.images import Photograph
from l2r2.types import make_metadata

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    from mlflow.models import Model

DEFAULT_FOLDER = Path("mlruns")
ALIAS = "champion"
_URI = "MLFLOW_TRACKING_URI"
PACKAGES = (
    "l2r2",
    "torch",
    "timm",
    "lightning",
    "onnx",
    "onnxruntime",
    "numpy",
    "polars",
    "pillow",
    "scikit-learn",
    "mlflow",
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run under way."""

    store: Store
    id: str

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters; nested mappings become dotted names."""
        for name, value in _flat(values).items():
            self.store.client.log_param(self.id, name, str(value)[:6000])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        for name, value in values.items():
            self.store.client.log_metric(self.id, _metric_name(name), float(value), step=step)

    def tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self.store.client.set_tag(self.id, name, value)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, under `folder` of the run's artifacts."""
        self.store.client.log_artifact(self.id, str(path), folder)

    def data(self, name: str, digest: str, source: Path) -> None:
        """Say which data set the run used."""
        from mlflow.entities import Dataset, DatasetInput

        self.store.client.log_inputs(
            self.id, [DatasetInput(Dataset(name, digest, "local", json.dumps({"uri": str(source)})))]
        )


class Store:
    """A tracking store. Default: `sqlite:///mlruns/mlflow.db` under the current folder, or $MLFLOW_TRACKING_URI."""

    def __init__(self, uri: str | None = None) -> None:
        """Open or create a store.

        Raises:
            BackendMissing: MLflow is not installed.
        """
        mlflow = _mlflow()
        self.uri = uri or os.environ.get(_URI) or _default_uri()
        self.client = mlflow.MlflowClient(self.uri)

    def experiment(self, name: str) -> str:
        """Id of an experiment, made on first use."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith("sqlite:///"):
            beside = Path(self.uri.removeprefix("sqlite:///")).resolve().parent
            location = (beside / "artifacts").as_uri()
        return str(self.client.create_experiment(name, artifact_location=location))

    @contextmanager
    def run(self, experiment: str, name: str, tags: Mapping[str, str], parent: Run | None = None) -> Iterator[Run]:
        """A new run; FINISHED at the end, FAILED on an error, KILLED when interrupted."""
        own = {**tags, **({"mlflow.parentRunId": parent.id} if parent else {})}
        run = Run(self, self.client.create_run(self.experiment(experiment), run_name=name, tags=own).info.run_id)
        try:
            yield run
        except BaseException as error:
            self.client.set_terminated(run.id, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        self.client.set_terminated(run.id, "FINISHED")

    def finished(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        """Id of the newest finished run with all these tags."""
        known = self.client.get_experiment_by_name(experiment)
        if known is None:
            return None
        query = " and ".join(
            ["attributes.status = 'FINISHED'", *(f"tags.`{name}` = '{value}'" for name, value in tags.items())]
        )
        runs = self.client.search_runs([known.experiment_id], query, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def adopt(self, run_id: str) -> Run:
        """A run that exists, to add to.

        Raises:
            InputError: there is no such run.
        """
        return Run(self, self._get(run_id).info.run_id)

    def has(self, run_id: str) -> bool:
        """Whether there is such a run here."""
        try:
            self._get(run_id)
        except InputError:
            return False
        return True

    def tags_of(self, run_id: str) -> dict[str, str]:
        return dict(self._get(run_id).data.tags)

    def metrics_of(self, run_id: str) -> dict[str, float]:
        return dict(self._get(run_id).data.metrics)

    def name_of(self, run_id: str) -> str:
        return str(self._get(run_id).info.run_name)

    def download(self, run_id: str, path: str) -> Path:
        """Local path of a run's artifact.

        Raises:
            InputError: there is no such run.
            ArtifactError: the run has no such artifact.
        """
        place = str(self._get(run_id).info.artifact_uri)
        try:
            if place.startswith("file:"):
                local = Path(url2pathname(urlsplit(place).path)) / path
                local.stat()
                return local
            return Path(self.client.download_artifacts(run_id, path))
        except Exception as error:
            raise ArtifactError(f"run {run_id} has no artifact {path!r}; was it made by l2r2 train?") from error

    def register(self, bundle: Bundle, run_id: str, name: str, alias: str = ALIAS) -> str:
        """Keep a bundle as an MLflow model of a run and point the alias at it.

        Returns:
            The new version's URI, `models:/NAME/VERSION`.
        """
        from mlflow.models import Model

        with _quiet(), _current(self.uri):
            info = Model.log(
                None, _Flavor, name="bundle", run_id=run_id, registered_model_name=name, bundle_folder=bundle.folder
            )
        number = str(info.registered_model_version)
        self.client.set_registered_model_alias(name, alias, number)
        self.client.set_model_version_tag(name, number, "bundle_version", bundle.version)
        return f"models:/{name}/{number}"

    def registered(self, name: str, bundle_version: str) -> str | None:
        """URI of the version that holds this very bundle, if there is one."""
        for found in self.client.search_model_versions(f"name = '{name}'"):
            if found.tags.get("bundle_version") == bundle_version:
                return f"models:/{name}/{found.version}"
        return None

    def fetch(self, uri: str) -> Path:
        """Local folder of a registered bundle.

        Raises:
            ArtifactError: no such model, version or alias.
        """
        mlflow = _mlflow()
        try:
            with _current(self.uri):
                return Path(mlflow.artifacts.download_artifacts(uri))
        except Exception as error:
            raise ArtifactError(
                f"{uri} cannot be had from {self.uri}: {_reason(error)}; expected models:/NAME@ALIAS"
            ) from error

    def resolve(self, uri: str) -> str:
        """The version that an alias points at; a version is itself.

        Raises:
            ArtifactError: no such model or alias, or the registry cannot be reached.
        """
        name, at, alias = uri.removeprefix("models:/").partition("@")
        if not at:
            return uri
        try:
            return f"models:/{name}/{self.client.get_model_version_by_alias(name, alias).version}"
        except Exception as error:
            raise ArtifactError(
                f"{uri} cannot be looked up in {self.uri}: {_reason(error)}; expected models:/NAME@ALIAS"
            ) from error

    def _get(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            raise InputError(
                f"there is no run {run_id!r} in {self.uri}; look with: mlflow ui --backend-store-uri …"
            ) from error


def fetch_bundle(uri: str, tracking_uri: str | None = None) -> Path:
    """Local folder of a bundle given as `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        BackendMissing, ArtifactError: MLflow is not installed; there is no such model.
    """
    return Store(tracking_uri).fetch(uri)


def resolve_bundle(uri: str, tracking_uri: str | None = None) -> str:
    """`models:/NAME/VERSION` of what `models:/NAME@ALIAS` points at now; nothing is fetched.

    Raises:
        BackendMissing, ArtifactError: MLflow is not installed; there is no such model, or no registry.
    """
    return Store(tracking_uri).resolve(uri)


def provenance() -> dict[str, str]:
    """Git commit, whether the tree was clean, Python, platform and package versions."""
    values = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            values[f"version.{name}"] = version(name)
        except PackageNotFoundError:
            continue
    return values | _git()


def _git() -> dict[str, str]:
    git = shutil.which("git")
    if git is None:
        return {}
    here = Path(__file__).parent

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, *words], cwd=here, capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    return {} if commit is None else {"git.commit": commit, "git.clean": str(not changes)}


class _Flavor:
    """How MLflow writes a bundle: the bundle's own folder, with an MLmodel beside its manifest."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, bundle_folder: Path) -> None:
        import mlflow

        shutil.copytree(bundle_folder, path, dirs_exist_ok=True)
        mlflow.pyfunc.add_to_model(mlflow_model, loader_module="l2r2.tracking")
        mlflow_model.add_flavor("l2r2", manifest="manifest.json")
        (Path(path) / "requirements.txt").write_text(f"l2r2[serve]=={version('l2r2')}\n", encoding="utf-8")
        mlflow_model.save(str(Path(path) / "MLmodel"))


class _PythonFunction:
    """`mlflow.pyfunc.load_model(uri).predict(frame)`: columns image (encoded bytes) and any metadata sources."""

    def __init__(self, bundle: Bundle) -> None:
        self._images = bundle.manifest.images
        self._recognizer = bundle.recognizer()

    def predict(self, frame: pandas.DataFrame, params: Mapping[str, object] | None = None) -> list[dict[str, object]]:  # noqa: ARG002
        rows: Sequence[Mapping[str, Any]] = frame.to_dict(orient="records")
        answers = self._recognizer.recognize(
            [Photograph(row["image"], self._images) for row in rows],
            [make_metadata(**{k: _text(v) for k, v in row.items() if k != "image"}) for row in rows],
        )
        return [{"answer": a.answer.name, "probability": a.answer.probability} for a in answers]


def _reason(error: Exception) -> str:
    """The first line of what an error says; of one that says nothing, what it is."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _text(value: object) -> str | None:
    """A cell as metadata; pandas has NaN for a gap, and then makes floats of the column's whole numbers."""
    if isinstance(value, float):
        return None if math.isnan(value) else f"{value:g}"
    return str(value) if isinstance(value, str | int) else None


def _load_pyfunc(path: str) -> _PythonFunction:
    """Called by MLflow."""
    return _PythonFunction(load_bundle(Path(path)))


def _default_uri() -> str:
    DEFAULT_FOLDER.mkdir(exist_ok=True)
    return f"sqlite:///{(DEFAULT_FOLDER / 'mlflow.db').as_posix()}"


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _metric_name(name: str) -> str:
    """MLflow takes letters, digits, and _ - . space : / in a name."""
    return name.replace("⊕", " ").replace("×", "x").replace("*", "best").replace("+", " and ").replace(",", "")


@contextmanager
def _current(uri: str) -> Iterator[None]:
    """Make a store the one that MLflow's own functions use; they ask a global, which is put back as it was."""
    mlflow, before = _mlflow(), os.environ.get(_URI)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ[_URI] = before


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # MLflow prints what it registered, and warns of type hints that are none of its business.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _mlflow() -> Any:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # bars are the command line's
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would wait for a network that may not be there
    try:
        import mlflow
    except ImportError as error:
        raise BackendMissing("MLflow is not installed; run: pip install 'l2r2[train]'") from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow
