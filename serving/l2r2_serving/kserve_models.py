"""Stages as models: what each takes and gives, and KServe's tensors ↔ arrays."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from l2r2.config import SaliencySettings
from l2r2.errors import BackendError, InputError
from l2r2.manifest import Deployment
from l2r2.runtimes import RuntimeSession, ShapeRange
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.inference import grpc_predict_v2_pb2 as pb
from l2r2_serving.limits import MAX_BATCH
from l2r2_serving.status import FieldError

FREE: Final = -1
"""An axis of any length. Source: the Open Inference Protocol."""

PROBE_PX = 512
"""The longest that a free axis is tried at: enough for a detector's fixed number of boxes."""

DATATYPES: Final[Mapping[str, tuple[str, str]]] = {
    "float32": ("FP32", "fp32_contents"),
    "float64": ("FP64", "fp64_contents"),
    "int32": ("INT32", "int_contents"),
    "int64": ("INT64", "int64_contents"),
    "bool": ("BOOL", "bool_contents"),
}
"""numpy's name → the protocol's, and the field of typed contents. Source: the Open Inference Protocol."""

FP32, FP32_FIELD = DATATYPES["float32"]
"""All that the project's models take."""

Arrays = Mapping[str, np.ndarray]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output.

    Attributes:
        datatype: The protocol's name.
        shape: The batch first; FREE: any length.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StageModel:
    """One stage of an open bundle. Threads may share it.

    Attributes:
        session: What runs the stage for photographs too.
        longest_px: The most that a free axis may have, the batch aside: what the stage sees of a photograph.
        profile: Input → shapes that its engine was built for; empty: for any.
    """

    opened: OpenBundle
    stage: str
    session: RuntimeSession
    longest_px: int
    profile: Mapping[str, ShapeRange]

    @property
    def name(self) -> str:
        """BUNDLE.STAGE."""
        return f"{self.opened.name}.{self.stage}"

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.name, self.opened.version

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it takes."""
        return tuple(
            Tensor(name, FP32, tuple(axis if isinstance(axis, int) else FREE for axis in shape))
            for name, shape in self.session.inputs.items()
        )

    def bounds(self, tensor: Tensor, axis: int) -> tuple[int, int]:
        """The least and the most that an input may have along an axis."""
        if tensor.shape[axis] != FREE:
            return tensor.shape[axis], tensor.shape[axis]
        least, most = 1, MAX_BATCH if axis == 0 else self.longest_px
        if tensor.name in self.profile:
            built = self.profile[tensor.name]
            least, most = built.min[axis], min(most, built.max[axis])
        return least, most

    def infer(self, feed: Arrays) -> Arrays:
        """Run once.

        Raises:
            FieldError: the network takes no tensors of that size.
            BackendError: the runtime failed.
        """
        try:
            return self.session.infer(feed)
        except BackendError as error:
            if not self._resizable:
                raise
            # Where height and width are free only the runtime knows which of them the network can take.
            _log.warning("%s did not run: %s", self.name, error)
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            reason = InputError(f"{self.name} cannot run on {sizes}; expected what it sees of a photograph")
            raise FieldError("inputs", reason) from error

    def measure(self) -> tuple[Tensor, ...]:
        """What it gives: a runtime does not say, so it is run on zeros, where axes are free in two sizes.

        Raises:
            BackendError: it failed, or gives what has no name in the protocol.
        """
        small = large = self.session.infer(self._zeros(large=False))
        if self._resizable:
            large = self.session.infer(self._zeros(large=True))
        batch_free = any(tensor.shape[0] == FREE for tensor in self.inputs)
        return tuple(
            Tensor(
                name,
                _datatype(array)[0],
                tuple(
                    FREE if (axis == 0 and batch_free) or size != large[name].shape[axis] else size
                    for axis, size in enumerate(array.shape)
                ),
            )
            for name, array in small.items()
        )

    @property
    def _resizable(self) -> bool:
        """Whether an axis is free, the batch aside."""
        return any(FREE in tensor.shape[1:] for tensor in self.inputs)

    def _zeros(self, *, large: bool) -> Arrays:
        return {
            tensor.name: np.zeros([self._probe(tensor, axis, large) for axis in range(len(tensor.shape))], np.float32)
            for tensor in self.inputs
        }

    def _probe(self, tensor: Tensor, axis: int, large: bool) -> int:
        least, most = self.bounds(tensor, axis)
        if axis == 0:
            return least
        most = max(least, min(most, PROBE_PX))
        return most if large else max(least, most // 2) if tensor.shape[axis] == FREE else least


def models_of(opened: OpenBundle) -> Iterator[StageModel]:
    """The stages of a bundle that run on sessions of their own: the localizer's first."""
    recognizer, manifest = opened.recognizer, opened.manifest
    sessions = dict(getattr(recognizer.localizer, "sessions", {}))
    sessions |= {str(stage): getattr(each, "session", None) for stage, each in recognizer.classifiers.items()}
    deployment = next((each for each in manifest.deployments if each.name == opened.deployment), None)
    for stage, session in sessions.items():
        if hasattr(session, "inputs"):
            longest_px = _longest_px(opened, stage, deployment)
            yield StageModel(opened, stage, session, longest_px, _profile(deployment, stage))


def read_feed(model: StageModel, request: pb.ModelInferRequest) -> Arrays:
    """A request's tensors, checked.

    Raises:
        FieldError: one is missing, unknown, there twice, or of another type, shape or length.
    """
    known = {tensor.name: tensor for tensor in model.inputs}
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise _wrong(
            "raw_input_contents", f"has {len(raw)} tensors; expected one for each of {len(request.inputs)} inputs"
        )
    feed: dict[str, np.ndarray] = {}
    for place, given in enumerate(request.inputs):
        field = f"inputs[{place}]"
        tensor = known.get(given.name)
        if tensor is None:
            raise _wrong(f"{field}.name", f"is {given.name[:80]!r}; {model.name} takes {', '.join(known)}")
        if given.name in feed:
            raise _wrong(f"{field}.name", f"is {given.name!r} a second time; expected each input once")
        if given.parameters:
            raise _wrong(f"{field}.parameters", f"has {_names(given.parameters)}; expected none, shared memory neither")
        shape = _shape(model, tensor, given, field)
        feed[given.name] = _raw(raw[place], shape, given, place) if raw else _typed(given, shape, field)
    if missing := [name for name in known if name not in feed]:
        raise _wrong("inputs", f"lack {', '.join(missing)}; {model.name} takes {', '.join(known)}")
    batches = {name: len(array) for name, array in feed.items()}
    if len(set(batches.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in batches.items())
        raise _wrong("inputs", f"differ along the first axis: {told}; expected the same batch in all")
    return feed


def read_wanted(model: StageModel, request: pb.ModelInferRequest) -> list[str]:
    """Names of the outputs wanted, in order.

    Raises:
        FieldError: one is unknown, there twice, or has parameters.
    """
    names: list[str] = []
    for place, wanted in enumerate(request.outputs):
        field = f"outputs[{place}]"
        if wanted.name not in model.session.outputs:
            given = ", ".join(model.session.outputs)
            raise _wrong(f"{field}.name", f"is {wanted.name[:80]!r}; {model.name} gives {given}")
        if wanted.name in names:
            raise _wrong(f"{field}.name", f"is {wanted.name!r} a second time; expected each output once")
        if wanted.parameters:
            raise _wrong(
                f"{field}.parameters", f"has {_names(wanted.parameters)}; expected none, shared memory neither"
            )
        names.append(wanted.name)
    return names or list(model.session.outputs)


def to_response(
    model: StageModel, request: pb.ModelInferRequest, outputs: Arrays, wanted: Sequence[str]
) -> pb.ModelInferResponse:
    """Arrays on the wire, raw where the request was.

    Raises:
        BackendError: one has no name in the protocol.
    """
    response = pb.ModelInferResponse(model_name=model.name, model_version=model.opened.version, id=request.id)
    for name in wanted:
        array = outputs[name]
        datatype, field = _datatype(array)
        told = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if request.raw_input_contents:
            response.raw_output_contents.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        else:
            getattr(told.contents, field).extend(array.ravel().tolist())
    return response


def _shape(
    model: StageModel, tensor: Tensor, given: pb.ModelInferRequest.InferInputTensor, field: str
) -> tuple[int, ...]:
    if given.datatype != tensor.datatype:
        raise _wrong(f"{field}.datatype", f"is {given.datatype[:80]!r}; {tensor.name} is {tensor.datatype}")
    shape = tuple(given.shape)
    bounds = [model.bounds(tensor, axis) for axis in range(len(tensor.shape))]
    fits = len(shape) == len(bounds) and all(
        least <= size <= most for size, (least, most) in zip(shape, bounds, strict=True)
    )
    if not fits:
        told = ", ".join(str(least) if least == most else f"{least} to {most}" for least, most in bounds)
        raise _wrong(f"{field}.shape", f"is {list(shape)[:8]}; {tensor.name} is [{told}]")
    return shape


def _raw(data: bytes, shape: tuple[int, ...], given: pb.ModelInferRequest.InferInputTensor, place: int) -> np.ndarray:
    if given.HasField("contents"):
        raise _wrong(f"inputs[{place}].contents", "is there beside raw_input_contents; expected one of them")
    wanted = 4 * math.prod(shape)
    if len(data) != wanted:
        raise _wrong(
            f"raw_input_contents[{place}]",
            f"has {len(data)} bytes; expected {wanted} for {given.name}, FP32 {list(shape)}",
        )
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(shape)


def _typed(given: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], field: str) -> np.ndarray:
    others = [each.name for each, _ in given.contents.ListFields() if each.name != FP32_FIELD]
    if others:
        raise _wrong(f"{field}.contents", f"has {', '.join(others)}; expected {FP32_FIELD} for FP32")
    values, wanted = given.contents.fp32_contents, math.prod(shape)
    if len(values) != wanted:
        raise _wrong(
            f"{field}.contents",
            f"has {len(values)} {FP32_FIELD}; expected {wanted} for {given.name} {list(shape)}, or raw_input_contents",
        )
    return np.fromiter(values, np.float32, wanted).reshape(shape)


def _datatype(array: np.ndarray) -> tuple[str, str]:
    found = DATATYPES.get(array.dtype.name)
    if found is None:
        raise BackendError(f"the model gives {array.dtype}; expected one of {', '.join(DATATYPES)}, export it again")
    return found


def _longest_px(opened: OpenBundle, stage: str, deployment: Deployment | None) -> int:
    manifest, size_px = opened.manifest, deployment.size_px if deployment else None
    if stage in manifest.views:
        return manifest.view.size_px
    described = manifest.localizer
    if isinstance(described, SaliencySettings):
        return size_px or described.size_px
    if described.segmenter is not None and stage != "localizer":
        return max(described.segmenter.size_px)
    shortest, longest = described.preprocessing.size_px
    return max(size_px or shortest, round(longest * (size_px or shortest) / shortest))


def _profile(deployment: Deployment | None, stage: str) -> Mapping[str, ShapeRange]:
    model = None if deployment is None else deployment.models.get(stage)
    if deployment is None or model is None or (model.runtime or deployment.runtime) == "openvino":
        return {}  # OpenVINO runs one by one what is more than it was compiled for
    return model.shapes


def _names(parameters: Mapping[str, Any]) -> str:
    return ", ".join(sorted(parameters)[:8])[:80]


def _wrong(field: str, what: str) -> FieldError:
    return FieldError(field, InputError(f"{field} {what}"))
