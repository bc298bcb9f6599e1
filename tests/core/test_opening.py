"""A localizer put together from a manifest's words and its models' sessions; what does not fit is named."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from l2r2.config import DetectorSettings, SaliencySettings
from l2r2.errors import ArtifactError, ConfigError
from l2r2.localization import SaliencyLocalizer
from l2r2.localization.frozen import FrozenDetector, FrozenDetectorLocalizer, freeze_prompt
from l2r2.localization.opening import open_localizer
from l2r2.localization.preprocessing import Preprocessing
from l2r2.types import Localizer

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
KEEP = Preprocessing(fit="keep", size_px=(800, 1333), **PLAIN)
STRETCH = Preprocessing(fit="stretch", size_px=(32, 64), **PLAIN)
SAM = Preprocessing(fit="corner", size_px=(64, 64), rescale=1.0, **PLAIN)
DIGESTS = {"localizer": "0" * 64, "encoder": "1" * 64, "decoder": "2" * 64}


class Model:
    """A session of that many pixels that finds the middle, and whose masks are the left half of all."""

    def __init__(self, **inputs: Sequence[int | str]) -> None:
        self.inputs = inputs
        self.fed: list[tuple[int, ...]] = []

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert set(feed) == set(self.inputs)
        n = len(next(iter(feed.values())))
        if "boxes" in feed:
            masks = np.full((n, 1, 16, 16), -5, np.float32)
            masks[..., :8] = 5
            return {"masks": masks}
        (pixels,) = feed.values()
        self.fed.append(pixels.shape)
        middle = np.full((n, 1, 4), 0.5, np.float32)
        saliency = np.zeros((n, 1, *pixels.shape[2:]), np.float32)
        saliency[..., : pixels.shape[3] // 2] = 1
        scores = np.ones((n, 1), np.float32)
        return {"saliency": saliency, "embedding": saliency, "scores": scores, "boxes": middle}


def detector(preprocessing: Preprocessing = STRETCH, sam: Preprocessing | None = None) -> FrozenDetector:
    segmenter = None if sam is None else {"model": "vit_b", "checkpoint": "sam.pth"}
    settings = DetectorSettings(name="owlvit", model="m", texts=("dog",), segmenter=segmenter)
    prompt = freeze_prompt(["dog"], "m")
    return FrozenDetector(settings=settings, prompt=prompt, preprocessing=preprocessing, segmenter=sam)


def finding(height: int | str = 32, width: int | str = 64) -> Model:
    return Model(pixels=["n", 3, height, width])


def sam_models() -> dict[str, Model]:
    encoder = Model(pixels=["n", 3, 64, 64])
    return {"encoder": encoder, "decoder": Model(embedding=["n", 1, 64, 64], boxes=["n", 4])}


PHOTO = np.full((100, 200, 3), 200, np.uint8)


def test_saliency_is_opened_whatever_its_input_is_called():
    found = open_localizer(SaliencySettings(), {"localizer": Model(x=["n", 3, "h", "w"])}, DIGESTS, masks=False)
    assert isinstance(found, SaliencyLocalizer)
    (region,) = found.locate([PHOTO])
    assert region.box_xyxy_px == (0, 0, 100, 100)
    assert region.mask is None
    with_masks = open_localizer(SaliencySettings(), {"localizer": Model(x=["n", 3, "h", "w"])}, DIGESTS, masks=True)
    (region,) = with_masks.locate([PHOTO])
    assert region.mask.sum() == 100 * 100


def test_a_detector_is_opened_and_other_stages_are_left_alone():
    found = open_localizer(detector(), {"localizer": finding(), "FG": Model()}, DIGESTS, masks=False)
    assert isinstance(found, FrozenDetectorLocalizer)
    assert isinstance(found, Localizer)
    (region,) = found.locate([PHOTO])
    assert region.box_xyxy_px == (50, 25, 150, 75)


def test_a_detector_with_sam_gives_masks_wanted_or_not():
    for masks in (True, False):
        found = open_localizer(detector(sam=SAM), {"localizer": finding(), **sam_models()}, DIGESTS, masks=masks)
        (region,) = found.locate([PHOTO])
        assert region.mask.shape == (100, 200)
        assert region.box_xyxy_px == (0, 0, 100, 100)  # the mask's, not the detector's


def test_the_key_changes_with_each_file():
    keys = set()
    for changed in ({}, {"localizer": "9" * 64}, {"encoder": "9" * 64}, {"decoder": "9" * 64}):
        sessions = {"localizer": finding(), **sam_models()}
        keys.add(open_localizer(detector(sam=SAM), sessions, DIGESTS | changed, masks=True).key)
    assert len(keys) == 4
    assert max(map(len, keys)) <= 64


def test_another_size_changes_what_is_fed_and_the_key():
    model = Model(x=["n", 3, "h", "w"])
    keys = [
        open_localizer(SaliencySettings(), {"localizer": model}, DIGESTS, masks=False, size_px=size).key
        for size in (None, 256)
    ]
    assert keys[0] != keys[1]
    free = finding("h", "w")
    for size, shape in ((None, (1, 3, 666, 1333)), (400, (1, 3, 333, 666))):  # 1333 × 400 / 800 = 666.5, to even
        found = open_localizer(detector(KEEP), {"localizer": free}, DIGESTS, masks=False, size_px=size)
        found.locate([PHOTO])
        assert free.fed[-1] == shape
        keys.append(found.key)
    assert len(set(keys)) == 4
    open_localizer(detector(), {"localizer": finding()}, DIGESTS, masks=False, size_px=32)


@pytest.mark.parametrize(
    ("described", "size", "message"),
    [
        (SaliencySettings(), 100, r"localizer: size_px = 100: Input should be a multiple of 32"),
        (detector(), 64, "size_px is 64, but this detector was exported for 32 pixels and takes no other; leave it"),
        (detector(KEEP), 0, "localizer.size_px is 0; expected at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(described, size, message):
    with pytest.raises(ConfigError, match=message):
        open_localizer(described, {"localizer": finding()}, DIGESTS, masks=False, size_px=size)


def test_masks_that_nobody_can_give_are_refused():
    with pytest.raises(ConfigError, match="FG_M and BG_S need masks, but this detector was exported without SAM"):
        open_localizer(detector(), {"localizer": finding()}, DIGESTS, masks=True)


@pytest.mark.parametrize(
    ("described", "changes", "message"),
    [
        (detector(), {"localizer": None}, "there is no localizer model but decoder, encoder; export it again"),
        (detector(sam=SAM), {"decoder": None}, "there is no decoder model but encoder, localizer; export it again"),
        (detector(), {"localizer": Model(images=["n", 3, 32, 64])}, "localizer model takes images; expected pixels"),
        (detector(sam=SAM), {"decoder": finding()}, "decoder model takes pixels; expected boxes, embedding: it is ano"),
        (detector(sam=SAM), {"encoder": finding()}, r"encoder model takes pixels \['n', 3, 32, 64\]; expected 64 × 64"),
        (detector(), {"localizer": finding(48, 48)}, r"takes pixels \['n', 3, 48, 48\]; expected 32 × 64 as described"),
        (SaliencySettings(), {"localizer": Model(a=[1], b=[1])}, "localizer model takes a, b; expected a single input"),
        (SaliencySettings(), {"localizer": finding(256, 256)}, r"\[.*256, 256\]; expected 320 × 320 as described"),
    ],
)
def test_wrong_sessions_are_named(described, changes, message):
    sessions = {"localizer": finding(), **sam_models(), **changes}
    with pytest.raises(ArtifactError, match=message):
        open_localizer(described, {k: v for k, v in sessions.items() if v is not None}, DIGESTS, masks=False)
