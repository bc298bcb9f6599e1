"""A profile of a tiny bundle: what is in it, what it is kept as, and how it comes back from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from l2r2.bundle import Bundle, PolicyManifest
from l2r2.cli import build
from l2r2.errors import ArtifactError, InputError
from l2r2.tracking import Store
from l2r2.types import Stage
from l2r2_export.host import facts, peak_memory_mb
from l2r2_export.profiling import Profile, as_metrics, profile_bundle, read_profile
from tests.tiny import GREEN, MUDDY, RED, encode, make_photo, make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    policy = PolicyManifest(temperatures=dict.fromkeys(Stage, (1.0,)), operator="R", threshold=0.8)
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", policy=policy)


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    return [encode(make_photo(colour), "JPEG") for colour in (RED, GREEN, MUDDY, RED, GREEN)]


@pytest.fixture(scope="module")
def found(bundle: Bundle, photographs: list[bytes]) -> Profile:
    return profile_bundle(bundle, photographs, batches=(1, 3))


def test_every_step_is_timed_on_every_photograph_but_the_first(found: Profile) -> None:
    steps = ["decode", "locate", "render FG", "classify FG", "render FULL", "classify FULL", "fuse"]
    assert list(found.steps) == steps
    for timing in found.steps.values():
        assert timing.n == 4
        assert 0 < timing.p50_ms <= timing.p90_ms <= timing.p99_ms
    assert found.always_both.p50_ms >= sum(found.steps[name].p50_ms for name in ("locate", "classify FG")) * 0.5


def test_the_cascade_runs_by_its_own_gate(found: Profile) -> None:
    assert found.escalated == pytest.approx(1 / 5)  # the muddy one


def test_cost_grows_by_fulls_share(found: Profile) -> None:
    full = found.steps["render FULL"].p50_ms + found.steps["classify FULL"].p50_ms
    assert found.cost_ms["1.0"] - found.cost_ms["0.0"] == pytest.approx(full)
    assert found.cost_ms["0.5"] == pytest.approx((found.cost_ms["0.0"] + found.cost_ms["1.0"]) / 2)


def test_each_model_is_timed_alone_at_each_batch(found: Profile) -> None:
    assert [(m.model, m.batch) for m in found.models] == [
        (model, batch) for model in ("localizer", "FG", "FULL") for batch in (1, 3)
    ]
    for m in found.models:
        assert m.images_per_s == pytest.approx(1000 * m.batch / m.batch_ms.p50_ms)


def test_the_host_is_known(found: Profile) -> None:
    assert {"system", "python", "cores", "version numpy"} <= set(found.host) == set(facts())
    assert 50 < found.peak_memory_mb <= peak_memory_mb()


def test_a_profile_survives_a_file(found: Profile, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(found.model_dump_json())
    assert read_profile(tmp_path / "p.json") == found


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"schema_version": 2}'])
def test_a_file_that_is_no_profile(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"p\.json (cannot be read|is no profile)"):
        read_profile(tmp_path / "p.json")


def test_too_little_to_measure(bundle: Bundle, photographs: list[bytes]) -> None:
    with pytest.raises(InputError, match="1 photographs to profile with; expected at least 2"):
        profile_bundle(bundle, photographs[:1])
    with pytest.raises(InputError, match="expected positive sizes"):
        profile_bundle(bundle, photographs, batches=(0,))


def test_a_profile_made_elsewhere_is_imported(
    bundle: Bundle, photographs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, data in enumerate(photographs):
        (tmp_path / f"{i}.jpg").write_bytes(data)
    file, uri = tmp_path / "profile.json", f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = ["profile", str(bundle.folder), "--photos", str(tmp_path), "--batch", "1", "--out", str(file), "--json"]
    shown = CliRunner().invoke(build(), words)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["bundle"] == "tiny"
    assert not (tmp_path / "mlflow.db").exists()
    shown = CliRunner().invoke(build(), ["profile", "import", str(file), "--tracking-uri", uri])
    assert shown.exit_code == 0, shown.output
    store = Store(uri)
    run_id = store.finished("profiles", {"kind": "profile", "bundle": "tiny"})
    assert run_id is not None
    kept = store.metrics_of(run_id)
    expected = as_metrics(read_profile(file))
    assert kept["cascade/p50_ms"] == pytest.approx(expected["cascade/p50_ms"])
    assert len(kept) == len(expected)
    assert read_profile(store.download(run_id, "profile.json")) == read_profile(file)


def test_the_text_names_what_was_measured(found: Profile) -> None:
    from l2r2_export.profile_command import as_text

    text = as_text(found)
    for words in ("locate", "always both", "model alone", "here 0.20", "photographs/s"):
        assert words in text


def test_photographs_come_from_one_place(bundle: Bundle) -> None:
    shown = CliRunner().invoke(build(), ["profile", str(bundle.folder)])
    assert shown.exit_code == 1
    assert "give either --photos FOLDER or --data DATA_SET" in str(shown.exception)


def test_percentiles_are_those_of_the_times_after_the_first() -> None:
    from l2r2_export.profiling import _timing

    times = [100.0, *np.arange(1.0, 102.0)]
    timing = _timing(times)
    assert (timing.first_ms, timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.n) == (100, 51, 91, 100, 101)
