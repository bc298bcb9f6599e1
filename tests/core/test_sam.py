"""SAM, small and random but segment_anything's own: one embedding a photograph, masks as one by one."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_anything import SamPredictor

from l2r2.config import SegmenterSettings
from l2r2.errors import ArtifactError, BackendMissing
from l2r2.localization.sam import BOXES_AT_ONCE, Segmenter, load_segmenter
from l2r2.types import Region
from tests.core.checkpoints import small_sam

WIDE = np.array(Image.effect_noise((150, 60), 90).convert("RGB"))
TALL = np.array(Image.effect_noise((50, 120), 90).convert("RGB"))


@pytest.fixture(scope="module")
def sam():
    return small_sam()


def regions(photo: np.ndarray, count: int) -> list[Region]:
    rng = np.random.default_rng(0)
    height, width = photo.shape[:2]
    low = rng.random((count, 2)) * [width * 0.5, height * 0.5]
    high = low + 5 + rng.random((count, 2)) * [width * 0.4, height * 0.4]
    return [Region((*a.tolist(), *b.tolist()), 0.9) for a, b in zip(low, high, strict=True)]


@pytest.mark.parametrize("photo", [WIDE, TALL], ids=["wide", "tall"])
def test_masks_are_those_of_the_predictor_box_by_box(sam, photo):
    found = Segmenter(sam, "k").masks(photo, regions(photo, 3))
    predictor = SamPredictor(sam)
    predictor.set_image(photo)
    for mask, region in zip(found, regions(photo, 3), strict=True):
        theirs, _, _ = predictor.predict(box=np.array(region.box_xyxy_px), multimask_output=False)
        assert mask.shape == photo.shape[:2]
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, theirs[0])
    assert any(0 < mask.mean() < 1 for mask in found)  # constant masks would prove nothing


def test_a_photograph_is_embedded_once_whatever_the_number_of_boxes(sam):
    passes = []
    hook = sam.image_encoder.register_forward_hook(lambda *_: passes.append(1))
    found = Segmenter(sam, "k").masks(WIDE, regions(WIDE, BOXES_AT_ONCE + 3))
    hook.remove()
    assert (len(passes), len(found)) == (1, BOXES_AT_ONCE + 3)


def test_no_boxes_run_nothing(sam):
    passes = []
    hook = sam.image_encoder.register_forward_hook(lambda *_: passes.append(1))
    assert Segmenter(sam, "k").masks(WIDE, []) == []
    hook.remove()
    assert passes == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoints_are_read_and_known_by_their_digest(sam, tmp_path, monkeypatch, suffix):
    import segment_anything

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", small_sam)
    path = tmp_path / f"sam{suffix}"
    changed = {name: value + 0.1 if value.is_floating_point() else value for name, value in sam.state_dict().items()}
    if suffix == ".pth":
        torch.save(changed, path)
    else:
        save_file(changed, path)
    segmenter = load_segmenter(SegmenterSettings(model="vit_b", checkpoint=path))
    own = segmenter._predictor.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in changed.items())
    other = tmp_path / "other.safetensors"
    save_file(sam.state_dict(), other)
    assert segmenter.key == load_segmenter(SegmenterSettings(model="vit_b", checkpoint=path)).key
    assert segmenter.key != load_segmenter(SegmenterSettings(model="vit_b", checkpoint=other)).key


def test_threads_that_share_it_get_each_its_own_masks(sam):
    segmenter, photos = Segmenter(sam, "k"), [WIDE, TALL] * 4
    alone = [Segmenter(sam, "k").masks(photo, regions(photo, 2)) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda photo: segmenter.masks(photo, regions(photo, 2)), photos))
    np.testing.assert_equal(together, alone)


def test_without_the_package_its_installation_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(BackendMissing, match=r"run: pip install 'l2r2\[detectors\]'$"):
        load_segmenter(SegmenterSettings(model="vit_b", checkpoint=tmp_path / "sam.pth"))


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"])
def test_a_checkpoint_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "sam.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"sam\.pth cannot be read: .*; give segmenter\.checkpoint$"):
        load_segmenter(SegmenterSettings(model="vit_b", checkpoint=path))


class Runs:
    def __reduce__(self):
        return (print, ("this must not be printed",))


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys):
    path = tmp_path / "sam.pth"
    torch.save({"weights": Runs()}, path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_segmenter(SegmenterSettings(model="vit_b", checkpoint=path))
    assert capsys.readouterr().out == ""


def test_weights_of_another_size_are_named(tmp_path, monkeypatch, sam):
    import segment_anything

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", small_sam)
    state = sam.state_dict()
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(ArtifactError, match=r"is no SAM vit_b: .*; set segmenter\.model"):
        load_segmenter(SegmenterSettings(model="vit_b", checkpoint=tmp_path / "sam.pth"))


@pytest.mark.parametrize("content", [[torch.zeros(1)], {0: torch.zeros(1)}])
def test_a_file_without_names_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(ArtifactError, match=r"sam\.pth holds no named weights; .*; give segmenter\.checkpoint$"):
        load_segmenter(SegmenterSettings(model="vit_b", checkpoint=tmp_path / "sam.pth"))
