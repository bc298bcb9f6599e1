"""What an encoded photograph may ask of a decoder, told by its headers before anything is decoded.

A few bytes can ask for minutes or gigabytes: a JPEG for thousands of passes over all its pixels, a TIFF for a tile far
larger than itself. Pillow reads headers in Python, piece by piece, so the number of pieces is bounded too. The bounds
are far above what cameras and programs write.
"""

from __future__ import annotations

import re
import struct

from PIL import ImageFile

from l2r2.errors import ImageError

MAX_SCANS = 100
"""Of a JPEG; a progressive one has about 10. Each is a pass over all its blocks, however few bytes it has: at 64
megapixels 100 take 2 s in grey. Source: libtiff has the same bound for JPEGs within TIFFs."""

MAX_SEGMENTS = 1000
"""Of a JPEG, chunks of a PNG that are not its pixels, entries of a TIFF's directory; there are dozens. 32 MiB of
metadata are 512 segments of a JPEG."""

MAX_PIECES = 32_768
"""Blocks of a GIF's metadata, pieces of a PNG's pixels, strips or tiles of a TIFF; 32 MiB in KiB."""

MAX_FILL = 65_536
"""Bytes between a JPEG's segments."""

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""Of a JPEG: one that has a length, or the end. Any other 0xFF is stuffed (00), fill (FF), RST or of no meaning."""

_EOI, _SOS, _DAC = 0xD9, 0xDA, 0xCC
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
"""Frames that one scan of all components completes; libjpeg takes no second one."""

_NOT_IN_A_HEADER = frozenset({0xC8, 0xD9, *range(0xF0, 0xFE)})
"""Refused by libjpeg, but Pillow does not know their length and would look for segments within them."""

_DAC_BYTES = 2 + 2 * 32
"""At most; older Pillows skip this one so too, and libjpeg takes it."""

_PIXELS_OF_PNG = frozenset({b"IDAT", b"fdAT", b"fcTL"})

_TILE_SIDES = frozenset({322, 323})
_LISTS = frozenset({258, 273, 279, 324, 325, 338, 339})
"""TIFF: what has a value a sample, strip or tile."""

_RUN_LENGTH = frozenset({1, 2})
"""BMP: compressions that Pillow decodes in Python, at 4 megapixels a second."""


def check(data: bytes, max_pixels: int) -> None:
    """Refuse what asks for far more than a photograph does, by its bytes; what is no image or damaged may pass.

    Args:
        data: JPEG, PNG, GIF, TIFF or anything else.
        max_pixels: Bound of a tile of a TIFF.
    Raises:
        ImageError: too many scans, segments or pieces, or too large a tile.
    """
    if data.startswith(b"\xff\xd8\xff"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    elif data.startswith((b"II", b"MM")):
        _check_tiff(data, max_pixels)


def check_opened(image: ImageFile.ImageFile) -> None:
    """Refuse what is decoded several times over, or in Python.

    Args:
        image: Opened by Pillow, not loaded.
    Raises:
        ImageError: as above.
    """
    if image.format == "BMP" and image.info.get("compression") in _RUN_LENGTH:
        raise ImageError("the BMP is run-length encoded; expected an uncompressed one, save it as PNG")
    pieces = [tile[1] for tile in image.tile if tile[1] is not None]
    if sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in pieces) > image.width * image.height * len(image.getbands()):
        raise ImageError("the image's strips or tiles lie over each other; expected each pixel once, save it anew")


def _check_jpeg(data: bytes) -> None:
    """Walk segments and scans as libjpeg does.

    What a segment holds, such as a thumbnail with scans of its own, is skipped; what follows the end, such as an MPO's
    other photographs or a film, is not looked at.
    """
    position, segments, scans, fill, components = 2, 0, 0, 0, b""
    while marker := _MARKER.search(data, position):
        kind, after = data[marker.end() - 1], marker.end()
        length = int.from_bytes(data[after : after + 2])
        if scans and kind == _EOI:
            return
        if not scans:
            fill += marker.start() - position
            if kind in _NOT_IN_A_HEADER or (kind == _DAC and length > _DAC_BYTES):
                raise ImageError(f"the image is damaged: JPEG marker {kind:#x} in its header; send the original file")
        if kind in _SEQUENTIAL:
            components = data[after + 7 : after + 8]
        if kind == _SOS and not scans and components and components == data[after + 2 : after + 3]:
            return
        segments, scans = segments + 1, scans + (kind == _SOS)
        if scans > MAX_SCANS:
            raise ImageError(
                f"the JPEG has more than {MAX_SCANS} scans; a progressive photograph has about 10, save it anew"
            )
        _check_count("JPEG", segments, MAX_SEGMENTS, "segments")
        _check_count("JPEG", fill, MAX_FILL, "bytes between its segments")
        position = after + max(length, 2)
    if not scans:
        raise ImageError("the image is damaged: a JPEG without a scan; send the original file")


def _check_png(data: bytes) -> None:
    position, others, pieces, profiles = 8, 0, 0, 0
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        if kind == b"IEND":
            return
        if kind in _PIXELS_OF_PNG:
            pieces += 1
        else:
            others, profiles = others + 1, profiles + (kind == b"iCCP")
        _check_count("PNG", others, MAX_SEGMENTS, "chunks of metadata")
        _check_count("PNG", pieces, MAX_PIECES, "chunks of pixels")
        _check_count("PNG", profiles, 1, "colour profile")  # each is inflated, a thousandfold
        position += 12 + length


def _check_gif(data: bytes) -> None:
    """Walk what precedes the first frame."""
    if len(data) < 13:
        return
    position = 13 + ((2 << (data[10] & 7)) * 3 if data[10] & 0x80 else 0)
    pieces = 0
    while position < len(data) and data[position] not in b",;":
        extension = data[position] == 0x21
        position += 2 if extension else 1
        while extension and position < len(data) and data[position]:
            position += 1 + data[position]
            pieces += 1
            _check_count("GIF", pieces, MAX_PIECES, "blocks of metadata")
        position += extension
        pieces += 1
        _check_count("GIF", pieces, MAX_PIECES, "blocks of metadata")


def _check_tiff(data: bytes, max_pixels: int) -> None:
    """Look through the first directory."""
    big = data[2:4] == b"+\0"
    if data.startswith(b"MM\0+"):
        raise ImageError("the TIFF is a big-endian BigTIFF, which is not read; save it as a plain TIFF")
    order = "<" if data.startswith(b"II") else ">"
    head, count, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    try:
        (start,) = struct.unpack_from(order + head, data, 8 if big else 4)
        (entries,) = struct.unpack_from(order + count, data, start)
        _check_count("TIFF", entries, MAX_SEGMENTS, "entries in its directory")
        start, size = start + struct.calcsize(order + count), struct.calcsize(order + entry)
        fields = [struct.unpack_from(order + entry, data, start + i * size) for i in range(entries)]
    except struct.error:
        return  # cut off: Pillow says so
    sides = dict.fromkeys(_TILE_SIDES, 1)
    for tag, kind, values, value in fields:
        if tag in _LISTS:
            _check_count("TIFF", values, MAX_PIECES, "strips, tiles or samples")
        if tag in _TILE_SIDES:
            if kind not in {3, 4} or values != 1:
                raise ImageError("the image is damaged: a TIFF whose tiles have no size; send the original file")
            sides[tag] = max(sides[tag], *struct.unpack_from(order + ("H" if kind == 3 else "I"), value))
    across, down = sides[322], sides[323]
    if across * down > max_pixels:
        raise ImageError(
            f"the TIFF has tiles of {across}×{down} = {across * down:,} pixels; at most {max_pixels:,} are taken"
        )


def _check_count(name: str, count: int, most: int, what: str) -> None:
    if count > most:
        raise ImageError(f"the {name} has more than {most:,} {what}, as no photograph has; save it anew")
