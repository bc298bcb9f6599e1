"""Finding and keeping bundles."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from l2r2.bundle import Bundle
from l2r2.errors import ArtifactError, ConfigError
from l2r2_serving.bundles import OpenBundle, Shelf, find_bundle
from l2r2_serving.errors import NotReady, UnknownBundle


def test_a_folder_never_asks_for_tracking(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "l2r2.tracking", None)  # importing it would now fail
    assert find_bundle(str(bundle.folder)).version == bundle.version


def test_a_registry_address_is_fetched(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch_bundle(uri: str, tracking_uri: str | None) -> Path:
        asked.append((uri, tracking_uri))
        return bundle.folder

    monkeypatch.setitem(sys.modules, "l2r2.tracking", SimpleNamespace(fetch_bundle=fetch_bundle))
    assert find_bundle("models:/tiny@best", "sqlite:///mlflow.db").version == bundle.version
    assert asked == [("models:/tiny@best", "sqlite:///mlflow.db")]


def test_a_tracking_uri_for_a_folder_is_a_mistake(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="it belongs to models:/NAME@ALIAS"):
        find_bundle(str(bundle.folder), "sqlite:///mlflow.db")


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no bundle"):
        find_bundle(str(tmp_path))


def named(name: str, opened: OpenBundle) -> OpenBundle:
    return replace(opened, name=name, version="0" * 12)


def test_the_shelf(opened: OpenBundle) -> None:
    shelf = Shelf()
    with pytest.raises(NotReady):
        shelf.find("")
    shelf.put(opened)
    assert shelf.find("") is opened
    assert shelf.find("tiny") is opened
    shelf.put(named("other", opened))
    assert shelf.find("tiny") is opened
    with pytest.raises(
        UnknownBundle, match="several bundles are served and none was named; expected one of: other, tiny"
    ):
        shelf.find("")
    with pytest.raises(UnknownBundle, match="no bundle 'none' is served"):
        shelf.find("none")


def test_a_newer_bundle_takes_the_place_of_its_name(opened: OpenBundle) -> None:
    shelf = Shelf()
    shelf.put(opened)
    newer = named("tiny", opened)
    shelf.put(newer)
    assert shelf.find("") is newer
