"""A profile of a tiny bundle: what is in it, what it is kept as, and how it comes back from elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from l2r2.bundle import Bundle
from l2r2.cli import build
from l2r2.errors import ArtifactError, ConfigError, InputError
from l2r2.experiments.compare import compare_profiles, profile_runs
from l2r2.images import Photograph
from l2r2.machine import available_cores
from l2r2.manifest import Deployment, PolicyManifest
from l2r2.tracking import Store
from l2r2.types import Stage
from l2r2_export import host
from l2r2_export.host import Energy, device_name, facts, peak_memory_mb
from l2r2_export.profiling import Profile, as_json, as_metrics, profile_bundle, read_profiles
from tests.tiny import GREEN, MUDDY, RED, encode, make_photo, make_tiny_bundle, make_uniform

OF_SCHEMA_1 = {
    *("bundle", "bundle_version", "runtime", "threads", "taken", "host", "steps", "always_both", "cascade", "models"),
    *("photographs_per_s", "escalated", "cost_ms", "joules_per_photograph", "peak_memory_mb"),
}
"""The fields that a profile had at first."""

CHANGE = {"accuracy_change": -0.004, "answer_agreement": 0.99}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    policy = PolicyManifest(temperatures=dict.fromkeys(Stage, (1.0,)), operator="R", threshold=0.8)
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", policy=policy)


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    return [encode(make_photo(colour), "JPEG") for colour in (RED, GREEN, MUDDY, RED, GREEN)]


@pytest.fixture(scope="module")
def found(bundle: Bundle, photographs: list[bytes]) -> Profile:
    return profile_bundle(bundle, photographs, batches=(1, 3), warmups=2)


def with_openvino(bundle: Bundle, decisions: dict[str, float]) -> Bundle:
    """The bundle with a deployment of its own for OpenVINO, as if it had been compared with those figures."""
    models = bundle.manifest.reference.models
    added = Deployment(runtime="openvino", precision="fp32", models=models, threads=2, decisions=decisions)
    deployments = (*bundle.manifest.deployments, added)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"deployments": deployments}))


def test_every_step_is_timed_on_every_photograph_warm_ups_apart(found: Profile) -> None:
    steps = ["decode", "locate", "render FG", "classify FG", "render FULL", "classify FULL", "fuse"]
    assert list(found.steps) == steps
    for timing in found.steps.values():
        assert (timing.n, timing.warmups) == (5, 2)
        assert 0 < timing.p50_ms <= timing.p90_ms <= timing.p99_ms
    assert found.always_both.p50_ms >= sum(found.steps[name].p50_ms for name in ("locate", "classify FG")) * 0.5


def test_the_cascade_runs_by_its_own_gate(found: Profile) -> None:
    assert found.escalated == pytest.approx(1 / 5)  # the muddy one
    assert found.threshold == 0.8


def test_cost_grows_by_fulls_share(found: Profile) -> None:
    full = found.steps["render FULL"].p50_ms + found.steps["classify FULL"].p50_ms
    assert found.cost_ms["1.0"] - found.cost_ms["0.0"] == pytest.approx(full)
    assert found.cost_ms["0.5"] == pytest.approx((found.cost_ms["0.0"] + found.cost_ms["1.0"]) / 2)


def test_cost_by_the_gate_follows_fgs_confidence(bundle: Bundle) -> None:
    """Against the recognizer itself, asked with each gate."""
    some = [encode(make_photo(colour), "JPEG") for colour in (RED, MUDDY)] + [encode(make_uniform(), "JPEG")]
    found = profile_bundle(bundle, some, batches=(1,), warmups=1)
    recognizer = bundle.recognizer()
    assert {point.threshold for point in found.gate} >= {0.0, 0.5, 0.8, 0.99, 1.0}
    for point in found.gate:
        policy = replace(
            recognizer.policy, threshold=point.threshold, operator=type(recognizer.policy.operator)(point.threshold)
        )
        answers = replace(recognizer, policy=policy).recognize([Photograph(p, bundle.manifest.images) for p in some])
        assert point.escalated == pytest.approx(np.mean([Stage.FULL in answer.stages for answer in answers]))
        assert found.cost_ms["0.0"] <= point.expected_ms <= found.cost_ms["1.0"]


def test_each_model_is_timed_alone_at_each_batch(found: Profile) -> None:
    assert [(m.model, m.batch) for m in found.models] == [
        (model, batch) for model in ("localizer", "FG", "FULL") for batch in (1, 3)
    ]
    for m in found.models:
        assert m.images_per_s == pytest.approx(1000 * m.batch / m.batch_ms.p50_ms)


def test_throughput_is_told_for_one_caller_and_for_as_many_as_cores(found: Profile) -> None:
    assert found.callers == available_cores()
    assert found.photographs_per_s_together is not None
    assert found.photographs_per_s_together > 0
    times = found.cascade
    assert 1000 / times.p99_ms * 0.5 < found.photographs_per_s < 1000 / times.p50_ms * 2.5


def test_the_reference_is_certified_and_changes_nothing(found: Profile) -> None:
    assert (found.runtime, found.precision, found.threads) == ("onnxruntime", "fp32", 1)
    assert found.certified
    assert found.accuracy_change == 0
    assert found.name == "onnxruntime/fp32, 1 thread"


def test_what_was_never_compared_is_profiled_and_says_so(bundle: Bundle, photographs: list[bytes]) -> None:
    found = profile_bundle(bundle, photographs, runtime="openvino", batches=(1,), warmups=1, device="a board")
    assert (found.runtime, found.precision, found.certified, found.device) == ("openvino", "fp32", False, "a board")
    assert found.accuracy_change is None


def test_a_deployments_figures_and_threads_are_its_profiles(bundle: Bundle, photographs: list[bytes]) -> None:
    found = profile_bundle(with_openvino(bundle, CHANGE), photographs, runtime="openvino", batches=(1,), warmups=1)
    assert (found.certified, found.threads, found.accuracy_change) == (True, 2, -0.004)
    assert as_metrics(found)["parity/answer_agreement"] == 0.99
    one = profile_bundle(bundle, photographs, runtime="openvino", threads=1, batches=(1,), warmups=1)
    assert one.threads == 1


def test_the_host_is_known(found: Profile) -> None:
    assert {"system", "python", "cores", "usable cores", "version numpy", "version onnxruntime"} <= set(found.host)
    assert set(found.host) == set(facts())
    assert found.peak_memory_mb > 50


def test_peak_memory_is_that_since_it_was_forgotten() -> None:
    host.forget_peak()
    before = peak_memory_mb()
    block = np.ones(200_000_000, np.uint8)
    assert peak_memory_mb() >= before + 190
    del block
    host.forget_peak()
    if Path("/proc/self/clear_refs").exists():
        assert peak_memory_mb() < before + 190


def test_the_device_is_named_after_what_ran() -> None:
    told = {"processor": "Xeon", "usable cores": "2", "gpu name": "NVIDIA L4"}
    assert device_name(told, on_gpu=True) == "NVIDIA L4"
    assert device_name(told, on_gpu=False) == "Xeon, 2 cores"
    assert device_name({**told, "board": "Raspberry Pi 5"}, on_gpu=False) == "Raspberry Pi 5, 2 cores"


def test_energy_counters_may_turn_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "RAPL", tmp_path)
    assert Energy.now().processor_since(Energy.now()) is None
    for number, (counter, turn) in enumerate([(9_000_000, 10_000_000), (1_000_000, 10_000_000)]):
        (tmp_path / f"intel-rapl:{number}").mkdir()
        (tmp_path / f"intel-rapl:{number}" / "energy_uj").write_text(str(counter))
        (tmp_path / f"intel-rapl:{number}" / "max_energy_range_uj").write_text(str(turn))
    before = Energy.now()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000")  # 9 → 10 → 0 → 2: 3 J
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1500000")  # 0.5 J
    assert Energy.now().processor_since(before) == pytest.approx(3.5)


@pytest.mark.skipif(host._nvml() is not None, reason="there is a GPU")
def test_without_a_gpu_nothing_is_said_of_one(found: Profile) -> None:
    assert found.gpu_joules_per_photograph is None
    assert found.gpu_memory_mb is None
    assert not any(name.startswith("gpu ") for name in found.host)


@pytest.mark.gpu
@pytest.mark.skipif(host._nvml() is None, reason="no NVIDIA GPU")
def test_on_a_gpu_its_energy_and_memory_are_read() -> None:
    assert (host.gpu_memory_mb() or 0) > 0
    assert Energy.now().gpu is not None
    assert {"gpu name", "gpu driver_version", "gpu power.limit"} <= set(facts())


def test_a_profile_survives_a_file(found: Profile, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(as_json([found]))
    assert read_profiles(tmp_path / "p.json") == [found]
    (tmp_path / "two.json").write_text(as_json([found, found]))
    assert read_profiles(tmp_path / "two.json") == [found, found]


def test_a_profile_of_the_first_schema_is_read(found: Profile, tmp_path: Path) -> None:
    """As the first version wrote it: without any of what the second added."""
    old = {name: value for name, value in json.loads(as_json([found])).items() if name in OF_SCHEMA_1}
    for timing in (*old["steps"].values(), old["cascade"], old["always_both"], *(m["batch_ms"] for m in old["models"])):
        del timing["warmups"]
    (tmp_path / "p.json").write_text(json.dumps({**old, "schema_version": 1, "host": {"processor": "Z80"}}))
    (read,) = read_profiles(tmp_path / "p.json")
    assert (read.precision, read.certified, read.device) == ("fp32", True, "Z80, ? cores")
    assert read.cascade.p50_ms == found.cascade.p50_ms
    assert (read.layers, read.gate, read.photographs_per_s_together) == ((), (), None)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"3", b"\xff", b'{"schema_version": 3}'])
def test_a_file_that_is_no_profile(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"p\.json (cannot be read|is no profile|has no profile)"):
        read_profiles(tmp_path / "p.json")


def test_too_little_to_measure(bundle: Bundle, photographs: list[bytes]) -> None:
    with pytest.raises(InputError, match="1 photographs to profile with; expected at least 2"):
        profile_bundle(bundle, photographs[:1])
    with pytest.raises(InputError, match="expected positive sizes"):
        profile_bundle(bundle, photographs, batches=(0,))
    with pytest.raises(InputError, match="0 warm-ups; expected at least 1"):
        profile_bundle(bundle, photographs, warmups=0)


@pytest.fixture
def folder(photographs: list[bytes], tmp_path: Path) -> Path:
    for i, data in enumerate(photographs):
        (tmp_path / f"{i}.jpg").write_bytes(data)
    return tmp_path


def test_a_profile_made_elsewhere_is_imported(bundle: Bundle, folder: Path) -> None:
    file, uri = folder / "profile.json", f"sqlite:///{folder / 'mlflow.db'}"
    words = ["profile", str(bundle.folder), "--photos", str(folder), "--batch", "1", "--out", str(file), "--json"]
    shown = CliRunner().invoke(build(), [*words, "--layers", "--device", "edge"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["bundle"] == "tiny"
    assert not (folder / "mlflow.db").exists()
    shown = CliRunner().invoke(build(), ["profile", "import", str(file), "--tracking-uri", uri])
    assert shown.exit_code == 0, shown.output
    store = Store(uri)
    run_id = store.finished("profiles", {"kind": "profile", "bundle": "tiny", "device": "edge"})
    assert run_id is not None
    assert profile_runs(store, "tiny") == [run_id]
    kept = store.metrics_of(run_id)
    (measured,) = read_profiles(file)
    expected = as_metrics(measured)
    assert kept["cascade/p50_ms"] == pytest.approx(expected["cascade/p50_ms"])
    assert len(kept) == len(expected)
    assert read_profiles(store.download(run_id, "profile.json")) == [measured]
    drawn = {path.name for path in store.download(run_id, "figures").iterdir()}
    assert drawn == {"waterfall.png", "gate.png", "front.png"}
    rows = store.download(run_id, "layers.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(len(stage.layers) for stage in measured.layers) > 10


def test_several_are_measured_side_by_side_and_what_cannot_be_says_why(bundle: Bundle, folder: Path) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    words = ["profile", str(bundle.folder), "--photos", str(folder), "--batch", "1", "--tracking-uri", uri]
    shown = CliRunner().invoke(
        build(), [*words, "--runtime", "onnxruntime,openvino,tensorrt", "--precision", "fp32,int8", "--threads", "1"]
    )
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    (first,) = (line for line in lines if line.startswith("onnxruntime/fp32, 1 thread "))
    (other,) = (line for line in lines if line.startswith("openvino/fp32, 1 thread "))
    assert first.count("(1.00×)") == 6
    assert first.split()[-1] == "+0.0"
    assert other.split()[-1] == "?"
    for name in ("onnxruntime/int8", "openvino/int8", "tensorrt/fp32", "tensorrt/int8"):
        assert any(line.startswith(f"{name}: ") and "has no deployment" in line for line in lines), name
    store = Store(uri)
    table = compare_profiles(store, profile_runs(store, "tiny"))
    assert len(table.columns) == 2


def test_where_nothing_can_be_opened(bundle: Bundle, folder: Path) -> None:
    words = ["profile", str(bundle.folder), "--photos", str(folder), "--precision", "int8,bf16"]
    shown = CliRunner().invoke(build(), words)
    assert isinstance(shown.exception, InputError)
    assert str(shown.exception).startswith("nothing could be profiled; …/int8: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runtime", "openvin"], "there is no runtime 'openvin'; did you mean openvino?"),
        (["--precision", "fp32,int4"], "there is no precision 'int4'"),
        (["--threads", "two"], "--threads is 'two'; expected positive numbers"),
        (["--batch", "0"], "--batch is '0'; expected positive numbers"),
    ],
)
def test_options_that_mean_nothing(bundle: Bundle, folder: Path, words: list[str], message: str) -> None:
    shown = CliRunner().invoke(build(), ["profile", str(bundle.folder), "--photos", str(folder), *words])
    assert isinstance(shown.exception, ConfigError)
    assert message in str(shown.exception)


def test_the_text_names_what_was_measured(found: Profile) -> None:
    from l2r2_export.profile_command import as_text

    text = as_text(found)
    for words in ("locate", "always both", "model alone", "here 0.20", "photographs/s", f"{found.callers} callers"):
        assert words in text
    assert "never compared" not in text


def test_photographs_come_from_one_place(bundle: Bundle) -> None:
    shown = CliRunner().invoke(build(), ["profile", str(bundle.folder)])
    assert shown.exit_code == 1
    assert "give either --photos FOLDER or --data DATA_SET" in str(shown.exception)


def test_percentiles_are_those_of_the_times_after_the_warm_ups() -> None:
    from l2r2_export.profiling import _timing

    timing = _timing([100.0, 7.0], list(np.arange(1.0, 102.0)))
    assert (timing.first_ms, timing.p50_ms, timing.p90_ms, timing.p99_ms) == (100, 51, 91, 100)
    assert (timing.n, timing.warmups) == (101, 2)
