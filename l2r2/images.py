"""Bytes to upright RGB. The only file and EXIF code.

While a photograph is decoded it takes what its decoder needs and a few bands: 8 bytes a pixel, 12 for a progressive
JPEG, 16 for WebP.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from l2r2.config import ImageSettings
from l2r2.errors import ImageError
from l2r2.headers import check, check_opened
from l2r2.types import Pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read, JPEG including MPO; nothing else is even tried."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""File names that may hold a photograph."""

_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

_BAND_PX = 2**20
"""Pixels that are converted at once: an ordinary photograph in one go, a large one without copies of the whole."""


def decode(data: bytes, settings: ImageSettings = ImageSettings()) -> Pixels:
    """Decode a photograph and turn it upright.

    EXIF orientation is applied. CMYK, palette, grey and 16-bit images become 8-bit RGB; transparent pixels are laid on
    white; of an animation the first frame is taken.

    Raises:
        ImageError: empty, no known format, truncated, too many bytes or pixels, or too few pixels.
    """
    with _opened(data, settings) as image:
        return _upright(image)


@contextmanager
def _opened(data: bytes, settings: ImageSettings, *, again: bool = False) -> Iterator[ImageFile.ImageFile]:
    """The image behind its checked header; what goes wrong with it inside is an ImageError."""
    if not data:
        raise ImageError("the photograph is empty (0 bytes); send an encoded image, for example a JPEG")
    if len(data) > settings.max_bytes:
        raise ImageError(f"the photograph has {len(data):,} bytes; at most {settings.max_bytes:,} are taken, shrink it")
    try:
        if not again:
            check(data, settings.max_pixels)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, settings)
            check_opened(image)
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the second where warnings are errors
        raise ImageError(
            f"the image declares far more pixels than a photograph has; at most {settings.max_pixels:,} are taken"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"the {len(data):,} bytes are no image that can be read; expected one of {', '.join(FORMATS)}"
        ) from None
    except Exception as error:
        raise ImageError(f"the image is damaged: {error or type(error).__name__}; send the original file") from error


class Photograph:
    """An encoded photograph whose pixels are decoded no finer than they are asked for.

    JPEG knows halves, quarters and eighths, each far cheaper than the whole. Other formats are decoded whole, and only
    once. At first only the header is looked at. Belongs to one thread.
    """

    def __init__(self, data: bytes, settings: ImageSettings = ImageSettings()) -> None:
        """Look at the header.

        Raises:
            ImageError: as `decode`, as far as the header tells.
        """
        self._data, self._settings = data, settings
        self._decoded: dict[float, Pixels] = {}
        self._size_px: tuple[int, int] | None = None
        with _opened(data, settings) as image:
            self._scalable = image.format in {"JPEG", "MPO"}
            if self._scalable:
                turned = image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
                self._size_px = image.size[::-1] if turned else image.size

    @property
    def size_px(self) -> tuple[int, int]:
        """Upright width and height of the original.

        Only JPEG's header tells it: a PNG may say after its pixels which side is up, so others are decoded for it.

        Raises:
            ImageError: damaged.
        """
        if self._size_px is None:
            height, width, _ = self.at(1.0).shape
            self._size_px = width, height
        return self._size_px

    def at(self, scale: float) -> Pixels:
        """Upright pixels at the smallest scale that the file has and that is at least `scale`; RGB, [0, 255].

        What was decoded before is used again where it is fine enough.

        Args:
            scale: Of the original's sides, (0, 1].
        Raises:
            ImageError: damaged.
        """
        fine_enough = [known for known in self._decoded if known >= scale]
        if not fine_enough:
            divisor = next(d for d in (8, 4, 2, 1) if d == 1 or (self._scalable and scale <= 1 / d))
            fine_enough = [1 / divisor]
            self._decoded[1 / divisor] = self._decode(divisor)
        return self._decoded[min(fine_enough)]

    def _decode(self, divisor: int) -> Pixels:
        with _opened(self._data, self._settings, again=True) as image:
            if divisor > 1:
                image.draft(None, (image.width // divisor, image.height // divisor))
            return _upright(image)


def read(path: Path, settings: ImageSettings = ImageSettings()) -> Pixels:
    """Decode a file.

    Raises:
        ImageError: as `decode`, or the file cannot be read; the message starts with its path.
    """
    with _named(path):
        return decode(path.read_bytes(), settings)


def read_photograph(path: Path, settings: ImageSettings = ImageSettings()) -> Photograph:
    """Open a file whose pixels are to be decoded no finer than needed.

    Raises:
        ImageError: as `Photograph`, or the file cannot be read; the message starts with its path.
    """
    with _named(path):
        return Photograph(path.read_bytes(), settings)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _check_size(size: tuple[int, int], settings: ImageSettings) -> None:
    width, height = size
    if width * height > settings.max_pixels:
        raise ImageError(
            f"the image is {width}×{height} = {width * height:,} pixels; at most {settings.max_pixels:,} are taken"
        )
    if min(width, height) < settings.min_side_px:
        raise ImageError(f"the image is {width}×{height} pixels; expected at least {settings.min_side_px} on each side")


def _upright(image: Image.Image) -> Pixels:
    """Decode, turn and convert, in bands so that nothing of the whole lies in memory thrice."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    rows = max(_BAND_PX // width, 1)
    bands = [(top, min(top + rows, height)) for top in range(0, height, rows)]
    white = 65535.0
    if image.mode == "F":
        white = max(1.0, *(float(np.asarray(image.crop((0, top, width, end))).max()) for top, end in bands))
    pixels = np.empty((height, width, 3), np.uint8)
    for top, end in bands:
        pixels[top:end] = np.asarray(_rgb(image.crop((0, top, width, end)), white))
    return pixels


def _rgb(image: Image.Image, white: float) -> Image.Image:
    """8-bit RGB of a band; `white` is the value of more than 8 bits that becomes 255."""
    if image.mode in {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}:
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray((values.clip(0, white) * (255.0 / white)).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
