"""Detectors, SAM and networks of any size as models of the KServe v2 protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from l2r2.config import DetectorSettings, SaliencySettings
from l2r2.localization.frozen import FrozenDetector, freeze_prompt
from l2r2.localization.opening import open_localizer
from l2r2.localization.preprocessing import Preprocessing
from l2r2.manifest import Deployment, Model
from l2r2.runtimes import RuntimeSession, ShapeRange, open_session
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.inference import grpc_predict_v2_pb2 as pb
from l2r2_serving.kserve_models import models_of
from l2r2_serving.limits import MAX_BATCH
from tests.serving.kserving import RNG, array_of, asking, described, serving
from tests.serving.statuses import fields, refused
from tests.tiny import save_localizer

DIGESTS = {"localizer": "0" * 64, "encoder": "1" * 64, "decoder": "2" * 64}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    given: Mapping[str, list[Any]],
    wanted: Mapping[str, list[Any]],
    **w: Any,
) -> RuntimeSession:
    def tell(shapes: Mapping[str, list[Any]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    weights = [numpy_helper.from_array(np.asarray(values), name) for name, values in w.items()]
    graph = helper.make_graph(list(nodes), path.stem, tell(given), tell(wanted), weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return open_session(path)


@pytest.fixture(scope="module")
def detecting(opened: OpenBundle, tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    """A bundle whose localizer is a detector of photographs of any size, with SAM."""
    folder = tmp_path_factory.mktemp("detecting")
    node = helper.make_node
    sessions = {
        "localizer": save(
            folder / "localizer.onnx",
            [
                node("Conv", ["pixels", "patch"], ["patches"], kernel_shape=[16, 16], strides=[16, 16]),
                node("GlobalAveragePool", ["patches"], ["pooled"]),
                node("Flatten", ["pooled"], ["scores"]),
                node("MatMul", ["scores", "weight"], ["flat"]),
                node("Reshape", ["flat", "shape"], ["boxes"]),
            ],
            {"pixels": ["n", 3, "h", "w"]},
            {"scores": ["n", 5], "boxes": ["n", 5, 4]},
            patch=np.full((5, 3, 16, 16), 1 / 768, np.float32),
            weight=np.ones((5, 20), np.float32),
            shape=np.array([-1, 5, 4]),
        ),
        "encoder": save(
            folder / "encoder.onnx",
            [node("AveragePool", ["pixels"], ["embedding"], kernel_shape=[8, 8], strides=[8, 8])],
            {"pixels": ["n", 3, 64, 64]},
            {"embedding": ["n", 3, 8, 8]},
        ),
        "decoder": save(
            folder / "decoder.onnx",
            [
                node("ReduceMean", ["embedding"], ["mean"], axes=[1], keepdims=1),
                node("Unsqueeze", ["boxes", "axes"], ["wide"]),
                node("ReduceSum", ["wide", "last"], ["sum"], keepdims=1),
                node("Add", ["mean", "sum"], ["masks"]),
            ],
            {"embedding": ["n", 3, 8, 8], "boxes": ["n", 4]},
            {"masks": ["n", 1, 8, 8]},
            axes=np.array([2, 3]),
            last=np.array([1]),
        ),
    }
    settings = DetectorSettings(
        name="grounding_dino", model="m", texts=("dog",), segmenter={"model": "vit_b", "checkpoint": "sam.pth"}
    )
    frozen = FrozenDetector(
        settings=settings,
        prompt=freeze_prompt(["dog"], "m"),
        preprocessing=Preprocessing(fit="keep", size_px=(64, 96), **PLAIN),
        segmenter=Preprocessing(fit="corner", size_px=(64, 64), rescale=1.0, **PLAIN),
    )
    localizer = open_localizer(frozen, sessions, DIGESTS, masks=True)
    return replace(
        opened,
        name="dogs",
        recognizer=replace(opened.recognizer, localizer=localizer),
        manifest=opened.manifest.model_copy(update={"localizer": frozen}),
    )


def test_a_detector_and_sam_have_a_model_each(detecting: OpenBundle) -> None:
    with serving(detecting) as place:
        told = {
            stage: place.ask("ModelMetadata", pb.ModelMetadataRequest(name=f"dogs.{stage}"))
            for stage in ("localizer", "encoder", "decoder", "FG", "FULL")
        }
        assert described(told["localizer"].inputs) == [("pixels", "FP32", [-1, 3, -1, -1])]
        assert described(told["localizer"].outputs) == [("scores", "FP32", [-1, 5]), ("boxes", "FP32", [-1, 5, 4])]
        assert described(told["encoder"].outputs) == [("embedding", "FP32", [-1, 3, 8, 8])]
        assert described(told["decoder"].inputs) == [("embedding", "FP32", [-1, 3, 8, 8]), ("boxes", "FP32", [-1, 4])]
        assert described(told["decoder"].outputs) == [("masks", "FP32", [-1, 1, 8, 8])]


def test_outputs_come_in_the_order_asked_for_and_free_axes_are_bounded(detecting: OpenBundle) -> None:
    pixels = RNG.uniform(size=(2, 3, 64, 80)).astype(np.float32)
    with serving(detecting) as place:
        request = asking(pixels, "dogs.localizer", "pixels")
        for name in ("boxes", "scores"):
            request.outputs.add(name=name)
        response = place.infer(request)
        assert [each.name for each in response.outputs] == ["boxes", "scores"]
        scores = pixels.mean(axis=(1, 2, 3))  # the model above: every patch counts alike
        np.testing.assert_allclose(array_of(response, 1), np.repeat(scores[:, None], 5, axis=1), rtol=1e-5)
        np.testing.assert_allclose(array_of(response, 0), np.tile(5 * scores[:, None, None], (1, 5, 4)), rtol=1e-5)
        code, status = refused(
            lambda: place.infer(asking(np.zeros((1, 3, 64, 97), np.float32), "dogs.localizer", "pixels"))
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert status.message == "inputs[0].shape is [1, 3, 64, 97]; pixels is [1 to 64, 3, 1 to 96, 1 to 96]"


def test_a_size_that_the_network_cannot_take_is_the_callers_mistake(
    detecting: OpenBundle, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(detecting) as place:  # smaller than a patch
        code, status = refused(
            lambda: place.infer(asking(np.zeros((1, 3, 8, 8), np.float32), "dogs.localizer", "pixels"))
        )
    assert (code, fields(status)) == (grpc.StatusCode.INVALID_ARGUMENT, ["inputs"])
    assert status.message.startswith("dogs.localizer cannot run on pixels [1, 3, 8, 8]; expected what it sees of")
    assert "ONNX Runtime failed" in caplog.text


def test_inputs_of_different_batches_are_refused(detecting: OpenBundle) -> None:
    embedding, boxes = np.ones((2, 3, 8, 8), np.float32), np.ones((3, 4), np.float32)
    request = pb.ModelInferRequest(model_name="dogs.decoder")
    for name, array in (("boxes", boxes), ("embedding", embedding)):  # in any order
        request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    with serving(detecting) as place:
        code, status = refused(lambda: place.infer(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert (
            status.message == "inputs differ along the first axis: boxes 3, embedding 2; expected the same batch in all"
        )
        request.inputs[0].shape[0] = 2
        request.raw_input_contents[0] = boxes[:2].tobytes()
        np.testing.assert_allclose(array_of(place.infer(request)), np.full((2, 1, 8, 8), 5.0))


def test_saliency_of_any_size_is_bounded_by_its_square(opened: OpenBundle, tmp_path: Path) -> None:
    session = open_session(save_localizer(tmp_path / "free.onnx", None))
    settings = SaliencySettings(size_px=256)
    localizer = open_localizer(settings, {"localizer": session}, DIGESTS, masks=False)
    changed = replace(
        opened,
        recognizer=replace(opened.recognizer, localizer=localizer),
        manifest=opened.manifest.model_copy(update={"localizer": settings}),
    )
    (model, *_) = models_of(changed)
    assert [model.bounds(model.inputs[0], axis) for axis in range(4)] == [(1, MAX_BATCH), (3, 3), (1, 256), (1, 256)]
    assert [tensor.shape for tensor in model.measure()] == [(-1, 1, -1, -1)]


@pytest.mark.parametrize(("runtime", "most"), [("tensorrt", 8), ("openvino", MAX_BATCH)])
def test_an_engine_takes_no_more_than_it_was_built_for(opened: OpenBundle, runtime: str, most: int) -> None:
    shapes = {"view": ShapeRange(*((n, 3, 32, 32) for n in (1, 1, 8)))}
    built = Deployment(runtime=runtime, precision="fp32", models={"FG": Model(file="models/fg", shapes=shapes)})
    manifest = opened.manifest.model_copy(update={"deployments": (built,)})
    (fg,) = [
        each for each in models_of(replace(opened, manifest=manifest, deployment=built.name)) if each.stage == "FG"
    ]
    assert fg.bounds(fg.inputs[0], 0) == (1, most)
