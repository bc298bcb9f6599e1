"""Detectors of transformers, small and random but real: loaded as any, and equal to the libraries' own way."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from l2r2.config import DetectorSettings, SegmenterSettings
from l2r2.errors import BackendError, BackendMissing, ConfigError, DatasetError
from l2r2.localization.detecting import (
    CandidateLocalizer,
    DetectingLocalizer,
    OracleLocalizer,
    make_detecting_localizer,
)
from l2r2.localization.grounding_dino import GroundingDinoDetector, caption
from l2r2.localization.hub import load_checkpoint
from l2r2.localization.owl import OwlDetector, mean_direction
from l2r2.types import InformedLocalizer, Localizer, Region
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
    (theirs,) = checkpoint.processor.post_process_grounded_object_detection(
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
    assert np.diff(scores[real][order]).all()  # of equals any could be first
    np.testing.assert_allclose(ours, clipped[real][order], atol=0.02)


def test_several_texts_of_owl_are_their_mean_direction(folders):
    owl = detector(folders, "owlv2")
    with torch.inference_mode():
        each = torch.stack([owl.query((text,)) for text in ("dog", "cat", "bird")])
        both = owl.query(("dog", "cat", "bird"))
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


def test_a_label_that_is_too_long_for_owl_is_cut(folders):
    owl = detector(folders, "owlvit")
    with torch.inference_mode():
        found = owl.query(("a b c d e f g h i j k l m n o p q r s t",))
        cut = owl.query(("a b c d e f g h i j k l m n",))  # 14 letters, start and end: the 16 places of the tower
        torch.testing.assert_close(found, cut)
        assert not torch.allclose(found, owl.query(("a b c d e f g h i j k l m",)), atol=1e-3)


def test_captions_are_lower_case_and_closed_by_full_stops():
    assert caption(["Full Dog"]) == "full dog."
    assert caption(["animal", "Bird.", " insect"]) == "animal. bird. insect."
    assert caption(["St. Bernard"]) == "st bernard."  # one thing, not two


def test_grounding_dinos_texts_are_united_in_one_caption(folders):
    dino = detector(folders, "grounding_dino")
    together, alone = dino.detect(WIDE, [["dog", "cat"], ["dog"]])
    checkpoint = load_checkpoint(str(folders["grounding_dino"]))
    with torch.inference_mode():
        outputs = checkpoint.model(**checkpoint.processor(text="dog. cat.", images=WIDE, return_tensors="pt"))
    tokens = outputs.logits[0].sigmoid()
    assert together[0].score == pytest.approx(float(tokens.max()), rel=1e-4)
    assert together[0].score != alone[0].score


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
    with pytest.raises(DatasetError, match=r"^x has no label to prompt with"):
        oracle.locate_known(WIDE, {"words": "", "path": "x"})


def test_texts_are_templates_for_words(folders):
    texts, words = ("full {}", "{{}} or a {}"), "dog {0}"
    each = detector(folders, "owlv2").detect(WIDE, [["full dog {0}", "{dog {0}} or a dog {0}"]])[0][0]
    oracle = make_detecting_localizer(settings(folders, "owlv2", texts=texts, prompt="oracle", combine="best"))
    assert oracle.locate_known(WIDE, {"words": words}).score == each.score
    ones = make_detecting_localizer(settings(folders, "owlv2", texts=texts, prompt="candidates", combine="best"))
    assert [r.score for r in ones.locate_words(WIDE, [words])] == [each.score]


def test_candidates_have_a_region_each(folders):
    located = make_detecting_localizer(settings(folders, "owlv2", texts=(), prompt="candidates", combine="best"))
    assert isinstance(located, CandidateLocalizer)
    each = detector(folders, "owlv2")
    regions = located.locate_words(WIDE, ["dog", "cat", "bird"])
    assert [r.score for r in regions] == [each.detect(WIDE, [[w]])[0][0].score for w in ("dog", "cat", "bird")]
    assert located.locate_words(WIDE, []) == []


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_threads_that_share_a_localizer_get_each_its_own_region(folders, name):
    chosen = settings(folders, name, texts=(), prompt="candidates", combine="best")
    jobs = [(WIDE, "dog"), (TALL, "cat"), (WIDE, "full bird"), (TALL, "insect")] * 2
    alone = make_detecting_localizer(chosen)
    expected = [alone.locate_words(photo, [words])[0].score for photo, words in jobs]
    shared = make_detecting_localizer(chosen)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: shared.locate_words(job[0], [job[1]])[0].score, jobs))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


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
    assert len(located.key.replace("owlv2", "grounding_dino")) <= 64


class Found:
    """A detector that says the same of every photograph."""

    key = "found"

    def __init__(self, *prompts: list[Region]) -> None:
        self.prompts = list(prompts)

    def detect(self, photo, prompts):
        return self.prompts


class Drawn:
    """A segmenter whose mask is the middle of the box, and nothing for a box that starts at 0."""

    key = "drawn"

    def masks(self, photo, regions):
        masks = [np.zeros(photo.shape[:2], bool) for _ in regions]
        for mask, region in zip(masks, regions, strict=True):
            x0, y0, x1, y1 = (int(v) for v in region.box_xyxy_px)
            mask[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = x0 > 0
        return masks


EMPTY, LEFT, RIGHT = Region((0, 0, 9, 9), 0.9), Region((10, 10, 20, 20), 0.8), Region((30, 5, 50, 25), 0.7)


def test_masks_go_to_their_own_prompts_and_empty_ones_are_nothing(folders):
    chosen = settings(folders, "owlv2", combine="union")
    both = CandidateLocalizer(Found([EMPTY, LEFT], [], [EMPTY], [LEFT, RIGHT]), Drawn(), chosen)
    one, none, empty, two = both.locate_words(WIDE, ["a", "b", "c", "d"])
    assert (one.box_xyxy_px, one.score, int(one.mask.sum())) == ((11, 11, 19, 19), 0.8, 8 * 8)
    assert (none, empty) == (None, None)
    assert (two.box_xyxy_px, two.score, int(two.mask.sum())) == ((11, 6, 49, 24), 0.8, 8 * 8 + 18 * 18)


def test_the_best_alone_is_segmented_where_one_is_asked_for(folders):
    best = CandidateLocalizer(Found([LEFT, RIGHT]), Drawn(), settings(folders, "owlv2", combine="best"))
    (region,) = best.locate_words(WIDE, ["a"])
    assert (region.box_xyxy_px, int(region.mask.sum())) == ((11, 11, 19, 19), 8 * 8)


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


def test_without_transformers_its_installation_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendMissing, match=r"run: pip install 'l2r2\[detectors\]'$"):
        load_checkpoint("any")


def broken_copy(folders, tmp_path):
    copy = shutil.copytree(folders["owlv2"], tmp_path / "broken")
    return copy, copy / "model.safetensors"


def test_weights_that_are_cut_off_are_refused(folders, tmp_path):
    copy, weights = broken_copy(folders, tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackendError, match=r"^detector '.*broken' cannot be had: .*; give localizer\.model"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize("change", ["missing", "of another size"])
def test_weights_that_would_be_drawn_at_random_are_refused(folders, tmp_path, change):
    copy, weights = broken_copy(folders, tmp_path)
    state = load_file(weights)
    bias = state.pop("box_head.dense0.bias")
    if change == "of another size":
        state["box_head.dense0.bias"] = bias[:3].clone()
    save_file(state, weights, metadata={"format": "pt"})
    reason = r"its weights lack box_head\.dense0\.bias" if change == "missing" else ".*"
    with pytest.raises(BackendError, match=rf"^detector '.*broken' cannot be had: {reason}; give localizer\.model"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize("name", ["owlv2", "grounding_dino"])
def test_a_folder_without_a_vocabulary_is_refused(folders, tmp_path, name):
    copy = shutil.copytree(folders[name], tmp_path / "broken")
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt"):
        (copy / file).unlink(missing_ok=True)
    with pytest.raises(BackendError, match="its tokenizer has no words"):
        load_checkpoint(str(copy))


def test_weights_in_pickles_are_refused(folders, tmp_path):
    copy, weights = broken_copy(folders, tmp_path)
    torch.save(load_file(weights), copy / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(BackendError, match="cannot be had"):
        load_checkpoint(str(copy))


def test_half_precision_is_computed_in_full(folders, tmp_path):
    checkpoint = load_checkpoint(str(folders["owlv2"]))
    checkpoint.model.half().save_pretrained(tmp_path / "half")
    checkpoint.processor.save_pretrained(tmp_path / "half")
    assert load_checkpoint(str(tmp_path / "half")).model.dtype == torch.float32
    located = make_detecting_localizer(settings({"owlv2": tmp_path / "half"}, "owlv2", combine="best"))
    assert located.locate([WIDE])[0] is not None


def test_the_key_changes_with_any_file_of_the_folder(folders, tmp_path):
    copy = shutil.copytree(folders["owlv2"], tmp_path / "copy")
    before = load_checkpoint(str(copy)).key
    assert before == load_checkpoint(str(folders["owlv2"])).key
    state = load_file(copy / "model.safetensors")
    state["box_head.dense0.bias"] += 1
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_checkpoint(str(copy)).key != before


@pytest.mark.parametrize(("name", "files"), [("owlv2", "owlvit"), ("owlvit", "owlv2"), ("owlv2", "grounding_dino")])
def test_a_model_of_another_name_is_refused(folders, name, files):
    with pytest.raises(ConfigError, match=rf'^localizer\.name is "{name}", but localizer\.model .* is of kind '):
        make_detecting_localizer(settings(folders, name, model=str(folders[files])))


def test_prompts_must_fit_their_kind(folders):
    with pytest.raises(ConfigError, match=r"without localizer\.texts"):
        make_detecting_localizer(settings(folders, "owlv2", texts=()))
    with pytest.raises(ConfigError, match=r'\'full \{\}\', but prompt "meta"'):
        make_detecting_localizer(settings(folders, "owlv2", texts=("dog", "full {}")))
    for prompt in ("oracle", "candidates"):
        with pytest.raises(ConfigError, match=rf'\'dog\', but prompt "{prompt}" fills words into {{}}'):
            make_detecting_localizer(settings(folders, "owlv2", prompt=prompt))
