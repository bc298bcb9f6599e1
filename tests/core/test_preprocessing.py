"""What a network is fed: as the processors of transformers and Segment Anything make it, without torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn.functional import interpolate

from l2r2.localization.preprocessing import Preprocessing, linear_taps, network_input, network_size, resample

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def photo(height: int, width: int) -> np.ndarray:
    """Noise, a ramp and a checked corner: edges enough for any filter to overshoot."""
    pixels = np.array(Image.effect_noise((width, height), 90).convert("RGB"))
    pixels[..., 1] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[-9:, -9:, 2] = np.indices((9, 9)).sum(axis=0)[-min(9, height) :, -min(9, width) :] % 2 * 255
    return pixels


SIZES = [(60, 150), (150, 60), (97, 97), (48, 48), (333, 517), (31, 47), (20, 400)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["owlv2", "owlvit", "grounding_dino"])
def test_pixels_are_those_of_the_processor(name, size):
    import transformers as t

    square = {"height": 48, "width": 48}
    processor, settings = {
        "owlv2": (t.Owlv2ImageProcessor(size=square), Preprocessing(fit="square", size_px=(48, 48), **CLIP)),
        "owlvit": (
            t.OwlViTImageProcessor(size=square),
            Preprocessing(fit="stretch", size_px=(48, 48), resample="bicubic", **CLIP),
        ),
        "grounding_dino": (
            t.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 107}),
            Preprocessing(fit="keep", size_px=(64, 107), **IMAGENET),
        ),
    }[name]
    given = photo(*size)
    wanted = processor(images=Image.fromarray(given), return_tensors="np")["pixel_values"][0]
    got = network_input(given, settings)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, wanted, atol=5e-5)  # one grey level is 0.015


@pytest.mark.parametrize("size", [(60, 150), (150, 60), (97, 97), (1100, 700)], ids=str)
def test_sams_pixels_are_those_of_its_predictor(size):
    settings = Preprocessing(
        fit="corner", size_px=(1024, 1024), rescale=1.0, mean=(123.7, 116.3, 103.5), std=(58, 57, 56)
    )
    given = photo(*size)
    scaled = ResizeLongestSide(1024).apply_image(given)
    wanted = np.zeros((3, 1024, 1024), np.float32)
    values = (scaled.astype(np.float32) - np.float32(settings.mean)) / np.float32(settings.std)
    wanted[:, : scaled.shape[0], : scaled.shape[1]] = values.transpose(2, 0, 1)
    assert network_size(*size, settings) == scaled.shape[:2]
    np.testing.assert_allclose(network_input(given, settings), wanted, atol=1e-6)


@given(st.integers(16, 5000), st.integers(16, 5000), st.integers(32, 800), st.integers(32, 1333))
def test_sizes_that_keep_the_aspect_are_the_processors(height, width, shortest, longest):
    from transformers.image_transforms import get_size_with_aspect_ratio

    settings = Preprocessing(fit="keep", size_px=(shortest, longest), **PLAIN)
    assert network_size(height, width, settings) == get_size_with_aspect_ratio((height, width), shortest, longest)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_padding_has_its_value(value):
    settings = Preprocessing(fit="square", size_px=(24, 24), pad_value=value, **PLAIN)
    given = photo(40, 100)
    padded = np.full((100, 100, 3), round(value * 255), np.uint8)
    padded[:40] = given
    wanted = network_input(padded, settings)  # a square needs no padding
    np.testing.assert_allclose(network_input(given, settings), wanted, atol=2e-3 if value == 0.5 else 1e-5)  # 127.5
    assert wanted[:, -1].mean() == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize(
    ("source", "target"), [((7, 5), (16, 31)), ((64, 64), (20, 9)), ((5, 9), (5, 9)), ((1, 4), (3, 4))]
)
def test_interpolation_is_torchs(source, target):
    values = np.random.default_rng(0).standard_normal(source).astype(np.float32)
    wanted = interpolate(torch.from_numpy(values)[None, None], target, mode="bilinear", align_corners=False)[0, 0]
    taps = [linear_taps(a, b) for a, b in zip(source, target, strict=True)]
    np.testing.assert_allclose(resample(values, *taps), wanted.numpy(), atol=1e-6)


def test_settings_that_mean_nothing_are_refused():
    for wrong in ({"size_px": (0, 48)}, {"std": (1, 0, 1)}, {"fit": "crop"}, {"resample": None}, {"more": 1}):
        with pytest.raises(ValidationError):
            Preprocessing.model_validate({"fit": "stretch", "size_px": (48, 48), **PLAIN, **wrong})
