"""Profiles of several devices side by side; runs of l2r2 train are compared in test_run.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from l2r2.cli import build
from l2r2.errors import ArtifactError, ConfigError, InputError
from l2r2.experiments.compare import PROFILE, PROFILES, compare_profiles, profile_runs
from l2r2.tracking import Store

TIMES = {"first_ms": 30.0, "p50_ms": 10.0, "p90_ms": 12.0, "p99_ms": 15.04, "n": 40, "warmups": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")


def make_profile(**fields: Any) -> dict[str, Any]:
    """As l2r2 profile writes it."""
    return {
        "bundle": "birds",
        "bundle_version": "abc",
        "device": "a board",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "threads": 1,
        "certified": True,
        "parity": {},
        "host": {"processor": "Cortex", "load": "0.1", "version openvino": "2026.4"},
        "steps": {"decode": TIMES, "locate": {**TIMES, "p50_ms": 0.0456}},
        "always_both": {**TIMES, "p50_ms": 20.0},
        "cascade": TIMES,
        "photographs_per_s": 98.76,
        "callers": 4,
        "photographs_per_s_together": 345.6,
        "escalated": 0.25,
        "models": [{"model": "FG", "batch": 4, "batch_ms": TIMES, "images_per_s": 400.0}],
        "joules_per_photograph": None,
        "peak_memory_mb": 123.4,
        **fields,
    }


def keep(store: Store, folder: Path, **fields: Any) -> str:
    found = make_profile(**fields)
    tags = {name: str(found[name]) for name in ("bundle", "device", "runtime", "precision", "threads")}
    with store.run(PROFILES, "a profile", {"kind": "profile", **tags}) as run:
        (folder / PROFILE).write_text(json.dumps(found))
        run.file(folder / PROFILE)
    return run.id


def test_figures_lie_side_by_side(store: Store, tmp_path: Path) -> None:
    runs = [
        keep(store, tmp_path),
        keep(
            store,
            tmp_path,
            device="NVIDIA L4",
            runtime="tensorrt",
            precision="fp16",
            certified=False,
            parity={"accuracy_change": -0.0025},
            host={"processor": "Xeon", "load": "3.0", "gpu name": "NVIDIA L4", "version openvino": "2026.4"},
            cascade={**TIMES, "p50_ms": 1234.4},
            gpu_joules_per_photograph=0.5,
        ),
    ]
    table = compare_profiles(store, runs)
    assert table.columns == (
        "a board: onnxruntime/fp32, 1 thread",
        "NVIDIA L4: tensorrt/fp16, 1 thread, never compared",
    )
    assert table.rows["cascade, p50"] == ("10", "1234")
    assert table.rows["cascade, p99"] == ("15", "15")
    assert table.rows["locate, p50"] == ("0.0456", "0.0456")
    assert table.rows["FG alone, batch 4, images/s"] == ("400", "400")
    assert table.rows["photographs/s, 4 callers"] == ("346", "346")
    assert table.rows["photographs that ran FULL, %"] == ("25", "25")
    assert table.rows["accuracy against the reference, points"] == ("0", "-0.25")
    assert table.rows["J a photograph, GPU"] == ("", "0.5")
    assert "J a photograph, processor" not in table.rows
    assert table.rows["peak memory, MB"] == ("123", "123")
    assert table.hosts == {"processor": ("Cortex", "Xeon"), "gpu name": ("", "NVIDIA L4")}
    lines = table.markdown().splitlines()
    assert lines[0] == "Profiles of birds abc; milliseconds, unless said otherwise."
    assert "| cascade, p50 | 10 | 1234 |" in lines
    assert "| processor | Cortex | Xeon |" in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {4}


def test_of_one_device_and_deployment_the_newest_counts(store: Store, tmp_path: Path) -> None:
    keep(store, tmp_path, bundle="fish", peak_memory_mb=1.0)
    newest = keep(store, tmp_path, bundle="fish", peak_memory_mb=2.0)
    others = [keep(store, tmp_path, bundle="fish", **change) for change in ({"precision": "int8"}, {"threads": 2})]
    with pytest.raises(RuntimeError), store.run(PROFILES, "broken", {"kind": "profile", "bundle": "fish"}):
        raise RuntimeError
    assert sorted(profile_runs(store, "fish")) == sorted([newest, *others])
    assert len(profile_runs(store, "birds")) < 3


def test_a_profile_of_the_first_schema_lies_beside_newer_ones(store: Store, tmp_path: Path) -> None:
    newer = {"device", "precision", "certified", "parity", "callers", "photographs_per_s_together"}
    old = {name: value for name, value in make_profile().items() if name not in newer}
    with store.run(PROFILES, "old", {"kind": "profile", "bundle": "birds"}) as run:
        (tmp_path / PROFILE).write_text(json.dumps(old))
        run.file(tmp_path / PROFILE)
    table = compare_profiles(store, [run.id])
    assert table.columns == ("Cortex: onnxruntime/fp32, 1 thread",)
    assert table.rows["cascade, p50"] == ("10",)


def test_a_run_that_is_no_profile(store: Store) -> None:
    with store.run("else", "a run", {"kind": "classifier"}) as run:
        pass
    with pytest.raises(ArtifactError, match=r"is no profile; expected a run of l2r2 profile"):
        compare_profiles(store, [run.id])
    with pytest.raises(InputError, match="there is no run 'nonsense'"):
        compare_profiles(store, ["nonsense"])


def test_nothing_to_compare(store: Store) -> None:
    with pytest.raises(InputError, match="no profile to compare"):
        compare_profiles(store, [])
    with pytest.raises(InputError, match=r"has no profile of 'dogs'; make one: l2r2 profile BUNDLE"):
        profile_runs(store, "dogs")
    assert profile_runs(store, "dogs", required=False) == []


def test_the_command_lays_profiles_side_by_side(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = [keep(store, tmp_path, bundle="owls", precision=precision) for precision in ("fp32", "int8")]
    words = ["compare", "--tracking-uri", store.uri]
    expected = compare_profiles(store, runs).markdown()
    assert CliRunner().invoke(build(), [*words, *runs], catch_exceptions=False).stdout.strip() == expected.strip()
    told = json.loads(CliRunner().invoke(build(), [*words, "--profiles", "owls", "--json"]).stdout)
    assert len(told["columns"]) == 2
    for wrong, message in (
        ([runs[0], "--profiles", "owls"], r"^give either runs or --profiles BUNDLE$"),
        ([], r"^0 runs to compare; expected two experiments, or profiles of l2r2 profile$"),
    ):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(build(), [*words, *wrong], catch_exceptions=False)
