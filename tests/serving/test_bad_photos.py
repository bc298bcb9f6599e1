"""Photographs that nobody expects: a right answer or INVALID_ARGUMENT, and the server lives."""

import io
import struct
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import Running
from tests.serving.statuses import fields, reason, refused
from tests.tiny import GREEN, RED, encode, make_photo


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def declared_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


RED_IMAGE = Image.fromarray(make_photo(RED))
JPEG = encode(make_photo(RED), "JPEG", quality=95)

BAD = {
    "empty": (b"", "empty (0 bytes)"),
    "text": (b"this is no photograph", "no image that can be read"),
    "zeros": (bytes(10_000), "no image that can be read"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "damaged"),
    "JPEG header alone": (JPEG[:20], ""),
    "truncated PNG": (encode(make_photo(RED))[:200], "damaged"),
    "bomb beyond our bound": (declared_png(9_000, 9_000), "81,000,000 pixels; at most 64,000,000"),
    "bomb beyond Pillow's bound": (declared_png(60_000, 60_000), ""),
    "1×1": (encode(np.zeros((1, 1, 3), np.uint8)), "expected at least 16 on each side"),
    "20000×1": (encode(np.zeros((1, 20_000, 3), np.uint8)), "expected at least 16 on each side"),
    "a PDF": (b"%PDF-1.7\n" + bytes(100), "no image that can be read"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read"),
}

GOOD = {
    "JPEG": JPEG,
    "grey ground, CMYK": saved(RED_IMAGE.convert("CMYK"), "JPEG", quality=95),
    "palette": saved(RED_IMAGE.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "palette GIF": saved(RED_IMAGE, "GIF"),
    "alpha": saved(RED_IMAGE.convert("RGBA"), "PNG"),
    "WebP": saved(RED_IMAGE, "WEBP", lossless=True),
    "BMP": saved(RED_IMAGE, "BMP"),
    "TIFF": saved(RED_IMAGE, "TIFF"),
    "animation": saved(
        RED_IMAGE, "GIF", save_all=True, append_images=[Image.fromarray(make_photo(GREEN))] * 2, duration=100
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_with_the_field_named_and_the_server_lives(case: str, served: Running) -> None:
    data, says = BAD[case]
    with served.stub() as stub:
        code, status = refused(lambda: stub.Recognize(pb.RecognizeRequest(image=data)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert fields(status) == ["image"]
        assert reason(status) == "IMAGE_ERROR"
        assert says in status.message
        assert stub.Recognize(pb.RecognizeRequest(image=JPEG)).candidates[0].name == "red"


@pytest.mark.parametrize("case", GOOD)
def test_every_kind_of_red_is_red(case: str, served: Running) -> None:
    with served.client() as client:
        prediction = client.recognize(GOOD[case]).prediction
    assert prediction.answer.name == "red"
    assert prediction.size_px == (160, 120)
    assert prediction.region is not None


def test_sixteen_bits(served: Running) -> None:
    grey = make_photo((250, 250, 250))[..., 0].astype(np.uint16) * 257
    with served.client() as client:
        prediction = client.recognize(saved(Image.fromarray(grey), "PNG")).prediction
    assert prediction.region is not None
    assert prediction.region.box_xyxy_px == pytest.approx((52, 36, 108, 84), abs=1.0)


def test_a_photo_on_its_side_is_turned_upright(served: Running) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90° clockwise
    with served.client() as client:
        prediction = client.recognize(saved(RED_IMAGE, "JPEG", exif=exif)).prediction
    assert prediction.size_px == (120, 160)
    assert prediction.region is not None
    # The object's x 52 to 108 of 160 is y now; its y 36 to 84 of 120, mirrored, is x: 36 to 84 again.
    assert prediction.region.box_xyxy_px == pytest.approx((36, 52, 84, 108), abs=2.0)
