"""Bytes to upright RGB. The only file, EXIF and JPEG code."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from l2r2.config import ImageSettings
from l2r2.errors import ImageError
from l2r2.types import Pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read, JPEG including MPO; nothing else is even tried."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""File names that may hold a photograph."""

_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


def decode(data: bytes, settings: ImageSettings = ImageSettings()) -> Pixels:
    """Decode a photograph and turn it upright.

    EXIF orientation is applied. CMYK, palette, grey and 16-bit images become 8-bit RGB; transparent pixels are laid on
    white; of an animation the first frame is taken.

    Raises:
        ImageError: empty, no known format, truncated, too many bytes or pixels, or too few pixels.
    """
    with _opened(data, settings) as image:
        image.load()
        return np.asarray(_rgb(ImageOps.exif_transpose(image)))


@contextmanager
def _opened(data: bytes, settings: ImageSettings) -> Iterator[Image.Image]:
    """The image behind its checked header; what goes wrong with it inside is an ImageError."""
    if not data:
        raise ImageError("the photograph is empty (0 bytes); send an encoded image, for example a JPEG")
    if len(data) > settings.max_bytes:
        raise ImageError(f"the photograph has {len(data):,} bytes; at most {settings.max_bytes:,} are taken, shrink it")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, settings)
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
    """An encoded photograph, checked by its header, whose pixels are decoded no finer than they are asked for.

    JPEG knows halves, quarters and eighths, each far cheaper than the whole; other formats are decoded whole. Belongs
    to one thread.

    Attributes:
        size_px: Upright width and height of the original.
    """

    def __init__(self, data: bytes, settings: ImageSettings = ImageSettings()) -> None:
        """Look at the header.

        Raises:
            ImageError: as `decode`, as far as a header tells.
        """
        self._data, self._settings = data, settings
        with _opened(data, settings) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
            self.size_px: tuple[int, int] = image.size[::-1] if turned else image.size
            self._scalable = image.format in {"JPEG", "MPO"}
        self._decoded: dict[float, Pixels] = {}

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
            divisor = next(d for d in (8, 4, 2, 1) if scale <= 1 / d or d == 1) if self._scalable else 1
            fine_enough = [1 / divisor]
            self._decoded[1 / divisor] = self._decode(divisor)
        return self._decoded[min(fine_enough)]

    def _decode(self, divisor: int) -> Pixels:
        with _opened(self._data, self._settings) as image:
            if divisor > 1:
                image.draft(None, (image.width // divisor, image.height // divisor))
            image.load()
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))


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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}:
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode != "F" else max(float(values.max(initial=1.0)), 1.0)
        return Image.fromarray((values.clip(0, top) * (255.0 / top)).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
