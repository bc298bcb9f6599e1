"""The stages as models of the KServe v2 protocol: on a real server, over gRPC's generic calls and the stubs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from l2r2 import __version__
from l2r2.classification import SessionClassifier
from l2r2.errors import BackendError
from l2r2.runtimes import RuntimeSession
from l2r2.types import Stage
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.inference import grpc_predict_v2_pb2 as pb
from l2r2_serving.inference import grpc_predict_v2_pb2_grpc
from l2r2_serving.kserve import SERVICE
from l2r2_serving.kserve_models import models_of
from l2r2_serving.limits import MAX_BATCH
from tests.serving.kserving import RNG, VIEWS, Place, array_of, asking, described, serving
from tests.serving.running import PATIENCE_S, eventually
from tests.serving.statuses import fields, reason, refused


@pytest.fixture(scope="module")
def place(opened: OpenBundle) -> Iterator[Place]:
    with serving(opened) as here:
        yield here


# --- what is served ---------------------------------------------------------------------------------------------------


def test_the_server_is_live_ready_and_named(place: Place) -> None:
    assert place.ask("ServerLive", pb.ServerLiveRequest()).live
    assert place.ask("ServerReady", pb.ServerReadyRequest()).ready
    said = place.ask("ServerMetadata", pb.ServerMetadataRequest())
    assert (said.name, said.version, list(said.extensions)) == ("l2r2", __version__, [])


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("tiny.FG", "", True),
        ("tiny.FULL", "", True),
        ("tiny.localizer", "", True),
        ("tiny.FG", "served", True),
        ("tiny.FG", "1", False),
        ("tiny.BG", "", False),
        ("tiny", "", False),
        ("other.FG", "", False),
        ("", "", False),
    ],
)
def test_ready_is_what_is_served_and_nothing_else(
    place: Place, opened: OpenBundle, name: str, version: str, ready: bool
) -> None:
    version = version.replace("served", opened.version)
    assert place.ask("ModelReady", pb.ModelReadyRequest(name=name, version=version)).ready is ready


def test_metadata_is_that_of_the_stages_own_session(place: Place, opened: OpenBundle) -> None:
    said = place.ask("ModelMetadata", pb.ModelMetadataRequest(name="tiny.FG"))
    assert (said.name, list(said.versions), said.platform) == ("tiny.FG", [opened.version], "onnxruntime/fp32")
    assert described(said.inputs) == [("view", "FP32", [-1, 3, 32, 32])]
    assert described(said.outputs) == [("logits", "FP32", [-1, 3])]
    for _ in range(2):  # the second time from memory
        said = place.ask("ModelMetadata", pb.ModelMetadataRequest(name="tiny.localizer", version=opened.version))
        assert described(said.inputs) == [("photo", "FP32", [-1, 3, 256, 256])]
        assert described(said.outputs) == [("saliency", "FP32", [-1, 1, 256, 256])]


def test_before_a_bundle_is_served_nothing_is_ready() -> None:
    with serving() as place:
        assert place.ask("ServerLive", pb.ServerLiveRequest()).live
        assert not place.ask("ServerReady", pb.ServerReadyRequest()).ready
        assert not place.ask("ModelReady", pb.ModelReadyRequest(name="tiny.FG")).ready
        code, status = refused(lambda: place.infer(asking()))
        assert (code, reason(status)) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_READY")
        code, _ = refused(lambda: place.ask("ModelMetadata", pb.ModelMetadataRequest(name="tiny.FG")))
        assert code is grpc.StatusCode.FAILED_PRECONDITION


def test_bundles_stand_side_by_side_and_a_new_version_takes_the_place_of_the_old(opened: OpenBundle) -> None:
    other = replace(opened, name="or.chard")  # a name may have points of its own
    with serving(opened, other) as place:
        assert place.infer(asking(model="or.chard.FG")).model_name == "or.chard.FG"
        code, status = refused(lambda: place.infer(asking(model="nothing.FG")))
        assert (code, reason(status)) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_BUNDLE")
        assert status.message == (
            "no model 'nothing.FG' is served; expected one of: or.chard.localizer, or.chard.FG, or.chard.FULL, "
            "tiny.localizer, tiny.FG, tiny.FULL"
        )
        place.shelf.put(replace(opened, version="newer"))
        assert place.infer(asking()).model_version == "newer"
        code, status = refused(lambda: place.infer(asking(model_version=opened.version)))
        assert code is grpc.StatusCode.NOT_FOUND
        assert status.message == f"tiny.FG is not served in version '{opened.version}'; expected newer or none"


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("stage", list(Stage))
def test_logits_are_the_classifiers_own(place: Place, opened: OpenBundle, stage: Stage, raw: bool) -> None:
    response = place.infer(asking(model=f"tiny.{stage}", raw=raw, id="mine", model_version=opened.version))
    assert (response.model_name, response.model_version, response.id) == (f"tiny.{stage}", opened.version, "mine")
    assert described(response.outputs) == [("logits", "FP32", [3, 3])]
    assert bool(response.raw_output_contents) is raw
    np.testing.assert_array_equal(array_of(response), opened.recognizer.classifiers[stage].logits(VIEWS))
    gain = {Stage.FG: 2.0, Stage.FULL: 12.0}[stage]  # tests.tiny: gain × mean of each channel
    np.testing.assert_allclose(array_of(response), gain * VIEWS.mean(axis=(2, 3)), atol=1e-5)


def test_a_batch_is_as_one_by_one(place: Place) -> None:
    together = array_of(place.infer(asking(VIEWS)))
    alone = [array_of(place.infer(asking(VIEWS[i : i + 1])))[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_localizers_map_is_its_own(place: Place) -> None:
    photo = RNG.uniform(-2, 2, (1, 3, 256, 256)).astype(np.float32)
    response = place.infer(asking(photo, "tiny.localizer", "photo"))
    brightest = photo * np.reshape([0.229, 0.224, 0.225], (1, 3, 1, 1)) + np.reshape(
        [0.485, 0.456, 0.406], (1, 3, 1, 1)
    )
    expected = 1 / (1 + np.exp(-20 * (brightest.max(axis=1, keepdims=True) - 0.5)))  # tests.tiny
    np.testing.assert_allclose(array_of(response), expected, atol=1e-5)


def test_outputs_that_are_asked_for_by_name(place: Place) -> None:
    request = asking()
    request.outputs.add(name="logits")
    assert [each.name for each in place.infer(request).outputs] == ["logits"]


def test_as_many_as_a_batch_may_have(place: Place) -> None:
    assert list(place.infer(asking(np.zeros((MAX_BATCH, 3, 32, 32), np.float32))).outputs[0].shape) == [MAX_BATCH, 3]


def test_parameters_of_a_request_change_nothing(place: Place) -> None:
    request = asking()
    request.parameters["priority"].int64_param = 3
    np.testing.assert_array_equal(array_of(place.infer(request)), array_of(place.infer(asking())))


Change = Callable[[pb.ModelInferRequest], Any]


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (lambda r: r.ClearField("inputs"), "raw_input_contents", "has 1 tensors; expected one for each of 0 inputs"),
        (
            lambda r: (r.ClearField("inputs"), r.ClearField("raw_input_contents")),
            "inputs",
            "lack view; tiny.FG takes view",
        ),
        (lambda r: setattr(r.inputs[0], "name", "photo"), "inputs[0].name", "is 'photo'; tiny.FG takes view"),
        (
            lambda r: (r.inputs.add().CopyFrom(r.inputs[0]), r.raw_input_contents.append(r.raw_input_contents[0])),
            "inputs[1].name",
            "is 'view' a second time; expected each input once",
        ),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "inputs[0].datatype", "is 'FP16'; view is FP32"),
        (lambda r: setattr(r.inputs[0], "datatype", ""), "inputs[0].datatype", "is ''; view is FP32"),
        (
            lambda r: r.inputs[0].shape.__setitem__(2, 31),
            "inputs[0].shape",
            "is [3, 3, 31, 32]; view is [1 to 64, 3, 32, 32]",
        ),
        (lambda r: r.inputs[0].shape.pop(), "inputs[0].shape", "is [3, 3, 32]; view is [1 to 64, 3, 32, 32]"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 0), "inputs[0].shape", "is [0, 3, 32, 32]; view is [1 to 64, 3, "),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "inputs[0].shape", "is [-1, 3, 32, 32]; view is [1 to 64"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 2**62), "inputs[0].shape", "view is [1 to 64, 3, 32, 32]"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 65), "inputs[0].shape", "is [65, 3, 32, 32]; view is [1 to 64"),
        (
            lambda r: r.raw_input_contents.__setitem__(0, b"\0" * 36863),
            "raw_input_contents[0]",
            "has 36863 bytes; expected 36864 for view, FP32 [3, 3, 32, 32]",
        ),
        (
            lambda r: r.inputs[0].contents.fp32_contents.append(1),
            "inputs[0].contents",
            "is there beside raw_input_contents; expected one of them",
        ),
        (
            lambda r: (r.ClearField("raw_input_contents"), r.inputs[0].contents.int_contents.append(1)),
            "inputs[0].contents",
            "has int_contents; expected fp32_contents for FP32",
        ),
        (
            lambda r: (r.ClearField("raw_input_contents"), r.inputs[0].contents.fp32_contents.append(1)),
            "inputs[0].contents",
            "has 1 fp32_contents; expected 9216 for view [3, 3, 32, 32], or raw_input_contents",
        ),
        (lambda r: r.ClearField("raw_input_contents"), "inputs[0].contents", "has 0 fp32_contents; expected 9216 for"),
        (
            lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "/x"),
            "inputs[0].parameters",
            "has shared_memory_region; expected none, shared memory neither",
        ),
        (lambda r: r.outputs.add(name="probs"), "outputs[0].name", "is 'probs'; tiny.FG gives logits"),
        (
            lambda r: (r.outputs.add(name="logits"), r.outputs.add(name="logits")),
            "outputs[1].name",
            "is 'logits' a second time; expected each output once",
        ),
        (
            lambda r: setattr(r.outputs.add(name="logits").parameters["classification"], "int64_param", 3),
            "outputs[0].parameters",
            "has classification; expected none",
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_what_was_expected(
    place: Place, change: Change, where: str, message: str
) -> None:
    request = asking()
    change(request)
    code, status = refused(lambda: place.infer(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(status) == [where]
    assert status.message.startswith(f"{where} ")
    assert message in status.message


# --- workers, slots, deadlines ----------------------------------------------------------------------------------------


class Gated:
    """A session that runs only while its gate is open."""

    def __init__(self, inner: RuntimeSession) -> None:
        self.inner, self.inputs, self.outputs = inner, inner.inputs, inner.outputs
        self.gate = threading.Event()
        self.ran = 0

    def infer(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.ran += 1
        assert self.gate.wait(PATIENCE_S)
        return self.inner.infer(feed)


class Broken(Gated):
    """Fails, and says what nobody may hear."""

    def infer(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        raise BackendError("secret: /srv/models/fg.onnx")


def with_fg(opened: OpenBundle, kind: Callable[[Any], Any]) -> tuple[OpenBundle, Any]:
    """The bundle with another session for FG."""
    session = kind(opened.recognizer.classifiers[Stage.FG].session)
    classifiers = {**opened.recognizer.classifiers, Stage.FG: SessionClassifier(session, "view", 3)}
    return replace(opened, recognizer=replace(opened.recognizer, classifiers=classifiers)), session


def test_beyond_its_slots_a_server_refuses_at_once(opened: OpenBundle) -> None:
    held, session = with_fg(opened, Gated)
    with serving(held, workers=1, slots=2) as place:
        stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(place.channel)
        calls = [stub.ModelInfer.future(asking()) for _ in range(2)]
        eventually(lambda: place.slots.taken == 2)
        for method, request in (("ModelInfer", asking()), ("ModelMetadata", pb.ModelMetadataRequest(name="tiny.FULL"))):
            code, status = refused(lambda method=method, request=request: place.ask(method, request))
            assert (code, reason(status)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        session.gate.set()
        for call in calls:
            assert len(array_of(call.result())) == 3
        eventually(lambda: place.slots.taken == 0)
        codes = sorted(call.code for call in place.calls)
        assert codes == ["OK", "OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]
        assert {call.method for call in place.calls} == {f"{SERVICE}/ModelInfer", f"{SERVICE}/ModelMetadata"}


def test_whoever_has_left_is_not_worked_for(opened: OpenBundle) -> None:
    held, session = with_fg(opened, Gated)
    with serving(held, workers=1) as place:
        stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(place.channel)
        first = stub.ModelInfer.future(asking())
        eventually(lambda: session.ran == 1)
        waiting = stub.ModelInfer.future(asking())
        eventually(lambda: place.slots.taken == 2)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(asking(), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        waiting.cancel()
        eventually(lambda: place.slots.taken == 1)
        session.gate.set()
        assert len(array_of(first.result())) == 3
        assert len(array_of(place.infer(asking()))) == 3
        assert session.ran == 2


def test_a_failure_is_ours_and_keeps_its_reason(opened: OpenBundle, caplog: pytest.LogCaptureFixture) -> None:
    broken, _ = with_fg(opened, Broken)
    with serving(broken) as place:
        code, status = refused(lambda: place.infer(asking()))
        assert code is grpc.StatusCode.INTERNAL
        assert "secret" not in status.message
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert len(array_of(place.infer(asking(model="tiny.FULL")))) == 3


def test_a_callers_request_id_comes_back(place: Place) -> None:
    call = place.channel.unary_unary(
        f"/{SERVICE}/ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    )
    _, done = call.with_call(asking(), metadata=(("x-request-id", "abc"),), timeout=PATIENCE_S)
    assert ("x-request-id", "abc") in [(each.key, each.value) for each in done.trailing_metadata()]


def test_a_bundle_whose_stages_have_no_sessions_has_no_models(opened: OpenBundle) -> None:
    class Colour:
        def logits(self, images: np.ndarray) -> np.ndarray:
            return images.mean(axis=(2, 3))

    classifiers = {**opened.recognizer.classifiers, Stage.FG: Colour()}
    changed = replace(opened, recognizer=replace(opened.recognizer, classifiers=classifiers))
    assert [model.name for model in models_of(changed)] == ["tiny.localizer", "tiny.FULL"]
