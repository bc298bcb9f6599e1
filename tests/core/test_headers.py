"""Headers that ask for far more than a photograph does are refused before anything is decoded; others are not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from l2r2 import headers
from l2r2.errors import ImageError
from l2r2.headers import check
from l2r2.images import Photograph, decode


def encode(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def tiff(*fields: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """Tag, type, count and value each; a value of -1 is where `data` lies."""
    at = 8 + 2 + 12 * len(fields) + 4
    entries = [
        struct.pack("<HHII", tag, kind, count, at if value < 0 else value)  # a short comes first in its four bytes
        for tag, kind, count, value in fields
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + b"".join(entries) + bytes(4) + data


GREY = ((256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1))

JPEG, PROGRESSIVE, PNG, GIF = encode("JPEG"), encode("JPEG", progressive=True), encode("PNG"), encode("GIF")
SCANS = PROGRESSIVE.count(b"\xff\xda")
LAST = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
PALETTE_END = 13 + 3 * 256


def progressive(scans: int, between: bytes = b"") -> bytes:
    return PROGRESSIVE[:-2] + (between + LAST) * (scans - SCANS) + b"\xff\xd9"


def test_an_ordinary_progressive_jpeg_has_ten_scans():
    assert SCANS == 10


@pytest.mark.parametrize(
    "data", [progressive(101), progressive(101, segment(0xFE, b"\xff\xd9"))], ids=["", "false end"]
)
def test_a_jpeg_of_too_many_scans(data):
    with pytest.raises(
        ImageError, match=r"^the JPEG has more than 100 scans; a progressive photograph has about 10, save it anew$"
    ):
        Photograph(data)


def test_a_jpeg_whose_components_come_one_by_one_may_not_have_more_scans_either():
    start = JPEG.index(b"\xff\xda")
    alone = JPEG[:start] + segment(0xDA, b"\1\1\0\0\x3f\0")
    with pytest.raises(ImageError, match="the JPEG has more than 100 scans"):
        Photograph(alone + segment(0xDA, b"\1\2\0\0\x3f\0") * 100)


def test_libjpeg_takes_no_second_scan_of_all_components():
    """Which is why they are not counted there."""
    scan = JPEG[JPEG.index(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match=r"^the image is damaged: "):
        decode(JPEG[:-2] + scan * 200 + JPEG[-2:])


def test_a_jpeg_of_a_hundred_scans_passes():
    check(progressive(100), 10**6)


@pytest.mark.parametrize(
    "more",
    [
        lambda scans: JPEG[:2] + segment(0xE1, scans) + JPEG[2:],
        lambda scans: JPEG[:2] + segment(0xFE, scans) + JPEG[2:],
        lambda scans: JPEG + scans * 100,
    ],
    ids=["in a thumbnail", "in a comment", "after the end"],
)
def test_scans_that_are_no_scans_are_not_counted(more):
    np.testing.assert_array_equal(decode(more(segment(0xDA) * 1000)), decode(JPEG))


def test_fill_and_restarts_are_no_segments():
    data = encode("JPEG", restart_marker_blocks=1)
    assert data.count(b"\xff\xd0") > 1
    np.testing.assert_array_equal(decode(data[:2] + b"\xff" * 1000 + data[2:]), decode(data))


DEFLATED = zlib.compress(bytes(64 * 64))

REFUSED = {
    "JPEG, segments": (JPEG[:2] + segment(0xE5) * 1001 + JPEG[2:], "the JPEG has more than 1,000 segments"),
    "JPEG, fill": (JPEG[:2] + b"\xff" * 70_000 + JPEG[2:], "the JPEG has more than 65,536 bytes between its segments"),
    "JPEG, early end": (JPEG[:2] + b"\xff\xd9" + JPEG[2:], "the image is damaged: "),
    "JPEG, no scan": (JPEG[: JPEG.index(b"\xff\xda")], "the image is damaged: a JPEG without a scan"),
    "JPEG, unknown": (JPEG[:2] + segment(0xF0) + JPEG[2:], "the image is damaged: "),
    "PNG, metadata": (PNG[:33] + chunk(b"abCd") * 1001 + PNG[33:], "the PNG has more than 1,000 chunks of metadata"),
    "PNG, pixels": (PNG[:33] + chunk(b"IDAT") * 32_769 + PNG[33:], "the PNG has more than 32,768 chunks of pixels"),
    "PNG, profiles": (PNG[:33] + chunk(b"iCCP", b"a\0\0") * 2 + PNG[33:], "the PNG has more than 1 colour profile"),
    "GIF, comment": (
        GIF[:PALETTE_END] + b"!\xfe" + b"\1a" * 32_769 + b"\0" + GIF[PALETTE_END:],
        "the GIF has more than 32,768 blocks of metadata",
    ),
    "GIF, nothing": (
        GIF[:PALETTE_END] + b"\1" * 32_769 + GIF[PALETTE_END:],
        "the GIF has more than 32,768 blocks of metadata",
    ),
    "TIFF, tile": (
        tiff(*GREY, (259, 3, 1, 8), (322, 4, 1, 16384), (323, 4, 1, 32768), (324, 4, 1, -1), data=DEFLATED),
        "the TIFF has tiles of 16384×32768 = 536,870,912 pixels; at most 64,000,000 are taken",
    ),
    "TIFF, tile of another type": (
        tiff(*GREY, (322, 17, 1, 64)),
        "the image is damaged: a TIFF whose tiles have no size",
    ),
    "TIFF, strips": (
        tiff(*GREY, (259, 3, 1, 1), (273, 4, 40_000, -1), (278, 3, 1, 1), data=bytes(160_000)),
        "the TIFF has more than 32,768 strips, tiles or samples",
    ),
    "TIFF, the same strip again and again": (
        tiff(*GREY, (259, 3, 1, 1), (273, 4, 100, -1), (278, 3, 1, 63), data=bytes(400)),
        "the image's strips or tiles lie over each other; expected each pixel once, save it anew",
    ),
    "TIFF, entries": (
        tiff(*GREY, *((40_000 + i, 3, 1, 0) for i in range(1000))),
        "the TIFF has more than 1,000 entries",
    ),
    "TIFF, another order": (b"MM\0+" + bytes(100), "the TIFF is a big-endian BigTIFF"),
    "BMP": (
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 14 + 40 + 1024, 40, 64, 64, 1, 8, 1, 4, 0, 0, 256, 0)
        + bytes(1024 + 4),
        "the BMP is run-length encoded; expected an uncompressed one, save it as PNG",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    data, says = REFUSED[case]
    with pytest.raises(ImageError) as refused:
        Photograph(data)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate", "jpeg"])
def test_a_tiff_in_many_strips_passes(compression):
    data = encode("TIFF", compression=compression, tiffinfo={278: 8})
    assert decode(data).shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF"])
def test_cut_off_headers_raise_nothing_but_image_errors(kind):
    data = encode(kind)
    for length in [*range(1, 100), len(data) // 2]:
        with pytest.raises(ImageError):
            decode(data[:length])


def test_bounds_hold_what_fits_into_the_bytes_that_are_taken():
    assert headers.MAX_SEGMENTS * 2**16 > 32 * 2**20
    assert headers.MAX_PIECES * 2**10 >= 32 * 2**20
