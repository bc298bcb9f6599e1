"""Frozen detectors and SAM on sessions, without torch: preprocessing as the processors', regions, errors."""

import hashlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from l2r2.config import DetectorSettings, SaliencySettings
from l2r2.errors import BackendError, InputError
from l2r2.localization.frozen import (
    AT_ONCE,
    DeployedLocalizer,
    FrozenDetector,
    FrozenDetectorLocalizer,
    FrozenPrompt,
    SessionSegmenter,
    freeze_prompt,
    prompt_digest,
)
from l2r2.localization.preprocessing import Preprocessing
from l2r2.types import Localizer, Region

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PROMPT = freeze_prompt(["full dog", "cat"], "model")
WITH_SAM = {"model": "vit_b", "checkpoint": "sam.pth"}


def photo(height: int, width: int) -> np.ndarray:
    return np.array(Image.effect_noise((width, height), 90).convert("RGB"))


def test_a_prompt_is_known_by_its_texts():
    assert PROMPT.digest == hashlib.sha256(b'["full dog", "cat"]').hexdigest()
    assert PROMPT.texts == ("full dog", "cat")
    assert len({prompt_digest(texts) for texts in (["a", "b"], ["a b"], ["b", "a"], ["a, b"])}) == 4
    assert freeze_prompt(("full dog", "cat"), "model") == PROMPT


@pytest.mark.parametrize("texts", [[], ["dog", " "], [""]])
def test_an_empty_prompt_is_refused(texts):
    with pytest.raises(InputError, match=r"^the prompt .* has an empty part; expected texts"):
        freeze_prompt(texts, "model")


def test_a_prompt_with_another_digest_is_refused():
    with pytest.raises(
        InputError, match=r"^the prompt's digest is 000000000000…; expected .*: one of them was changed"
    ):
        FrozenPrompt(("dog",), "0" * 64, "model")


MANIFEST = TypeAdapter(DeployedLocalizer)
"""As a manifest's field."""


@pytest.mark.parametrize("sam", [False, True])
def test_what_a_manifest_says_comes_back_from_json(sam):
    given = described(sam=SAM if sam else None)
    back = MANIFEST.validate_json(MANIFEST.dump_json(given))
    assert back == given
    assert isinstance(back, FrozenDetector)
    assert back.digest() == given.digest()
    saliency = SaliencySettings(size_px=256)
    assert MANIFEST.validate_json(MANIFEST.dump_json(saliency)) == saliency
    assert MANIFEST.validate_json("{}") == SaliencySettings()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("prompt", "texts"), ["wolf"], "detector.prompt.*the prompt's digest is .*: one of them was changed"),
        (("prompt", "digest"), "0" * 64, "detector.prompt.*the prompt's digest is 000000000000…; expected"),
        (("prompt", "more"), 1, "detector.prompt.more"),
        (("settings", "texts"), ["wolf"], r"look for \('wolf',\) by prompt 'meta', but \('full dog', 'cat'\) was froz"),
        (("settings", "prompt"), "oracle", "by prompt 'oracle', but"),
        (("settings", "segmenter"), WITH_SAM, "only one of settings.segmenter and segmenter is there"),
        (("preprocessing", "fit"), "crop", "detector.preprocessing.fit"),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(place, value, message):
    values = described().model_dump(mode="json")
    part, key = place
    values[part][key] = value
    with pytest.raises(ValidationError, match=rf"(?s){message}"):
        MANIFEST.validate_python(values)


class Drawn:
    """A detector's session whose boxes are drawn in the photograph: the first pixels of row i say all of box i."""

    def __init__(self, **changes: object) -> None:
        self.batches: list[int] = []
        self.changes = changes

    def infer(self, feed):
        (pixels,) = feed.values()
        assert list(feed) == ["pixels"]
        self.batches.append(len(pixels))
        values = np.rint(pixels[:, 0, :3, :5] * 255) / 100
        outputs = {"scores": values[:, :, 4], "boxes": values[:, :, :4]}
        return {name: values for name, values in {**outputs, **self.changes}.items() if values is not None}


def drawn(*rows: tuple[int, ...], height: int = 32, width: int = 64) -> np.ndarray:
    """A photograph that says its boxes (cx cy w h) and scores, in hundredths."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for i, row in enumerate(rows):
        pixels[i, : len(row)] = np.array(row)[:, None]
    return pixels


def settings(**changes: object) -> DetectorSettings:
    return DetectorSettings(**{"name": "owlvit", "model": "m", "box_threshold": 0.2, **changes})


def described(*, prompt=PROMPT, preprocessing=None, sam=None, **changes: object) -> FrozenDetector:
    chosen = settings(texts=prompt.texts, segmenter=None if sam is None else WITH_SAM, **changes)
    return FrozenDetector(settings=chosen, prompt=prompt, preprocessing=preprocessing or AS_IT_IS, segmenter=sam)


AS_IT_IS = Preprocessing(fit="stretch", size_px=(32, 64), **PLAIN)


def localizer(session=None, *, preprocessing: Preprocessing = AS_IT_IS, prompt=PROMPT, weights="0" * 64, **changes):
    segmenter = changes.pop("segmenter", None)
    detector = described(prompt=prompt, preprocessing=preprocessing, **changes)
    return FrozenDetectorLocalizer(session or Drawn(), detector, weights, segmenter)


LEFT, RIGHT, FAINT = (25, 50, 50, 100, 60), (75, 50, 20, 50, 80), (50, 50, 10, 10, 10)


def test_boxes_become_regions_in_the_photographs_pixels():
    found = localizer()
    assert isinstance(found, Localizer)
    (regions,) = found.instances([drawn(LEFT, RIGHT, FAINT)])
    assert [r.score for r in regions] == pytest.approx([0.8, 0.6])
    np.testing.assert_allclose(regions[0].box_xyxy_px, (0.65 * 64, 0.25 * 32, 0.85 * 64, 0.75 * 32), rtol=1e-5)
    np.testing.assert_allclose(regions[1].box_xyxy_px, (0, 0, 32, 32), atol=1e-4)


def test_shares_of_the_padded_square_are_of_the_longer_side():
    square = Preprocessing(fit="square", size_px=(64, 64), **PLAIN)
    (regions,) = localizer(preprocessing=square).instances([drawn(RIGHT)])
    np.testing.assert_allclose(regions[0].box_xyxy_px, (0.65 * 64, 0.25 * 64, 0.85 * 64, 32), rtol=1e-5)


@pytest.mark.parametrize(("combine", "left"), [("best", 0.65 * 64), ("union", 0.0)])
def test_the_surest_or_all_are_located(combine, left):
    (region,) = localizer(combine=combine).locate([drawn(LEFT, RIGHT, FAINT)])
    assert region.box_xyxy_px[0] == pytest.approx(left, abs=1e-4)
    assert region.score == pytest.approx(0.8)


def test_nothing_sure_enough_is_nothing():
    assert localizer().locate([drawn(FAINT)]) == [None]
    assert localizer().locate([]) == []


def test_photographs_of_one_size_share_a_pass_and_each_gets_its_own():
    session = Drawn()
    keep = Preprocessing(fit="keep", size_px=(32, 96), **PLAIN)
    wide, tall = [drawn((10 * i, 50, 30, 30, 90)) for i in range(6)], drawn(RIGHT, height=64, width=32)
    photos = [*wide[:3], tall, *wide[3:], *wide[:3]]
    together = localizer(session, preprocessing=keep).locate(photos)
    assert session.batches == [3, 1, AT_ONCE, 2]
    alone = [localizer(preprocessing=keep).locate([one])[0] for one in photos]
    assert [r.box_xyxy_px for r in together] == [r.box_xyxy_px for r in alone]
    assert len({r.box_xyxy_px for r in together}) == 7


class Halves:
    """A segmenter: the left half of each box, nothing of a box that starts at 0."""

    key = "halves"

    def masks(self, photo, regions):
        masks = [np.zeros(photo.shape[:2], bool) for _ in regions]
        for mask, region in zip(masks, regions, strict=True):
            x0, y0, x1, y1 = (round(v) for v in region.box_xyxy_px)
            mask[y0:y1, x0 : (x0 + x1) // 2] = x0 > 0
        return masks


def test_masks_make_the_box_and_empty_ones_are_nothing():
    found = localizer(segmenter=Halves())
    region, none = found.locate([drawn(LEFT, RIGHT), drawn(LEFT)])
    assert none is None
    assert region.box_xyxy_px == (42, 8, 48, 24)
    assert region.mask.shape == (32, 64)
    assert region.mask.sum() == 6 * 16
    assert found.key.endswith("-halves")


def test_the_key_changes_with_all_that_changes_regions_and_is_short():
    others = [
        localizer(),
        localizer(weights="1" * 64),
        localizer(prompt=freeze_prompt(["cat"], "model")),
        localizer(preprocessing=AS_IT_IS.model_copy(update={"resample": "bicubic"})),
        localizer(nms_iou=0.5),
        localizer(segmenter=Halves()),
    ]
    assert len({each.key for each in others}) == len(others)
    segmenter = SessionSegmenter(Drawn(), Drawn(), AS_IT_IS, "0" * 64)
    assert len(localizer(name="grounding_dino", segmenter=segmenter).key) <= 64


@pytest.mark.parametrize("name", ["scores", "boxes"])
def test_outputs_that_are_not_finite_are_an_error(name):
    broken = {"scores": np.full((1, 3), np.nan), "boxes": np.full((1, 3, 4), np.inf)}
    with pytest.raises(BackendError, match=rf"^the detector gave {name} that are not finite; its export or its precis"):
        localizer(Drawn(**{name: broken[name]})).locate([drawn(LEFT)])


def test_a_session_of_another_model_is_named():
    with pytest.raises(BackendError, match=r"^the detector has no output 'boxes' but scores; give a session of an exp"):
        localizer(Drawn(boxes=None)).locate([drawn(LEFT)])
    for changes in (
        {"boxes": np.zeros((1, 2, 4))},
        {"scores": np.zeros((2, 3))},
        {"scores": np.zeros(1)},
        {"scores": np.zeros((1, 3, 2))},
    ):
        with pytest.raises(
            BackendError, match=r'^the detector gave scores .* for 1 photographs; expected "n m" and "n'
        ):
            localizer(Drawn(**changes)).locate([drawn(LEFT)])


SAM = Preprocessing(fit="corner", size_px=(64, 64), rescale=1.0, **PLAIN)


class Encoder:
    """Its embedding is the mean of the photograph."""

    def __init__(self, **outputs: np.ndarray) -> None:
        self.calls, self.outputs = 0, outputs

    def infer(self, feed):
        self.calls += 1
        return self.outputs or {"embedding": feed["pixels"].mean(axis=(2, 3), keepdims=True)}


class Decoder:
    """Masks of 16 × 16 that are the box itself; remembers what it was asked."""

    def __init__(self, masks: np.ndarray | None = None) -> None:
        self.boxes: list[np.ndarray] = []
        self.masks = masks

    def infer(self, feed):
        assert len(feed["embedding"]) == len(feed["boxes"])
        self.boxes.append(feed["boxes"])
        if self.masks is not None:
            return {"masks": self.masks}
        x = np.arange(16) * 4 + 2.0
        x0, y0, x1, y1 = feed["boxes"].T[..., None]
        inside = ((x > y0) & (x < y1))[:, :, None] & ((x > x0) & (x < x1))[:, None]
        return {"masks": np.where(inside, 5.0, -5.0)[:, None].astype(np.float32)}


def test_masks_come_back_in_the_photographs_frame_and_it_is_encoded_once():
    encoder, decoder = Encoder(), Decoder()
    segmenter = SessionSegmenter(encoder, decoder, SAM, "0" * 64)
    wide = photo(100, 200)  # scaled by 0.32
    regions = [Region((25.0, 25.0, 100.0, 75.0), 0.9)] * 18 + [Region((150.0, 0.0, 200.0, 50.0), 0.5)]
    masks = segmenter.masks(wide, regions)
    assert encoder.calls == 1
    assert [len(boxes) for boxes in decoder.boxes] == [16, 3]
    np.testing.assert_allclose(decoder.boxes[0][0], [8, 8, 32, 24])
    np.testing.assert_allclose(decoder.boxes[1][2], [48, 0, 64, 16])
    rows, columns = np.nonzero(masks[0])
    np.testing.assert_allclose(
        (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), (25, 25, 100, 75), atol=1
    )
    assert masks[0].shape == (100, 200)
    assert masks[0].dtype == bool
    assert masks[18][10, 180]
    assert not masks[18][60, 180]
    assert segmenter.masks(wide, []) == []
    assert encoder.calls == 1


def test_a_broken_segmenter_is_named():
    regions = [Region((0, 0, 9, 9), 0.9)]
    for encoder, decoder, message in (
        (Encoder(embedding=np.array([np.nan])), Decoder(), "SAM encoder gave embedding that are not finite"),
        (Encoder(x=np.zeros(1)), Decoder(), "SAM encoder has no output 'embedding' but x"),
        (Encoder(), Decoder(np.zeros((3, 1, 4, 4))), r"SAM decoder gave masks \(3, 1, 4, 4\) for 1 boxes; expected"),
    ):
        with pytest.raises(BackendError, match=message):
            SessionSegmenter(encoder, decoder, SAM, "0" * 64).masks(photo(20, 30), regions)


def save_detector(path) -> None:
    """A detector as an ONNX file: one box, the middle; its score is the photograph's mean."""
    constants = {"box": np.array([[[0.5, 0.5, 0.5, 0.5]]], np.float32), "rest": np.array([1, 4], np.int64)}
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Flatten", ["mean"], ["scores"]),
        helper.make_node("Shape", ["pixels"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("Expand", ["box", "shape"], ["boxes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 32, 64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("scores", "boxes")],
        [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


SERVED = """
import sys
from pathlib import Path
import numpy as np
from l2r2.config import DetectorSettings
from l2r2.localization.opening import open_localizer
from l2r2.localization.frozen import FrozenDetector, freeze_prompt
from l2r2.localization.preprocessing import Preprocessing
from l2r2.runtimes import OnnxRuntimeSession
kind = Preprocessing(fit="stretch", size_px=(32, 64), mean=(0, 0, 0), std=(1, 1, 1))
settings = DetectorSettings(name="owlvit", model="m", texts=("dog",), box_threshold=0.1)
session = OnnxRuntimeSession(Path(sys.argv[1]))
described = FrozenDetector(settings=settings, prompt=freeze_prompt(["dog"], "m"), preprocessing=kind)
found = open_localizer(described, {"localizer": session}, {"localizer": "0" * 64}, masks=False)
(region,) = found.locate([np.full((100, 200, 3), 51, np.uint8)])
print(region.box_xyxy_px, round(region.score, 4))
print(sorted({"torch", "torchvision", "transformers", "tokenizers", "segment_anything"} & set(sys.modules)))
"""


def test_serving_needs_no_torch_and_no_transformers(tmp_path):
    save_detector(tmp_path / "detector.onnx")
    command = [sys.executable, "-W", "error", "-c", SERVED, str(tmp_path / "detector.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["(50.0, 25.0, 150.0, 75.0) 0.2", "[]"]
