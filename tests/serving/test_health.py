"""Health says the truth, and the interface is shown only when asked for."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from l2r2.bundle import Bundle
from l2r2_serving.errors import NotReady
from l2r2_serving.service import SERVICE
from tests.serving.running import BrokenLocalizer, ChangedBundle, GatedLocalizer, Running, running
from tests.tiny import RED, encode, make_photo

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(place: Running, service: str) -> int:
    with place.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service)).status)


def test_service_has_its_full_name() -> None:
    assert SERVICE == "l2r2.v1.RecognitionService"


@pytest.mark.parametrize("service", ["", SERVICE])
def test_serving_only_once_warm(service: str, bundle: Bundle) -> None:
    with running(bundle, warm=False) as place:
        assert health(place, service) == NOT_SERVING
        with place.client() as client:
            with pytest.raises(NotReady, match="still loading its bundle"):
                client.recognize(encode(make_photo(RED)))
            with pytest.raises(NotReady):
                client.recognize_batch([encode(make_photo(RED))])
        place.run(place.server.warm_up(bundle))
        assert health(place, service) == SERVING
        with place.client() as client:
            assert client.recognize(encode(make_photo(RED))).prediction.answer.name == "red"


def test_unknown_service_is_not_found(served: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health(served, "l2r2.v1.OtherService")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_warm_up_recognizes_on_every_worker(bundle: Bundle) -> None:
    watched = ChangedBundle(bundle, GatedLocalizer)
    with running(watched, workers=3):
        assert watched.localizer.reached == 3


def test_not_serving_when_warm_up_fails(bundle: Bundle) -> None:
    broken = ChangedBundle(bundle, BrokenLocalizer)
    broken.localizer.armed = True
    with running(broken, warm=False) as place:
        with pytest.raises(RuntimeError, match="secret"):
            place.run(place.server.warm_up(broken))
        assert health(place, SERVICE) == NOT_SERVING


def reflected(place: Running) -> list[str]:
    with place.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (response,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        return sorted(service.name for service in response.list_services_response.service)


def test_reflection_when_asked_for(bundle: Bundle) -> None:
    with running(bundle, warm=False, reflection=True) as place:
        assert reflected(place) == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            "inference.GRPCInferenceService",
            "l2r2.v1.RecognitionService",
        ]


def test_no_reflection_otherwise(served: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        reflected(served)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
