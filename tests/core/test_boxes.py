"""Box conventions and the choice of boxes, against torchvision and the published processors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import nms

from l2r2.config import DetectorSettings
from l2r2.localization.boxes import corners, from_image, from_padded_square, mask_box, overlap, select, unite
from l2r2.types import Region

SIZES = [(640, 480), (300, 900), (500, 500)]


def settings(**changes: object) -> DetectorSettings:
    return DetectorSettings(**{"name": "owlv2", "model": "x", "texts": ("dog",), "min_side": 0.0, **changes})


def boxes(seed: int, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    low = rng.random((n, 2)) * 60
    return np.concatenate([low, low + 5 + rng.random((n, 2)) * 35], axis=1), rng.random(n)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", ["owlv2", "owlvit", "grounding_dino"])
def test_conversions_are_those_of_the_published_processors(name, width, height):
    from types import SimpleNamespace

    import transformers as t

    shares = np.random.default_rng(0).random((6, 4)).astype(np.float32)
    logits = torch.full((1, 6, 1), 5.0)
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.from_numpy(shares)[None], input_ids=torch.zeros(1, 1))
    target = [(height, width)]
    if name == "grounding_dino":
        from transformers.image_transforms import center_to_corners_format

        theirs = center_to_corners_format(torch.from_numpy(shares)).numpy() * [width, height, width, height]
    else:
        processor = {"owlv2": t.Owlv2ImageProcessor, "owlvit": t.OwlViTImageProcessor}[name]()
        theirs = processor.post_process_object_detection(outputs, 0.1, target)[0]["boxes"].numpy()
    ours = (from_padded_square if name == "owlv2" else from_image)(shares, width, height)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)


def test_corners():
    np.testing.assert_allclose(corners(np.array([[0.5, 0.4, 0.2, 0.1]])), [[0.4, 0.35, 0.6, 0.45]])


@given(seed=st.integers(0, 300), iou=st.floats(0.05, 0.95))
def test_suppression_is_torchvisions(seed, iou):
    found, scores = boxes(seed)
    kept = nms(torch.from_numpy(found), torch.from_numpy(scores), iou).numpy()
    ours = select(found, scores, 100, 100, settings(box_threshold=0.0, nms_iou=iou, max_detections=100))
    assert [region.box_xyxy_px for region in ours] == [tuple(found[i]) for i in kept]


def test_overlap_of_halves():
    found = overlap(np.array([0, 0, 10, 10.0]), np.array([[5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30.0]]))
    np.testing.assert_allclose(found, [1 / 3, 1, 0])


def test_unsure_boxes_and_those_that_are_no_number_are_nothing():
    found = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [np.nan, 0, 50, 10], [60, 0, 70, 10.0]])
    chosen = select(found, np.array([0.5, 0.2, 0.9, np.nan]), 100, 100, settings(box_threshold=0.3))
    assert [region.box_xyxy_px for region in chosen] == [(0, 0, 10, 10)]


def test_boxes_are_clipped_and_the_outside_is_nothing():
    found = np.array([[-10, -5, 50, 60], [120, 0, 140, 10.0]])
    chosen = select(found, np.array([0.9, 0.8]), 100, 40, settings())
    assert [region.box_xyxy_px for region in chosen] == [(0, 0, 50, 40)]


def test_a_minimum_size_is_a_share_of_each_side():
    found = np.array([[0, 0, 10, 30], [0, 0, 30, 5.0]])  # of 200 × 100: 5 % and 30 %; 15 % and 5 %
    chosen = select(found, np.array([0.9, 0.8]), 200, 100, settings(min_side=0.06))
    assert chosen == []
    assert len(select(found, np.array([0.9, 0.8]), 200, 100, settings(min_side=0.04))) == 2


def test_no_more_boxes_than_asked_surest_first():
    found = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10.0]])
    chosen = select(found, np.array([0.5, 0.9, 0.7]), 100, 100, settings(max_detections=2))
    assert [region.score for region in chosen] == [0.9, 0.7]


def test_no_boxes():
    assert select(np.zeros((0, 4)), np.zeros(0), 10, 10, settings()) == []


def test_a_union_has_the_box_around_all_the_joined_mask_and_the_highest_score():
    a, b = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    a[2:5, 3:6], b[10:12, 20:25] = True, True
    both = unite([Region((3, 2, 6, 5), 0.4, a), Region((20, 10, 25, 12), 0.8, b)])
    assert both.box_xyxy_px == (3, 2, 25, 12)
    assert both.score == 0.8
    np.testing.assert_array_equal(both.mask, a | b)


def test_a_union_with_a_maskless_part_has_no_mask():
    both = unite([Region((0, 0, 2, 2), 0.4, np.ones((4, 4), bool)), Region((1, 1, 3, 3), 0.8)])
    assert both.mask is None


def test_the_box_of_a_mask():
    mask = np.zeros((7, 9), bool)
    mask[2, 3] = mask[5, 7] = True
    assert mask_box(mask) == (3, 2, 8, 6)
    assert mask_box(np.zeros((7, 9), bool)) is None
