import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from l2r2.config import ImageSettings
from l2r2.errors import ImageError
from l2r2.images import FORMATS, Photograph, decode, read, read_photograph

RED, GREEN, BLUE, WHITE = (250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 240)

UPRIGHT = np.zeros((32, 64, 3), np.uint8)
UPRIGHT[:16, :32], UPRIGHT[:16, 32:], UPRIGHT[16:, :32], UPRIGHT[16:, 32:] = RED, GREEN, BLUE, WHITE

# EXIF 2.3, tag 0x0112: which side of the scene the stored row 0 and column 0 are.
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.transpose(1, 0, 2),  # left, top
    6: np.rot90(UPRIGHT, 1),  # right, top
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: np.rot90(UPRIGHT, -1),  # left, bottom
}


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def oriented(pixels: np.ndarray, orientation: int, kind: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(np.ascontiguousarray(pixels)), kind, exif=exif, **options)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_of_a_png(orientation):
    np.testing.assert_array_equal(decode(oriented(STORED[orientation], orientation, "PNG")), UPRIGHT)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_of_a_jpeg(orientation):
    data = oriented(STORED[orientation], orientation, "JPEG", quality=95, subsampling=0)
    np.testing.assert_allclose(decode(data).astype(int), UPRIGHT.astype(int), atol=6)


def test_an_orientation_that_does_not_exist_is_ignored():
    np.testing.assert_array_equal(decode(oriented(UPRIGHT, 99, "PNG")), UPRIGHT)


@pytest.mark.parametrize("kind", ["MPO", *(kind for kind in FORMATS if kind != "GIF")])
def test_every_format_is_read(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encode(Image.fromarray(UPRIGHT), kind, **options))
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[8, 8].astype(int), RED, atol=8)


def test_a_format_outside_the_list_is_refused():
    data = encode(Image.fromarray(UPRIGHT), "PPM")
    with pytest.raises(ImageError, match=r"^the 6,157 bytes are no image that can be read; expected one of JPEG, PNG"):
        decode(data)


def test_cmyk_jpeg():
    # No cyan, full magenta and yellow, no black: red.
    pixels = decode(encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95))
    np.testing.assert_allclose(pixels[16, 16].astype(int), (255, 0, 0), atol=4)


def test_sixteen_bit_png_maps_65535_to_255():
    values = np.full((32, 32), 257 * 100, np.uint16)  # 257 × 255 = 65535
    values[0, 0], values[0, 1], values[0, 2] = 0, 65535, 257 * 3
    pixels = decode(encode(Image.fromarray(values)))
    assert pixels[0, :4].tolist() == [[0] * 3, [255] * 3, [3] * 3, [100] * 3]


def test_floating_point_tiff_is_scaled_by_its_maximum():
    values = np.full((32, 32), 5.0, np.float32)
    values[0, 0], values[0, 1] = 10.0, -1.0
    assert decode(encode(Image.fromarray(values), "TIFF"))[0, :3, 0].tolist() == [255, 0, 128]  # 127.5 rounds to even


def test_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    image.putpixel((0, 0), 0)
    pixels = decode(encode(image, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [0, 0, 255]


def test_palette_with_a_transparency_for_each_colour():
    image = Image.new("P", (32, 32), 0)
    image.putpalette([255, 0, 0] + [0] * 765)
    # Red at opacity 128 / 255 on white: 255 - 128 = 127 of green and blue.
    assert decode(encode(image, transparency=bytes([128])))[0, 0].tolist() == [255, 127, 127]


def test_rgba_is_laid_on_white():
    assert decode(encode(Image.new("RGBA", (32, 32), (255, 0, 0, 128))))[0, 0].tolist() == [255, 127, 127]


def test_grey():
    assert decode(encode(Image.new("L", (32, 32), 77)))[5, 5].tolist() == [77, 77, 77]


def test_one_bit():
    assert decode(encode(Image.new("1", (32, 32), 1)))[5, 5].tolist() == [255, 255, 255]


def test_grey_with_transparency_is_laid_on_white():
    image = Image.new("LA", (32, 32), (0, 255))
    image.putpixel((0, 0), (0, 0))
    pixels = decode(encode(image))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [0, 0, 0]


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data)[16, 16].tolist() == [255, 0, 0]


def test_broken_exif_is_no_reason_to_refuse_a_photograph():
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    with pytest.warns(UserWarning, match=r"^Corrupt EXIF data"):  # Pillow's own; who runs the program filters it
        assert decode(encode(Image.fromarray(UPRIGHT), "JPEG", exif=exif)).shape == UPRIGHT.shape


def test_no_bytes():
    with pytest.raises(ImageError, match=r"^the photograph is empty \(0 bytes\); send an encoded image"):
        decode(b"")


def test_text():
    with pytest.raises(ImageError, match=r"^the 5 bytes are no image that can be read; expected one of JPEG, PNG"):
        decode(b"hello")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(ImageError, match=r"^the image is damaged: .*; send the original file$"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("size", [(1, 1), (20000, 1)])
def test_too_few_pixels_on_a_side(size):
    with pytest.raises(ImageError, match=rf"^the image is {size[0]}×1 pixels; expected at least 16 on each side$"):
        decode(encode(Image.new("RGB", size)))


def test_more_pixels_than_the_settings_allow():
    with pytest.raises(ImageError, match=r"^the image is 32×32 = 1,024 pixels; at most 1,000 are taken$"):
        decode(encode(Image.new("RGB", (32, 32))), ImageSettings(max_pixels=1000))


@pytest.mark.parametrize("size", [(60000, 60000), (10000, 9000)], ids=["Pillow raises", "Pillow warns"])
def test_a_decompression_bomb_is_named_as_one(size):
    with pytest.raises(ImageError, match=r"^the image declares far more pixels .*; at most 64,000,000 are taken$"):
        decode(png_header(*size))


def test_a_large_image_below_pillows_own_bound_is_refused_before_it_is_decoded():
    with pytest.raises(ImageError, match=r"^the image is 9000×9000 = 81,000,000 pixels; at most 64,000,000 are taken$"):
        decode(png_header(9000, 9000))


def test_too_many_bytes():
    with pytest.raises(ImageError, match=r"^the photograph has 2,000 bytes; at most 1,000 are taken, shrink it$"):
        decode(bytes(2000), ImageSettings(max_bytes=1000))


def test_read_decodes_a_file(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(UPRIGHT)))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), UPRIGHT)


def test_read_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: cannot be read: No such file or directory$"):
        read(tmp_path / "none.png")


def test_read_names_a_file_that_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ImageError, match=r"a\.png: the 5 bytes are no image"):
        read(tmp_path / "a.png")


def stripes(width: int, height: int) -> np.ndarray:
    """Smooth enough for JPEG, and different everywhere."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    return np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("scale", "divisor"), [(1.0, 1), (0.51, 1), (0.5, 2), (0.3, 2), (0.25, 4), (0.13, 4), (0.1, 8)]
)
@pytest.mark.parametrize("size", [(640, 480), (641, 483)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_enough(scale, divisor, size):
    photo = Photograph(encode(Image.fromarray(stripes(*size)), "JPEG", quality=95))
    pixels = photo.at(scale)
    assert photo.size_px == size
    assert pixels.shape == (-(-size[1] // divisor), -(-size[0] // divisor), 3)
    small = np.asarray(Image.fromarray(stripes(*size)).resize(pixels.shape[1::-1], Image.Resampling.BOX))
    assert abs(pixels.astype(int) - small).mean() < 3


def test_the_whole_scale_is_what_decode_gives():
    data = encode(Image.fromarray(stripes(100, 80)), "JPEG")
    np.testing.assert_array_equal(Photograph(data).at(1.0), decode(data))


def test_other_formats_are_decoded_whole():
    data = encode(Image.fromarray(stripes(100, 80)))
    np.testing.assert_array_equal(Photograph(data).at(0.1), stripes(100, 80))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_photographs_are_upright(orientation):
    data = oriented(stripes(320, 160), orientation, "JPEG", quality=95)
    photo, whole = Photograph(data), decode(data)
    assert photo.size_px == (whole.shape[1], whole.shape[0])
    pixels = photo.at(0.25)
    expected = np.asarray(Image.fromarray(whole).resize(pixels.shape[1::-1], Image.Resampling.BOX))
    assert pixels.shape[:2] == (whole.shape[0] // 4, whole.shape[1] // 4)
    assert abs(pixels.astype(int) - expected).mean() < 3


def test_what_is_fine_enough_is_not_decoded_again(monkeypatch):
    photo = Photograph(encode(Image.fromarray(stripes(640, 480)), "JPEG"))
    first = photo.at(0.5)
    assert photo.at(0.2) is first
    assert photo.at(0.8).shape == (480, 640, 3)
    assert photo.at(0.4) is first


def test_a_cut_off_jpeg_is_refused_at_any_scale():
    data = encode(Image.fromarray(stripes(640, 480)), "JPEG")
    photo = Photograph(data[: len(data) // 2])
    for scale in (0.1, 1.0):
        with pytest.raises(ImageError, match="the image is damaged: "):
            photo.at(scale)


def test_a_header_tells_what_is_refused(tmp_path):
    for data, message in ((b"", "empty"), (b"text", "no image that can be read"), (png_header(9000, 9000), "at most")):
        with pytest.raises(ImageError, match=message):
            Photograph(data)
    (tmp_path / "x.jpg").write_bytes(b"text")
    with pytest.raises(ImageError, match=r"x\.jpg: the 4 bytes are no image"):
        read_photograph(tmp_path / "x.jpg")


PEAK = """
import io, resource, sys
from PIL import Image
from l2r2.images import FORMATS, Photograph
for kind in FORMATS:  # what is loaded once
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, kind)
    Photograph(file.getvalue()).at(1.0)
data = sys.stdin.buffer.read()
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = Photograph(data).at(1.0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024 / (pixels.size / 3))
"""


@pytest.mark.parametrize(
    ("mode", "kind", "options", "most"),
    [
        ("RGB", "PNG", {}, 11),
        ("RGBA", "PNG", {}, 11),
        ("LA", "PNG", {}, 11),
        ("I;16", "PNG", {}, 11),
        ("P", "PNG", {"transparency": bytes(8)}, 11),
        ("F", "TIFF", {"compression": "tiff_adobe_deflate"}, 11),
        ("I", "TIFF", {"compression": "tiff_adobe_deflate"}, 11),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate", "orientation": 6}, 11),
        ("RGB", "JPEG", {"orientation": 6}, 11),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}, 13),
        ("P", "GIF", {"transparency": 0}, 11),
        ("RGBA", "WEBP", {"lossless": True, "method": 0}, 18),
    ],
)
def test_bytes_a_pixel_while_a_large_photograph_is_decoded(mode, kind, options, most):
    exif = Image.Exif()
    exif[0x0112] = options.get("orientation", 1)
    extra = {"exif": exif} if kind != "GIF" else {}
    data = encode(
        Image.new(mode, (4000, 3000)), kind, **{k: v for k, v in options.items() if k != "orientation"}, **extra
    )
    done = subprocess.run([sys.executable, "-c", PEAK], input=data, capture_output=True, check=True)
    assert float(done.stdout) < most


def test_large_photographs_are_what_small_ones_are():
    """Converted in bands, of which a small one has one: each pixel as if it were alone."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1000, 4), dtype=np.uint8)
    whole = decode(encode(Image.fromarray(noise), compress_level=1))
    for top in (0, 1040, 1480):
        np.testing.assert_array_equal(
            whole[top : top + 20], decode(encode(Image.fromarray(noise[top : top + 20]), compress_level=1))
        )


def test_the_brightest_of_a_floating_point_tiff_may_be_in_any_band():
    values = np.full((1500, 1000), 5.0, np.float32)
    values[-1, -1] = 10.0
    assert decode(encode(Image.fromarray(values), "TIFF"))[[0, -1], [0, -1], 0].tolist() == [128, 255]


def test_formats_other_than_jpeg_are_decoded_once(monkeypatch):
    loads = []
    load = PngImageFile.load_end
    monkeypatch.setattr(PngImageFile, "load_end", lambda self: (loads.append(1), load(self)))
    photo = Photograph(encode(Image.fromarray(UPRIGHT)))
    assert photo.at(0.1) is photo.at(1.0)
    assert len(loads) == 1


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_size_is_that_of_the_upright_photograph(kind, orientation):
    photo = Photograph(oriented(STORED[orientation], orientation, kind))
    assert photo.size_px == (64, 32) == photo.at(1.0).shape[1::-1]
