"""An experiment → a bundle that answers; anything amiss leaves what stood there before."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from l2r2.bundle import Bundle, load_bundle
from l2r2.cli import build
from l2r2.config import ImageSettings
from l2r2.datasets import Dataset
from l2r2.errors import DatasetError, ExportError, InputError, ParityError
from l2r2.experiments import Experiment
from l2r2.experiments.experiment import save_experiment
from l2r2.images import read
from l2r2.tracking import Store
from l2r2.types import Stage, View
from l2r2_export import classifiers
from l2r2_export.export import STEPS, evenly, export_experiment
from l2r2_export.parity import check_decisions
from l2r2_export.slices import Photographs
from tests.export.conftest import CLASSES
from tests.tiny import BLUE, MUDDY, RED, make_photo, make_tiny_bundle


@pytest.fixture
def quick(lite0_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting a classifier copies the one that was exported before."""

    def copy(network: torch.nn.Module, size_px: int, path: Path, opset: int = 18) -> None:
        shutil.copyfile(lite0_file, path)

    monkeypatch.setattr(classifiers, "export_classifier", copy)


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def bundle(
    experiment: Experiment, dataset: Dataset, steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Made the whole way, but for FULL, which has FG's weights and takes a copy of its export."""
    out = tmp_path_factory.mktemp("bundles") / "samples"
    really, made = classifiers.export_classifier, []

    def once(network: torch.nn.Module, size_px: int, path: Path, opset: int = 18) -> None:
        if made:
            shutil.copyfile(made[0], path)
        else:
            really(network, size_px, path, opset)
            made.append(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "export_classifier", once)
        return export_experiment(experiment, dataset, out, slice_size=3, on_step=lambda _done, name: steps.append(name))


def test_the_bundle_loads_and_answers(bundle: Bundle, dataset: Dataset) -> None:
    photos = [read(path) for path in dataset.split("test").paths()]
    answers = load_bundle(bundle.folder).recognizer().recognize(photos)
    assert len(answers) == 2
    assert {answer.answer.name for answer in answers} <= set(CLASSES)
    assert all(answer.region is not None for answer in answers)


def test_the_manifest_says_where_it_came_from(bundle: Bundle, experiment: Experiment, dataset: Dataset) -> None:
    manifest = bundle.manifest
    assert manifest.name == "samples"
    assert manifest.created.endswith("+00:00")
    assert manifest.run_id == experiment.run_id
    assert manifest.dataset_digest == dataset.digest
    assert manifest.model_names == dict.fromkeys(Stage, "tf_efficientnet_lite0")
    assert manifest.validation == {"escalated": 0.5}
    assert not manifest.localizer_masks
    assert set(manifest.reference.parity) == {"localizer", "FG", "FULL", "decisions"}
    assert {figures["n"] for figures in manifest.reference.parity.values()} == {3.0}
    assert manifest.reference.parity["decisions"]["answer_agreement"] == 1.0
    assert manifest.reference.parity["decisions"]["stage_agreement"] == 1.0


def test_every_step_is_told(bundle: Bundle, steps: list[str]) -> None:
    assert steps == [*STEPS, ""]


def test_a_parity_error_leaves_the_older_bundle(
    quick: None, experiment: Experiment, dataset: Dataset, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    older = make_tiny_bundle(tmp_path / "out")
    state = load_file(experiment.weights[Stage.FULL])
    state["conv_stem.weight"] *= 1.05  # the export, a copy, was made without
    save_file(state, tmp_path / "other.safetensors")
    weights = {**experiment.weights, Stage.FULL: tmp_path / "other.safetensors"}
    with pytest.raises(ParityError, match="FULL: the exported model answers differently; expected max_abs"):
        export_experiment(replace(experiment, weights=weights), dataset, older.folder, slice_size=2)
    assert load_bundle(older.folder).version == older.version
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("quick")
def test_a_bundle_with_masks_says_so(experiment: Experiment, dataset: Dataset, tmp_path: Path) -> None:
    masked = experiment.context.model_copy(update={"views": {Stage.FG: View.FG_M, Stage.FULL: View.FULL}})
    found = export_experiment(replace(experiment, context=masked), dataset, tmp_path / "out", slice_size=1)
    assert found.manifest.localizer_masks
    assert found.manifest.views[Stage.FG] is View.FG_M


def test_another_data_set_is_refused(experiment: Experiment, dataset: Dataset, tmp_path: Path) -> None:
    context = experiment.context.model_copy(update={"dataset_digest": "f" * 16})
    with pytest.raises(DatasetError, match=f"has digest {dataset.digest}, but run 0+ was fitted on photos f+"):
        export_experiment(replace(experiment, context=context), dataset, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_not_replaced(experiment: Experiment, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="is there and is no bundle; it would be replaced, give another --out"):
        export_experiment(experiment, dataset, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_slice_is_refused(experiment: Experiment, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="slice_size is 0; expected at least 1"):
        export_experiment(experiment, dataset, tmp_path / "out", slice_size=0)


def test_other_decisions_are_caught(tmp_path: Path) -> None:
    one = make_tiny_bundle(tmp_path / "one").recognizer()
    photos = [make_photo(RED), make_photo(BLUE), make_photo(MUDDY)]
    figures = check_decisions(one, one, photos, [{}] * 3)
    assert figures["answer_agreement"] == figures["stage_agreement"] == 1.0
    assert figures["skipped_full"] == pytest.approx(2 / 3)  # muddy asks FULL
    assert figures["max_abs_probability"] == 0.0
    strict = replace(one, policy=replace(one.policy, threshold=0.3))
    with pytest.raises(ParityError, match=r"decisions: .*expected stage_agreement 0\.667, at least 1"):
        check_decisions(one, strict, photos, [{}] * 3)
    swapped = replace(one, classifiers={**one.classifiers, Stage.FG: Backwards(one)})
    with pytest.raises(ParityError, match=r"decisions: .*expected answer_agreement"):
        check_decisions(one, swapped, photos, [{}] * 3)


class Backwards:
    """FG with its classes in the opposite order."""

    def __init__(self, recognizer: object) -> None:
        self._fg = recognizer.classifiers[Stage.FG]  # type: ignore[attr-defined]

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self._fg.logits(images)[:, ::-1])


@pytest.mark.parametrize(("n", "count", "places"), [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (7, 1, [0])])
def test_slices_are_evenly_spread(n: int, count: int, places: list[int]) -> None:
    assert evenly(n, count) == places


def test_photographs_are_read_when_looked_at(dataset: Dataset) -> None:
    paths = dataset.paths()
    photos = Photographs([*paths, Path("absent.png")], ImageSettings())
    assert len(photos) == len(paths) + 1
    np.testing.assert_array_equal(photos[1], read(paths[1]))
    assert [photo.shape for photo in photos[:2]] == [(340, 500, 3)] * 2


@pytest.fixture
def tracked(experiment: Experiment, tmp_path: Path) -> tuple[Store, str]:
    """The experiment in a store, as `l2r2 train` keeps it."""
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with store.run("samples", "samples", {"kind": "experiment"}) as run:
        with store.run("samples", "child", {"kind": "classifier"}, parent=run) as child:
            child.file(experiment.weights[Stage.FG])
        context = experiment.context.model_copy(update={"children": dict.fromkeys(Stage, child.id)})
        save_experiment(run, tmp_path / "kept", experiment.recipe, context, experiment.policy, experiment.priors)
    return store, run.id


@pytest.mark.usefixtures("quick")
def test_the_command_exports_registers_and_then_keeps(
    tracked: tuple[Store, str], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run_id = tracked
    monkeypatch.setattr(export_experiment, "__defaults__", (2, lambda _done, _name: None))
    words = ["export", "latest:samples", "--data", str(dataset.folder), "--out", str(tmp_path / "out")]
    words += ["--tracking-uri", store.uri]
    done = CliRunner().invoke(build(), [*words, "--name", "fine"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    bundle = load_bundle(tmp_path / "out")
    assert bundle.manifest.run_id == run_id
    assert f"{bundle.version}\nregistered as models:/fine/1" in done.stdout
    assert "answer_agreement" in done.stdout
    assert load_bundle(store.fetch("models:/fine@champion")).version == bundle.version
    assert store.metrics_of(run_id)["parity.decisions.answer_agreement"] == 1.0
    assert json.loads(store.download(run_id, "export/parity.json").read_text())["bundle"] == bundle.version

    again = CliRunner().invoke(build(), [*words, "--name", "fine", "--json"], catch_exceptions=False)
    told = json.loads(again.stdout)
    assert told["kept"] is True
    assert (told["version"], told["registered"]) == (bundle.version, "models:/fine/1")
    assert told["parity"] == {"onnxruntime/fp32": bundle.manifest.reference.parity}

    apart = CliRunner().invoke(build(), [*words, "--no-register"], catch_exceptions=False)
    assert "was there already, kept" in apart.stdout
    assert "registered as" not in apart.stdout


def test_the_command_refuses_what_is_not_there(dataset: Dataset, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = ["--data", str(dataset.folder), "--tracking-uri", uri]
    with pytest.raises(InputError, match="has no finished experiment 'absent'; make one with: l2r2 train absent"):
        CliRunner().invoke(build(), ["export", "latest:absent", *words], catch_exceptions=False)
    with pytest.raises(InputError, match="there is no run 'absent'"):
        CliRunner().invoke(build(), ["export", "absent", *words], catch_exceptions=False)


def test_help_needs_no_heavy_import() -> None:
    import subprocess
    import sys

    code = (
        "import sys, l2r2_export.commands; print([m for m in ('torch', 'onnx', 'mlflow', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
