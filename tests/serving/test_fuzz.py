"""Two thousand mutated photographs and as many mutated messages: each is answered or refused, and nothing breaks."""

import io
import random
from collections import Counter
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from PIL import Image

from l2r2.bundle import Bundle
from l2r2_serving.inference import grpc_predict_v2_pb2 as inference
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.kserving import VIEWS, asking
from tests.serving.running import running
from tests.tiny import RED, encode, make_photo

MUTATIONS = 2000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "MPO")
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,  # a bundle's name that was changed
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def originals() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    photos = [encode(photo, kind) for kind in FORMATS for photo in (make_photo(RED), noise)]
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", exif=turned, progressive=True)
    grey = io.BytesIO()
    Image.fromarray(noise[..., 0]).save(grey, "PNG")
    palette = io.BytesIO()
    Image.fromarray(noise).convert("P").save(palette, "PNG", transparency=0)
    return [*photos, file.getvalue(), grey.getvalue(), palette.getvalue()]


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Bits turned, bytes changed, parts cut out, doubled, or taken from another file; oftenest near the header."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        place = rng.randrange(len(changed)) if rng.random() < 0.5 else rng.randrange(min(len(changed), 64))
        kind = rng.randrange(6)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.choice((0x00, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            del changed[place : place + rng.randrange(1, 64)]
        elif kind == 4:
            changed[place:place] = changed[place : place + rng.randrange(1, 64)]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            changed[place:place] = other[start : start + rng.randrange(1, 256)]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of tags that are no tags
@pytest.mark.slow
def test_mutated_photographs_are_recognized_or_refused(bundle: Bundle) -> None:
    rng, seeds = random.Random(0), originals()
    outcomes: Counter[str] = Counter()
    with running(bundle) as place, place.stub() as stub:
        for number in range(MUTATIONS):
            image = mutated(rng.choice(seeds), seeds, rng)
            try:
                response = stub.Recognize(pb.RecognizeRequest(image=image, thumbnail_px=64, mask=True), timeout=30)
                outcomes["answered"] += 1
                assert 0 <= response.candidates[0].probability <= 1
            except grpc.RpcError as error:
                outcomes["refused"] += 1
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise AssertionError(f"mutation {number}: {error}") from error
    assert min(outcomes["answered"], outcomes["refused"]) > MUTATIONS // 20, outcomes


def messages() -> list[tuple[str, bytes]]:
    """By the path of their method."""
    photo = encode(make_photo(RED))
    request = pb.RecognizeRequest(
        image=photo, habitat="forest", month=5, top_k=3, bundle="tiny", metadata={"soil": "chalk"}, thumbnail_px=64
    )
    boxed = pb.RecognizeRequest(image=photo, box_px=pb.Box(x_min=1, y_min=2, x_max=90, y_max=80), mask=True)
    item = pb.StreamRecognizeRequest(id="a", session="0123456789abcdef", request=request)
    methods = [
        ("Recognize", request),
        ("Recognize", boxed),
        ("BatchRecognize", pb.BatchRecognizeRequest(requests=[request, boxed])),
        ("StreamRecognize", item),
        ("GetBundle", pb.GetBundleRequest(name="tiny")),
    ]
    stages = [
        ("ModelInfer", asking(VIEWS[:1])),
        ("ModelInfer", asking(VIEWS[:1], raw=False)),
        ("ModelMetadata", inference.ModelMetadataRequest(name="tiny.FG")),
    ]
    return [
        *((f"/l2r2.v1.RecognitionService/{method}", each.SerializeToString()) for method, each in methods),
        *((f"/inference.GRPCInferenceService/{method}", each.SerializeToString()) for method, each in stages),
    ]


def raw(channel: grpc.Channel, path: str, data: bytes) -> Iterator[bytes]:
    """Send bytes as they are."""
    if path.endswith("/StreamRecognize"):
        yield from channel.stream_stream(path)(iter([data]), timeout=30)
    else:
        yield channel.unary_unary(path)(data, timeout=30)


@pytest.mark.slow
def test_mutated_messages_are_answered_or_refused(bundle: Bundle) -> None:
    rng, known = random.Random(1), messages()
    outcomes: Counter[str] = Counter()
    with running(bundle) as place, place.channel() as channel, place.stub() as stub:
        for number in range(MUTATIONS):
            path, data = rng.choice(known)
            try:
                for response in raw(channel, path, mutated(data, [each for _, each in known], rng)):
                    outcomes[path.rpartition("/")[2]] += 1
                    if path.endswith("/StreamRecognize"):
                        code = pb.StreamRecognizeResponse.FromString(response).status.code
                        assert code in {0, *(refusal.value[0] for refusal in REFUSALS)}, number
            except grpc.RpcError as error:
                outcomes[error.code().name] += 1
                if error.code() not in REFUSALS:
                    raise AssertionError(f"mutation {number}: {error}") from error
        assert place.server.slots.taken == 0
        assert stub.Recognize(pb.RecognizeRequest(image=encode(make_photo(RED)))).candidates[0].name == "red"
    answered = {path.rpartition("/")[2]: outcomes[path.rpartition("/")[2]] for path, _ in known}
    assert all(answered.values()), outcomes
    assert sum(answered.values()) > MUTATIONS // 20, outcomes
    assert outcomes["INVALID_ARGUMENT"] > MUTATIONS // 20, outcomes
