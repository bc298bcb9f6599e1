"""docs/PROOFS.md names tests and recipes that exist."""

from __future__ import annotations

import ast
import re
from itertools import product
from pathlib import Path

import pytest

from l2r2.config import RECIPES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "PROOFS.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([a-z_]+/test_[a-z0-9_]+\.py)(?:::(test_[a-z0-9_]+))?`", TEXT)))


def test_there_are_many() -> None:
    assert len(NAMED) > 60


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_test_exists(file: str, name: str) -> None:
    path = ROOT / "tests" / file
    assert path.is_file()
    if name:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_each_recipe_exists() -> None:
    table = TEXT.split("| table, figure | recipes |")[1]
    patterns = [word for word in re.findall(r"`([a-z0-9{},*-]+)`", table) if not word.startswith("-")]
    assert len(patterns) > 10
    for pattern in patterns:
        parts = [
            part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", pattern)
        ]
        for words in product(*parts):
            name = "".join(words)
            if name == "fungi-siglip2":
                continue  # the paper has none
            assert list(RECIPES.glob(f"{name}.toml")), name
