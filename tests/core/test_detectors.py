"""Detectors of transformers, small and random but real: loaded as any, and equal to the libraries' own way."""

import numpy as np
import pytest
import torch
from PIL import Image

from l2r2.config import DetectorSettings, SegmenterSettings
from l2r2.errors import BackendError, ConfigError
from l2r2.localization.detecting import (
    CandidateLocalizer,
    DetectingLocalizer,
    OracleLocalizer,
    make_detecting_localizer,
)
from l2r2.localization.grounding_dino import GroundingDinoDetector, caption
from l2r2.localization.hub import load_checkpoint
from l2r2.localization.owl import OwlDetector, mean_direction
from l2r2.types import InformedLocalizer, Localizer
from tests.core.checkpoints import save_grounding_dino, save_owl, small_sam

WIDE = np.array(Image.effect_noise((150, 60), 90).convert("RGB"))
TALL = np.array(Image.effect_noise((50, 120), 90).convert("RGB"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("detectors")
    return {
        "grounding_dino": save_grounding_dino(place / "dino"),
        "owlvit": save_owl(place / "owlvit", 1),
        "owlv2": save_owl(place / "owlv2", 2),
    }


def settings(folders, name: str, **changes: object) -> DetectorSettings:
    given = {"name": name, "model": str(folders[name]), "texts": ("dog",), "box_threshold": 0.0, "min_side": 0.0}
    return DetectorSettings(**{**given, "nms_iou": 1.0, "max_detections": 1000, **changes})


def detector(folders, name: str, **changes: object):
    kind = GroundingDinoDetector if name == "grounding_dino" else OwlDetector
    return kind(load_checkpoint(str(folders[name])), settings(folders, name, **changes))


@pytest.mark.parametrize("photo", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("name", ["owlvit", "owlv2"])
def test_owl_equals_the_whole_model_and_its_own_post_processing(folders, name, photo):
    ours = detector(folders, name)
    checkpoint = load_checkpoint(str(folders[name]))
    inputs = checkpoint.processor(text=[["dog"]], images=photo, return_tensors="pt")
    with torch.inference_mode():
        outputs = checkpoint.model(**inputs)
    (theirs,) = checkpoint.processor.image_processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=[photo.shape[:2]]
    )
    same_boxes(ours.detect(photo, [["dog"]])[0], theirs["boxes"].numpy(), theirs["scores"].numpy(), photo)


@pytest.mark.parametrize("photo", [WIDE, TALL], ids=["wide", "tall"])
def test_grounding_dino_equals_its_own_post_processing(folders, photo):
    ours = detector(folders, "grounding_dino")
    checkpoint = load_checkpoint(str(folders["grounding_dino"]))
    inputs = checkpoint.processor(text="full dog.", images=photo, return_tensors="pt")
    with torch.inference_mode():
        outputs = checkpoint.model(**inputs)
    (theirs,) = checkpoint.processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[photo.shape[:2]]
    )
    assert len(theirs["scores"]) == 12
    same_boxes(ours.detect(photo, [["full dog"]])[0], theirs["boxes"].numpy(), theirs["scores"].numpy(), photo)


def same_boxes(regions, boxes: np.ndarray, scores: np.ndarray, photo: np.ndarray) -> None:
    """The regions are these boxes, clipped, without the empty ones, surest first."""
    clipped = np.clip(boxes, 0, [photo.shape[1], photo.shape[0]] * 2)
    real = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    order = np.argsort(-scores[real], kind="stable")
    assert len(regions) == real.sum() > 3
    assert len(np.unique(np.round(clipped[real], 1), axis=0)) > 3  # a constant head would prove nothing
    np.testing.assert_allclose([r.score for r in regions], scores[real][order], rtol=1e-4)
    ours = np.array([r.box_xyxy_px for r in regions])
    ties = np.diff(scores[real][order]) == 0
    if not ties.any():
        np.testing.assert_allclose(ours, clipped[real][order], atol=0.02)


def test_several_texts_of_owl_are_their_mean_direction(folders):
    owl = detector(folders, "owlv2")
    with torch.inference_mode():
        each = torch.stack([owl._query((text,)) for text in ("dog", "cat", "bird")])
        both = owl._query(("dog", "cat", "bird"))
    expected = each.mean(dim=0)
    torch.testing.assert_close(both, expected / expected.norm())
    assert not torch.allclose(both, each[0], atol=1e-3)


def test_the_mean_direction_ignores_lengths():
    found = mean_direction(torch.tensor([[3.0, 0.0], [0.0, 0.1]]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5]).sqrt())


def test_prompts_share_one_pass_of_owls_image_tower(folders):
    owl = detector(folders, "owlv2")
    passes = []
    owl._model.owlv2.vision_model.register_forward_hook(lambda *_: passes.append(1))
    found = owl.detect(WIDE, [["dog"], ["cat", "bird"], ["dog"]])
    assert len(passes) == 1
    assert [r.score for r in found[0]] == [r.score for r in found[2]] != [r.score for r in found[1]]


def test_captions_are_lower_case_and_closed_by_full_stops():
    assert caption(["Full Dog"]) == "full dog."
    assert caption(["animal", "Bird.", " insect"]) == "animal. bird. insect."


def test_grounding_dinos_texts_are_united_in_one_caption(folders):
    dino = detector(folders, "grounding_dino")
    together = dino.detect(WIDE, [["dog", "cat"]])[0]
    by_hand = dino._detect(WIDE, "dog. cat.")
    assert [r.box_xyxy_px for r in together] == [r.box_xyxy_px for r in by_hand]
    assert together[0].score != dino.detect(WIDE, [["dog"]])[0][0].score


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2", "owlvit"])
def test_a_meta_prompt_makes_a_localizer(folders, name):
    located = make_detecting_localizer(settings(folders, name, combine="best"))
    assert isinstance(located, Localizer)
    assert not isinstance(located, InformedLocalizer)
    photos = [WIDE, TALL]
    regions = located.locate(photos)
    for photo, region in zip(photos, regions, strict=True):
        assert region.box_xyxy_px[2] <= photo.shape[1]
        assert region.box_xyxy_px[3] <= photo.shape[0]
        (alone,) = located.locate([photo])
        assert alone.box_xyxy_px == region.box_xyxy_px


def test_the_union_holds_every_instance(folders):
    one = make_detecting_localizer(settings(folders, "owlv2", combine="union", max_detections=5)).locate([WIDE])[0]
    each = detector(folders, "owlv2", max_detections=5).detect(WIDE, [["dog"]])[0]
    assert one.box_xyxy_px == (
        min(r.box_xyxy_px[0] for r in each),
        min(r.box_xyxy_px[1] for r in each),
        max(r.box_xyxy_px[2] for r in each),
        max(r.box_xyxy_px[3] for r in each),
    )


def test_nothing_sure_enough_is_nothing(folders):
    assert make_detecting_localizer(settings(folders, "owlv2", box_threshold=0.9999)).locate([WIDE]) == [None]


def test_oracle_prompts_read_the_words_of_the_label(folders):
    oracle = make_detecting_localizer(settings(folders, "owlv2", texts=(), prompt="oracle", combine="best"))
    assert isinstance(oracle, OracleLocalizer)
    assert isinstance(oracle, InformedLocalizer)
    each = detector(folders, "owlv2")
    for words in ("dog", "mushroom"):
        region = oracle.locate_known(WIDE, {"words": words, "path": "x"})
        assert region.score == each.detect(WIDE, [[words]])[0][0].score


def test_candidates_have_a_region_each(folders):
    located = make_detecting_localizer(settings(folders, "owlv2", texts=(), prompt="candidates", combine="best"))
    assert isinstance(located, CandidateLocalizer)
    each = detector(folders, "owlv2")
    regions = located.locate_words(WIDE, ["dog", "cat", "bird"])
    assert [r.score for r in regions] == [each.detect(WIDE, [[w]])[0][0].score for w in ("dog", "cat", "bird")]


def test_sam_makes_the_regions_masks_and_the_box_is_the_masks(folders, tmp_path, monkeypatch):
    import segment_anything

    sam = small_sam()
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", small_sam)  # the published sizes are 375 MB up
    chosen = settings(
        folders, "owlv2", max_detections=3,
        segmenter=SegmenterSettings(model="vit_b", checkpoint=tmp_path / "sam.pth"),
    )  # fmt: skip
    located = make_detecting_localizer(chosen)
    assert isinstance(located, DetectingLocalizer)
    (region,) = located.locate([WIDE])
    assert region.mask.shape == WIDE.shape[:2]
    rows, columns = np.nonzero(region.mask)
    assert region.box_xyxy_px == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert located.key != make_detecting_localizer(chosen.model_copy(update={"segmenter": None})).key


def test_the_key_changes_with_weights_and_settings_and_is_short(folders):
    keys = {
        make_detecting_localizer(settings(folders, name, **changes)).key
        for name, changes in [
            ("owlv2", {}),
            ("owlvit", {}),
            ("owlv2", {"texts": ("cat",)}),
            ("owlv2", {"nms_iou": 0.5}),
        ]
    }
    assert len(keys) == 4
    assert all(len(key) <= 64 for key in keys)


@pytest.mark.parametrize("name", ["no/such-model", "/nowhere/at/all"])
def test_a_detector_that_cannot_be_had_is_one_clear_line(name):
    with pytest.raises(BackendError, match=r"^detector '.*' cannot be had: .*; give localizer\.model") as error:
        load_checkpoint(name)
    assert "\n" not in str(error.value)


def test_prompts_must_fit_their_kind(folders):
    with pytest.raises(ConfigError, match=r"without localizer\.texts"):
        make_detecting_localizer(settings(folders, "owlv2", texts=()))
    with pytest.raises(ConfigError, match=r'"oracle", which reads no localizer\.texts'):
        make_detecting_localizer(settings(folders, "owlv2", prompt="oracle"))
