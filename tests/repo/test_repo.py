"""The repository's own promises: README, packages, what is and what must not be in it."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from l2r2 import errors
from l2r2.cli import build
from l2r2.config import RECIPES, load_recipe

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


DATA_SETS = (
    "starter", "folder", "table",
    "fungitastic", "spawrious", "dogs", "pets", "imagenet", "hard-imagenet", "counter-animal",
)  # fmt: skip
GROUPED = [
    *(["data", kind] for kind in DATA_SETS),
    *(["experiments", kind] for kind in ("list", "table", "figure", "run")),
]
"""Commands of a group."""


def commands_of(text: str) -> list[list[str]]:
    """Words of every `l2r2 …` line in the shell blocks of a page, without the environment's folder."""
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, flags=re.DOTALL)
    lines = [
        line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for block in blocks for line in block.splitlines()
    ]
    return [line.split()[1:] for line in lines if line.startswith("l2r2 ")]


def test_readme_names_only_commands_and_flags_that_exist() -> None:
    commands = commands_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(commands) >= 8
    for words in commands:
        depth = 2 if words[0] in {"data", "experiments"} else 1
        shown = CliRunner().invoke(build(), [*words[:depth], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert shown.exit_code == 0, (words, shown.output)
        for flag in [word.split("=")[0] for word in words if word.startswith("--")]:
            assert flag in shown.output, (words, flag)


def test_every_command_has_help_with_an_example() -> None:
    app = build()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert {"localize", "train", "evaluate", "compare", "bundle", "export", "serve", "recognize"} <= set(names)
    for words in [[name] for name in names] + GROUPED:
        shown = CliRunner().invoke(app, [*words, "--help"], env={"NO_COLOR": "1"})
        assert shown.exit_code == 0
        assert "Example" in shown.output, words


def test_bundled_recipes_are_valid_and_have_a_full_header() -> None:
    recipes = sorted(RECIPES.glob("*.toml"))
    assert recipes
    for path in recipes:
        assert load_recipe(path).name == path.stem
        header = path.read_text(encoding="utf-8").split("\n\n")[0]
        for part in ("paper:", "command:", "time:"):
            assert part in header, (path, part)


def test_every_error_class_is_public() -> None:
    assert errors.ParityError.__mro__[1:3] == (errors.ExportError, errors.L2R2Error)


def test_no_weights_photographs_or_pickles_are_tracked() -> None:
    suffixes = {".pth", ".pt", ".ckpt", ".onnx", ".safetensors", ".pkl", ".npz", ".jpg", ".jpeg", ".parquet"}
    assert not [path for path in tracked() if path.suffix.lower() in suffixes]


def test_no_tracked_file_is_large() -> None:
    assert not [path for path in tracked() if path.stat().st_size > 1_000_000]


def test_no_source_file_is_longer_than_four_hundred_lines() -> None:
    long = {
        path.name: lines
        for path in tracked()
        if path.suffix == ".py" and "_pb2" not in path.name and "tests" not in path.parts
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


@pytest.mark.slow
def test_the_wheel_built_from_the_sdist_is_whole(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "l2r2/__init__.py", "l2r2/py.typed", "l2r2/recipes/demo.toml", "l2r2/recipes/base/supervised.toml",
        "l2r2/experiments/paper/cells.csv", "l2r2/experiments/report.html.jinja", "l2r2_export/py.typed",
        "l2r2_serving/v1/recognition_pb2.py", "l2r2_serving/py.typed",
    ):  # fmt: skip
        assert name in names
    top = {name.split("/")[0] for name in names}
    assert top == {"l2r2", "l2r2_export", "l2r2_serving", next(t for t in top if t.endswith(".dist-info"))}
