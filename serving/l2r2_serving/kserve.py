"""The KServe v2 (Open Inference) protocol: each stage of what is served is a model of its own."""

from __future__ import annotations

from concurrent.futures import Executor

from l2r2 import __version__
from l2r2_serving.bundles import Shelf
from l2r2_serving.calls import Calls, Context, deadline_of
from l2r2_serving.engine import Engine, on_worker
from l2r2_serving.errors import NotReady, UnknownBundle
from l2r2_serving.inference import grpc_predict_v2_pb2 as pb
from l2r2_serving.inference import grpc_predict_v2_pb2_grpc
from l2r2_serving.kserve_models import StageModel, Tensor, models_of, read_feed, read_wanted, to_response
from l2r2_serving.observing import Nobody, Observer

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
"""inference.GRPCInferenceService"""


class KServeService(grpc_predict_v2_pb2_grpc.GRPCInferenceServiceServicer):
    """Stages by name: BUNDLE.localizer, BUNDLE.FG, BUNDLE.FULL; with SAM also BUNDLE.encoder and BUNDLE.decoder.

    A call that runs a model holds a slot and a worker like a photograph; one whose caller has left is not begun.

    Attributes:
        calls: Of this service.
    """

    def __init__(self, shelf: Shelf, engine: Engine, pool: Executor, observer: Observer | None = None) -> None:
        """Store the parts.

        Args:
            pool: The engine's workers.
            observer: Told of each call; there are no photographs to tell of.
        """
        self._shelf = shelf
        self._slots = engine.slots
        self._pool = pool
        self.calls = Calls(SERVICE, observer or Nobody())
        self._outputs: dict[tuple[str, str], tuple[Tensor, ...]] = {}

    async def ServerLive(  # noqa: N802  the method's name on the wire
        self,
        request: pb.ServerLiveRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ServerLiveResponse:
        """Whoever answers is alive."""
        async with self.calls.answering("ServerLive", context):
            return pb.ServerLiveResponse(live=True)
        raise AssertionError("refusing ends the call")

    async def ServerReady(  # noqa: N802
        self,
        request: pb.ServerReadyRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ServerReadyResponse:
        """Whether a bundle is served."""
        async with self.calls.answering("ServerReady", context):
            return pb.ServerReadyResponse(ready=bool(self._shelf.all()))
        raise AssertionError("refusing ends the call")

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """Whether a model is served; no is an answer."""
        async with self.calls.answering("ModelReady", context):
            try:
                self._find(request.name, request.version)
            except (NotReady, UnknownBundle):
                return pb.ModelReadyResponse(ready=False)
            return pb.ModelReadyResponse(ready=True)
        raise AssertionError("refusing ends the call")

    async def ServerMetadata(  # noqa: N802
        self,
        request: pb.ServerMetadataRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ServerMetadataResponse:
        """Name and version of the software."""
        async with self.calls.answering("ServerMetadata", context):
            return pb.ServerMetadataResponse(name="l2r2", version=__version__)
        raise AssertionError("refusing ends the call")

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """The tensors of a model; what it gives is measured, once."""
        async with self.calls.answering("ModelMetadata", context) as call:
            model = self._find(request.name, request.version)
            outputs = self._outputs.get(model.key)
            if outputs is None:
                deadline = deadline_of(context)

                def measure(model: StageModel) -> tuple[Tensor, ...]:
                    deadline.require()
                    return model.measure()

                with self._slots.take(call.caller):
                    outputs = await on_worker(self._pool, measure, model, deadline)
                served = {each.version for each in self._shelf.all()}
                kept = {key: known for key, known in self._outputs.items() if key[1] in served}
                self._outputs = {**kept, model.key: outputs}
            return pb.ModelMetadataResponse(
                name=model.name,
                versions=[model.opened.version],
                platform=model.opened.deployment,
                inputs=[_metadata(each) for each in model.inputs],
                outputs=[_metadata(each) for each in outputs],
            )
        raise AssertionError("refusing ends the call")

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        """Run a model once."""
        async with self.calls.answering("ModelInfer", context) as call:
            model = self._find(request.model_name, request.model_version)
            deadline = deadline_of(context)

            def work(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
                deadline.require()
                feed, wanted = read_feed(model, request), read_wanted(model, request)
                deadline.require()  # reading typed contents takes its time
                return to_response(model, request, model.infer(feed), wanted)

            with self._slots.take(call.caller):
                return await on_worker(self._pool, work, request, deadline)
        raise AssertionError("refusing ends the call")

    def _find(self, name: str, version: str) -> StageModel:
        """A model that is served.

        Raises:
            NotReady: nothing is.
            UnknownBundle: this one is not, or not in that version.
        """
        self._shelf.require_any()
        known = {model.name: model for opened in self._shelf.all() for model in models_of(opened)}
        model = known.get(name)
        if model is None:
            raise UnknownBundle(f"no model {name[:80]!r} is served; expected one of: {', '.join(known)}")
        if version not in {"", model.opened.version}:
            raise UnknownBundle(
                f"{name} is not served in version {version[:80]!r}; expected {model.opened.version} or none"
            )
        return model


def _metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
