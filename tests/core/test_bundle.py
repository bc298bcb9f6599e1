import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from l2r2.bundle import describe_policy, load_bundle, read_policy, write_bundle
from l2r2.calibration import Temperature
from l2r2.cascade import Policy, Veto
from l2r2.conformal import PredictionSets
from l2r2.errors import ArtifactError, ConfigError
from l2r2.files import sha256
from l2r2.fusion import (
    Average,
    Evidence,
    FullyConnected,
    MaxConfidence,
    MaxScaledConfidence,
    Threshold,
    WeightedLogits,
)
from l2r2.logspace import log_normalize
from l2r2.manifest import SCHEMA, PolicyManifest
from l2r2.priors import count_priors
from l2r2.types import Stage, make_metadata
from tests.tiny import CLASSES, LABELS, METADATA, MUDDY, make_photo, make_tiny_bundle, make_tiny_manifest, make_uniform

FILES = ["fusion.npz", "models/fg.onnx", "models/full.onnx", "models/localizer.onnx", "priors.parquet"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def folder(pristine, tmp_path):
    """A copy to tamper with."""
    return shutil.copytree(pristine.folder, tmp_path / "tiny")


def edit(folder, change):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def models_of(bundle):
    return {stage: bundle.folder / model.file for stage, model in bundle.manifest.reference.models.items()}


def refused(folder, message):
    with pytest.raises(ArtifactError, match=message):
        load_bundle(folder)


def test_the_manifest_survives(pristine):
    loaded = load_bundle(pristine.folder)
    expected = make_tiny_manifest()
    assert loaded.manifest.model_copy(update={"files": {}, "deployments": ()}) == expected
    assert sorted(loaded.manifest.files) == FILES
    assert loaded.version == pristine.version


def test_the_checksums_are_of_the_files(pristine):
    for name, digest in pristine.manifest.files.items():
        assert sha256(pristine.folder / name) == digest


def test_the_version_changes_with_any_file(pristine, folder):
    edit(folder, lambda values: values.update(created="2026-01-01T00:00:00Z"))
    assert load_bundle(folder).version != pristine.version
    assert len(pristine.version) == 12


def test_it_answers(pristine):
    recognizer = pristine.recognizer()
    sure, unsure, nothing = recognizer.recognize(
        [make_photo(), make_photo(MUDDY), make_uniform()], [make_metadata(habitat="forest"), {}, {}]
    )
    assert recognizer.class_names == CLASSES
    assert (sure.answer.name, sure.stages, sure.unrecognized) == ("red", (Stage.FG,), ())
    assert sure.region is not None
    assert unsure.stages == (Stage.FG, Stage.FULL)
    assert (nothing.region, nothing.stages) == (None, (Stage.FULL,))


def test_the_region_is_where_the_object_is(pristine):
    (answer,) = pristine.recognizer().recognize([make_photo()])
    # The object lies at (52, 36) to (108, 84) of 160 × 120; one cell of the 256 × 256 map is at most 0.625 px.
    np.testing.assert_allclose(answer.region.box_xyxy_px, (52, 36, 108, 84), atol=1.3)


def test_masks_come_with_the_bundle_that_asks_for_them(tmp_path):
    (answer,) = make_tiny_bundle(tmp_path / "masks", localizer_masks=True).recognizer().recognize([make_photo()])
    assert answer.region.mask.shape == (120, 160)


def test_another_runtime_is_refused(pristine):
    expected = r"has no deployment tensorrt/fp32; it has onnxruntime/fp32; add it: l2r2 export \S+ --data DATA_SET "
    with pytest.raises(ConfigError, match=expected + r"--runtime tensorrt --precision fp32$"):
        pristine.recognizer(runtime="tensorrt", uncertified=True)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused_by_name(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, rf"{name} has changed since the bundle was written \(sha256 differs\); refused, copy it again$")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    refused(folder, rf"{name} is missing; the bundle is incomplete, copy it again$")


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_a_checksum_is_refused_by_name(folder, name):
    edit(folder, lambda values: values["files"].pop(name))
    refused(folder, rf"manifest\.json has no checksum for {name}; refused, export the bundle again$")


def test_no_manifest(tmp_path):
    refused(tmp_path, r"is no bundle: manifest\.json cannot be read \(No such file or directory\)$")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xfa", b"[1]", b"3", b""])
def test_a_manifest_that_is_no_json_object(folder, content):
    (folder / "manifest.json").write_bytes(content)
    refused(folder, r"manifest\.json is no manifest: .*; copy the bundle again$")


@pytest.mark.parametrize("schema", [SCHEMA + 1, None, "1"])
def test_another_schema(folder, schema):
    edit(folder, lambda values: values.update(schema_version=schema))
    refused(folder, rf"manifest\.json has schema {schema!r}; this version reads up to {SCHEMA}, upgrade l2r2$")


def test_an_unknown_key_in_the_manifest(folder):
    edit(folder, lambda values: values.update(extra=1))
    refused(folder, r"manifest\.json: extra: Extra inputs are not permitted; export the bundle again$")


def test_a_value_outside_its_range_in_the_manifest(folder):
    edit(folder, lambda values: values["policy"].update(threshold=2))
    refused(
        folder, r"manifest\.json: policy\.threshold: Input should be less than or equal to 1; export the bundle again$"
    )


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "models/../../outside.txt"])
def test_a_path_that_leaves_the_bundle(folder, name):
    (folder.parent / "outside.txt").write_text("x")
    edit(folder, lambda values: values["files"].update({name: "0" * 64}))
    refused(folder, rf"manifest\.json names '{name}', which lies outside the bundle; refused$")


def test_a_link_that_leaves_the_bundle(folder):
    outside = folder.parent / "outside.onnx"
    (folder / "models" / "fg.onnx").replace(outside)
    (folder / "models" / "fg.onnx").symlink_to(outside)
    refused(folder, r"manifest\.json names 'models/fg\.onnx', which lies outside the bundle; refused$")


def test_a_stage_without_its_model(folder):
    edit(folder, lambda values: values["deployments"][0]["models"].pop("FULL"))
    refused(folder, "deployment onnxruntime/fp32 lacks a model for localizer, FG or FULL; export the bundle again$")


def test_a_stage_without_its_view(folder):
    edit(folder, lambda values: values["views"].pop("FULL"))
    refused(folder, r"manifest\.json lacks a view for FG or FULL; export the bundle again$")


def test_a_stage_without_its_temperature(folder):
    edit(folder, lambda values: values["policy"]["temperatures"].pop("FULL"))
    refused(folder, r"manifest\.json lacks a temperature for FG or FULL; export the bundle again$")


def test_there_is_no_pickle_inside(pristine):
    assert sorted(p.suffix for p in pristine.folder.rglob("*") if p.is_file()) == [
        ".json",
        ".npz",
        ".onnx",
        ".onnx",
        ".onnx",
        ".parquet",
    ]
    with np.load(pristine.folder / "fusion.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays)
    assert all(name.endswith(".npy") for name in zipfile.ZipFile(pristine.folder / "fusion.npz").namelist())


RNG = np.random.default_rng(0)
OPERATORS = [
    MaxConfidence(),
    MaxScaledConfidence(),
    Threshold(0.8),
    Average(0.3),
    WeightedLogits(*RNG.normal(size=(2, 3)).astype(np.float32)),
    FullyConnected(
        *(
            part.astype(np.float32)
            for part in (
                RNG.normal(size=6),
                RNG.random(6) + 0.5,
                RNG.normal(size=(6, 4)),
                RNG.normal(size=4),
                RNG.normal(size=(4, 3)),
                RNG.normal(size=3),
            )
        )
    ),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_a_policy_survives_with_every_operator(pristine, tmp_path, operator):
    temperatures = {Stage.FG: (1.5,), Stage.FULL: (0.5, 1.0, 2.0)}
    policy = Policy({stage: Temperature(np.array(values)) for stage, values in temperatures.items()}, operator, 0.8)
    manifest = make_tiny_manifest(
        policy=PolicyManifest(temperatures=temperatures, operator=operator.name, threshold=0.8)
    )
    models = models_of(pristine)
    priors = count_priors(LABELS, METADATA, 3)
    loaded = write_bundle(tmp_path / "b", manifest, models, policy, priors).policy()
    logits = RNG.normal(size=(2, 10, 3)).astype(np.float32)
    prior = RNG.normal(size=(10, 3)).astype(np.float32)
    found = RNG.random(10) < 0.7
    expected, got = (p.decide(*logits, found, prior) for p in (policy, loaded))
    np.testing.assert_array_equal(got.belief, expected.belief)
    np.testing.assert_array_equal(got.skipped_full, expected.skipped_full)


def test_sets_and_veto_survive(pristine, tmp_path):
    policy = replace(pristine.policy(), sets=PredictionSets(0.3, 0.8), veto=Veto(np.array([False, True, False]), 0.2))
    described = describe_policy(policy, pristine.manifest.class_names)
    assert (described.hazardous, described.hazard_mass) == (("green",), 0.2)
    np.savez(tmp_path / "fusion.npz", **policy.operator.parameters())
    again = read_policy(described, tmp_path / "fusion.npz", pristine.manifest.class_names)
    assert again.sets == policy.sets
    assert again.veto.mass == 0.2
    np.testing.assert_array_equal(again.veto.hazardous, policy.veto.hazardous)


def test_a_hazard_that_is_no_class_is_refused(folder):
    edit(folder, lambda values: values["policy"].update(hazardous=["amanita"]))
    with pytest.raises(ArtifactError, match="hazardous class 'amanita' is none of the bundle's classes"):
        load_bundle(folder).policy()


def test_a_bundle_of_the_first_schema_is_read_without_sets_and_veto(folder):
    def older(values):
        values["schema_version"] = 1
        (reference,) = values.pop("deployments")
        values["models"] = {stage: {"onnxruntime": model["file"]} for stage, model in reference["models"].items()}
        del values["serving"]
        for name in ("coverage", "set_threshold", "hazardous", "hazard_mass"):
            del values["policy"][name]
        del values["prior"]["cap"]

    edit(folder, older)
    policy = load_bundle(folder).policy()
    assert (policy.sets, policy.veto) == (None, None)


def test_an_unknown_operator_is_refused(folder):
    edit(folder, lambda values: values["policy"].update(operator="sum"))
    with pytest.raises(
        ArtifactError, match=r"^fusion operator 'sum' is unknown; expected max, smax, R, wavg, WL or FC$"
    ):
        load_bundle(folder).policy()


def test_priors_survive(pristine):
    priors = count_priors(LABELS, METADATA, 3)
    loaded = pristine.recognizer().priors
    metadata = [make_metadata(h, s, m) for h, s, m in zip(*METADATA.values(), strict=True)]
    np.testing.assert_array_equal(loaded.log_prior(metadata), priors.log_prior(metadata))


def test_the_models_are_the_ones_that_were_given(pristine):
    recognizer = pristine.recognizer()
    images = RNG.random((4, 3, 32, 32)).astype(np.float32)
    colour = images.mean(axis=(2, 3))
    for stage, gain in ((Stage.FG, 2.0), (Stage.FULL, 12.0)):
        logits = recognizer.classifiers[stage].logits(images)
        np.testing.assert_allclose(logits, gain * colour, rtol=1e-5)
        Evidence(logits, log_normalize(logits))


def test_a_model_that_is_missing_is_refused(pristine, tmp_path):
    models = {"localizer": models_of(pristine)["localizer"]}
    priors = count_priors(LABELS, METADATA, 3)
    with pytest.raises(ArtifactError, match=r"^no model for FG, FULL; a bundle needs localizer, FG and FULL$"):
        write_bundle(tmp_path / "b", make_tiny_manifest(), models, pristine.policy(), priors)
    assert not (tmp_path / "b").exists()


def test_a_failed_write_leaves_the_old_bundle(pristine, folder):
    models = models_of(pristine)
    models[Stage.FULL] = folder / "models" / "none.onnx"
    with pytest.raises(ArtifactError, match=r"^cannot write "):
        write_bundle(folder, make_tiny_manifest(), models, pristine.policy(), count_priors(LABELS, METADATA, 3))
    assert load_bundle(folder).version == pristine.version
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_a_bundle_is_replaced_whole(folder, pristine):
    models = models_of(pristine)
    priors = count_priors(LABELS, METADATA, 3)
    write_bundle(folder, make_tiny_manifest(name="second"), models, pristine.policy(), priors)
    assert load_bundle(folder).manifest.name == "second"


def test_openvino_reads_the_same_files_and_answers_the_same(pristine):
    pytest.importorskip("openvino")
    photos = [make_photo(), make_uniform(), make_photo(MUDDY)]
    ours = pristine.recognizer().recognize(photos)
    theirs = pristine.recognizer("openvino", uncertified=True).recognize(photos)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.answer.name, one.stages) == (other.answer.name, other.stages)
        assert one.answer.probability == pytest.approx(other.answer.probability, abs=1e-5)
