"""Runs, artifacts and registered bundles in a real store: SQLite and a folder."""

import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from l2r2 import tracking
from l2r2.bundle import load_bundle
from l2r2.errors import ArtifactError, BackendMissing, InputError, MetadataError
from l2r2.tracking import Store, fetch_bundle, provenance
from tests.tiny import GREEN, RED, encode, make_photo, make_tiny_bundle

pd = pytest.importorskip("pandas")
mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module", autouse=True)
def environment():
    """MLflow keeps the last store in the environment and in a global; neither outlives these tests."""
    before = dict(os.environ)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    mlflow.set_tracking_uri(None)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def uri(place):
    return f"sqlite:///{place / 'mlflow.db'}"


@pytest.fixture(scope="module")
def store(environment, uri):
    return Store(uri)


@pytest.fixture(scope="module")
def empty(store, place):
    """A fresh database to copy; MLflow takes seconds to make one."""
    copy = place / "empty.db"
    with sqlite3.connect(place / "mlflow.db") as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
    return copy


@pytest.fixture
def run(store):
    """A run under way."""
    with store.run("tests", "a run", {"kind": "test"}) as run:
        yield run


def status(store, run_id):
    return store.client.get_run(run_id).info.status


def test_a_run_is_finished(store):
    with store.run("tests", "whole", {}) as run:
        assert status(store, run.id) == "RUNNING"
    assert status(store, run.id) == "FINISHED"


@pytest.mark.parametrize(
    ("error", "ends"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_that_breaks_off(store, error, ends):
    runs = []

    def broken():
        with store.run("tests", "broken", {}) as run:
            runs.append(run.id)
            raise error

    with pytest.raises(error):
        broken()
    assert status(store, runs[0]) == ends


def test_names_and_tags(store, run):
    assert store.name_of(run.id) == "a run"
    run.tags({"recipe": "tiny"})
    assert store.tags_of(run.id).items() >= {"kind": "test", "recipe": "tiny"}.items()


def test_a_child_names_its_parent(store, run):
    with store.run("tests", "child", {}, parent=run) as child:
        assert store.tags_of(child.id)["mlflow.parentRunId"] == run.id
    assert "mlflow.parentRunId" not in store.tags_of(run.id)


def test_nested_params_become_dotted(store, run):
    run.params({"name": "tiny", "train": {"epochs": 3, "seeds": (0, 1), "checkpoint": None}})
    assert store.client.get_run(run.id).data.params == {
        "name": "tiny",
        "train.epochs": "3",
        "train.seeds": "(0, 1)",
        "train.checkpoint": "None",
    }


def test_long_params_are_cut(store, run):
    run.params({"long": "x" * 10_000})
    assert store.client.get_run(run.id).data.params["long"] == "x" * 6000


def test_metrics_are_named_as_mlflow_allows(store, run):
    run.metrics({"iid/FG_C⊕FULL R+λ": 0.5, "iid/FG_C⊕FULL*": 0.25, "2×": np.float32(1)})
    assert store.metrics_of(run.id) == {"iid/FG_C FULL R and λ": 0.5, "iid/FG_C FULLbest": 0.25, "2x": 1.0}


def test_metrics_by_step(store, run):
    for step in range(3):
        run.metrics({"loss": 1 / (step + 1)}, step)
    assert [(m.step, m.value) for m in store.client.get_metric_history(run.id, "loss")] == [
        (0, 1),
        (1, 0.5),
        (2, 1 / 3),
    ]


def test_the_data_set_is_named(store, run, tmp_path):
    run.data("starter", "0123456789abcdef", tmp_path)
    (used,) = store.client.get_run(run.id).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("starter", "0123456789abcdef")
    assert json.loads(used.dataset.source) == {"uri": str(tmp_path)}


def test_files_are_kept(store, run, tmp_path):
    (tmp_path / "a.txt").write_text("kept")
    run.file(tmp_path / "a.txt")
    run.file(tmp_path / "a.txt", "inner folder")
    (tmp_path / "a.txt").unlink()
    assert store.download(run.id, "a.txt").read_text() == "kept"
    assert store.download(run.id, "inner folder/a.txt").read_text() == "kept"


def test_files_lie_beside_the_database(store, run, place, tmp_path):
    (tmp_path / "a.txt").write_text("kept")
    run.file(tmp_path / "a.txt")
    assert store.download(run.id, "a.txt").is_relative_to(place / "artifacts")


def test_a_file_that_is_not_there(store, run):
    message = f"run {run.id} has no artifact 'a.txt'; was it made by l2r2 train?"
    with pytest.raises(ArtifactError, match=rf"^{re.escape(message)}$"):
        store.download(run.id, "a.txt")


def broken_off(store, tags):
    with store.run("found", "broken", tags):
        raise ValueError


def test_finished_runs_are_found_by_all_their_tags(store):
    tags = {"key": "0a1b", "stage": "FG_C"}
    with store.run("found", "other", {"key": "0a1b", "stage": "FULL"}):
        pass
    with pytest.raises(ValueError, match=r"^$"):
        broken_off(store, tags)
    assert store.finished("found", tags) is None
    with store.run("found", "wanted", tags) as run:
        assert store.finished("found", tags) is None
    assert store.finished("found", tags) == run.id
    assert store.finished("another experiment", tags) is None


def test_the_newest_finished_run_is_found(store):
    ids = []
    for name in ("old", "new"):
        with store.run("newest", name, {"key": "k"}) as run:
            ids.append(run.id)
    assert store.finished("newest", {"key": "k"}) == ids[1]


def test_without_tags_any_finished_run_is_found(store):
    with store.run("any", "one", {}) as run:
        pass
    assert store.finished("any", {}) == run.id


def test_a_run_can_be_taken_up_again(store, run):
    store.adopt(run.id).metrics({"later": 1.0})
    assert store.metrics_of(run.id) == {"later": 1.0}
    assert store.has(run.id)


UNKNOWN = "f" * 32


@pytest.mark.parametrize("ask", ["adopt", "tags_of", "metrics_of", "name_of"])
def test_an_unknown_run(store, uri, ask):
    message = f"there is no run '{UNKNOWN}' in {uri}; look with: mlflow ui --backend-store-uri …"
    with pytest.raises(InputError, match=rf"^{re.escape(message)}$"):
        getattr(store, ask)(UNKNOWN)


def test_a_file_of_an_unknown_run(store):
    with pytest.raises(InputError, match=rf"^there is no run '{UNKNOWN}' in "):
        store.download(UNKNOWN, "a.txt")
    assert not store.has(UNKNOWN)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def registered(store, bundle):
    """The URI of the tiny bundle as version 1 of a model."""
    with store.run("tests", "export", {}) as run:
        return store.register(bundle, run.id, "tiny")


def test_a_registered_bundle_is_loaded_by_its_alias(registered, bundle, uri):
    assert registered == "models:/tiny/1"
    assert load_bundle(fetch_bundle("models:/tiny@champion", uri)).version == bundle.version


def test_a_registered_bundle_is_loaded_by_its_version(registered, bundle, uri):
    assert load_bundle(fetch_bundle(registered, uri)).manifest == bundle.manifest


def test_a_registered_bundle_is_found_by_its_version(store, registered, bundle):
    assert store.registered("tiny", bundle.version) == registered
    assert store.registered("tiny", "0" * 12) is None
    assert store.registered("unheard", bundle.version) is None


def test_the_alias_moves_to_a_newer_bundle(store, uri, tmp_path):
    bundles = [make_tiny_bundle(tmp_path / created, created=created) for created in ("first", "second")]
    for bundle in bundles:
        with store.run("tests", "export", {}) as run:
            store.register(bundle, run.id, "moving")
        assert load_bundle(fetch_bundle("models:/moving@champion", uri)).version == bundle.version
    assert [store.registered("moving", bundle.version) for bundle in bundles] == [
        "models:/moving/1",
        "models:/moving/2",
    ]


def test_another_alias_leaves_the_champion(store, uri, registered, bundle, tmp_path):
    other = make_tiny_bundle(tmp_path / "other", created="later")
    with store.run("tests", "export", {}) as run:
        store.register(other, run.id, "tiny", alias="challenger")
    assert load_bundle(fetch_bundle("models:/tiny@challenger", uri)).version == other.version
    assert load_bundle(fetch_bundle("models:/tiny@champion", uri)).version == bundle.version


def test_registering_says_nothing(store, bundle, capfd, caplog):
    with store.run("tests", "export", {}) as run:
        store.register(bundle, run.id, "silent")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_store_registers_in_itself_whatever_was_opened_since(store, bundle, empty, tmp_path):
    other = Store(f"sqlite:///{shutil.copy(empty, tmp_path)}")
    with store.run("tests", "export", {}) as run:
        store.register(bundle, run.id, "own")
    assert store.registered("own", bundle.version) == "models:/own/1"
    assert other.registered("own", bundle.version) is None


@pytest.mark.parametrize("name", ["models:/unheard@champion", "models:/tiny@unheard", "models:/tiny/99", "tiny"])
def test_an_unknown_model(registered, uri, name):
    place = re.escape(f"{name} cannot be had from {uri}: ")
    with pytest.raises(ArtifactError, match=rf"^{place}.+; expected models:/NAME@ALIAS$"):
        fetch_bundle(name, uri)


@pytest.fixture(scope="module")
def function(store, registered):
    mlflow.set_tracking_uri(store.uri)
    loaded = mlflow.pyfunc.load_model("models:/tiny@champion")
    mlflow.set_tracking_uri(None)
    return loaded


def test_mlflow_predicts(function, bundle):
    photos = [make_photo(RED), make_photo(GREEN)]
    frame = pd.DataFrame({"image": [encode(photo) for photo in photos], "habitat": ["forest", None]})
    expected = bundle.recognizer().recognize(photos, [{"habitat": "forest"}, {}])
    assert function.predict(frame) == [
        {"answer": p.answer.name, "probability": pytest.approx(p.answer.probability)} for p in expected
    ]


def test_mlflow_predicts_without_metadata(function):
    answers = function.predict(pd.DataFrame({"image": [encode(make_photo(RED)), encode(make_photo(GREEN))]}))
    assert [row["answer"] for row in answers] == ["red", "green"]


def test_a_gap_leaves_the_other_months_known(function, bundle):
    """pandas makes floats of a column of whole numbers with a gap."""
    photo = make_photo(RED)
    frame = pd.DataFrame({"image": [encode(photo)] * 2, "month": [5, None]})
    assert frame["month"].dtype == float
    expected = bundle.recognizer().recognize([photo] * 2, [{"month": "5"}, {}])
    assert [row["probability"] for row in function.predict(frame)] == pytest.approx(
        [p.answer.probability for p in expected]
    )


def test_a_month_that_is_none(function):
    with pytest.raises(MetadataError, match=r"^month is '5\.5'; expected a whole number from 1"):
        function.predict(pd.DataFrame({"image": [encode(make_photo())], "month": [5.5]}))


def test_the_environment_names_the_store(monkeypatch, empty):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty}")
    assert Store().uri == f"sqlite:///{empty}"


def test_what_is_given_wins_over_the_environment(monkeypatch, empty, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'named.db'}")
    assert Store(f"sqlite:///{empty}").uri == f"sqlite:///{empty}"
    assert list(tmp_path.iterdir()) == []


def test_the_default_store_is_under_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Store().uri == "sqlite:///mlruns/mlflow.db"
    assert (tmp_path / "mlruns" / "mlflow.db").is_file()


@pytest.mark.parametrize("before", [None, "sqlite:///of/the/user.db"])
def test_a_store_leaves_mlflow_as_it_was(monkeypatch, store, registered, before):
    """Fetching and registering need MLflow's global; whoever has set it finds it again."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(before)
    store.fetch(registered)
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    assert before is None or mlflow.get_tracking_uri() == before
    mlflow.set_tracking_uri(None)


def test_without_mlflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(BackendMissing, match=r"^MLflow is not installed; run: pip install 'l2r2\[train\]'$"):
        Store("sqlite://")


def test_no_network_is_asked(empty):
    """Any socket that is opened would end the program."""
    program = f"""
        import socket

        def refuse(*_):
            raise SystemExit("a socket was opened")

        socket.socket.connect = socket.getaddrinfo = refuse
        from l2r2.tracking import Store
        store = Store("sqlite:///{empty}")
        with store.run("tests", "alone", {{}}) as run:
            run.metrics({{"a": 1.0}})
        print(store.metrics_of(run.id))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "{'a': 1.0}\n"), done.stderr


def test_provenance_names_versions_and_commit():
    values = provenance()
    assert values["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert values["version.numpy"] == np.__version__
    assert all(isinstance(value, str) for value in values.values())


def test_provenance_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git.commit" not in provenance()


def test_mlflow_is_quiet(store):
    assert logging.getLogger("mlflow").level == logging.WARNING
    with tracking._quiet():
        assert logging.getLogger("mlflow").level == logging.ERROR
    assert logging.getLogger("mlflow").level == logging.WARNING
