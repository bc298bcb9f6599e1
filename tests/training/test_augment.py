"""Random changes of views: against torchvision, closed forms, and the bounds that the settings promise."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as theirs

from l2r2.config import TrainSettings, ViewSettings
from l2r2.training.augment import Augment, _boxes, augment, crop, jitter
from l2r2.views import normalize

VIEW = ViewSettings(size_px=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = TrainSettings(flip=False)


def noise(n=6):
    squares = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return squares, torch.from_numpy(normalize(list(squares), VIEW))


def draw(images, seed=0, **changes):
    return augment(images, PLAIN.model_copy(update=changes), VIEW, np.random.default_rng(seed))


def test_nothing_is_changed_unless_asked():
    images = noise()[1]
    assert torch.equal(draw(images), images)


def test_half_of_the_images_are_mirrored():
    images = torch.arange(4.0).expand(1000, 3, 4, 4)
    turned = draw(images, flip=True)[:, 0, 0, 0] == 3
    assert turned.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(draw(images, flip=True)[~turned], images[~turned])
    assert torch.equal(draw(images, flip=True)[turned], images[turned].flip(-1))


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("change", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_colours_change_as_in_torchvision(change, factor):
    images = torch.from_numpy(noise()[0]).permute(0, 3, 1, 2) / 255
    factors = torch.ones(3, len(images))
    factors[["adjust_brightness", "adjust_contrast", "adjust_saturation"].index(change)] = factor
    torch.testing.assert_close(jitter(images, factors), getattr(theirs, change)(images, factor), atol=1e-5, rtol=0)


def test_colours_change_in_the_photograph_not_in_its_normalised_form():
    """A grey photograph knows no saturation, and its contrast is none: what changes is its brightness, within ±40 %."""
    grey = torch.from_numpy(normalize([np.full((32, 32, 3), 100, np.uint8)] * 200, VIEW))
    changed = draw(grey, color_jitter=0.4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (VIEW.mean, VIEW.std))
    pixels = (changed * std + mean) * 255
    levels = pixels[:, 0, 0, 0]
    assert torch.allclose(pixels, levels.view(-1, 1, 1, 1).expand_as(pixels), atol=0.05)
    assert 60 <= levels.min() < 64
    assert 136 < levels.max() <= 140.01


def test_a_crop_shows_its_box():
    """On a ramp, what is seen at share u of the crop's width is left + u·width of the ramp."""
    ramp = ((torch.arange(32.0) + 0.5) / 32).expand(2, 3, 32, 32)
    both = torch.stack([ramp[0], ramp[1].transpose(-1, -2)])
    boxes = torch.tensor([[0.25, 0.1], [0.0, 0.5], [0.5, 0.9], [1.0, 0.25]])  # left, top, width, height of two
    seen = crop(both, boxes)
    share = (torch.arange(32.0) + 0.5) / 32
    torch.testing.assert_close(seen[0], (0.25 + 0.5 * share).expand(3, 32, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1], (0.5 + 0.25 * share)[:, None].expand(3, 32, 32), atol=1e-5, rtol=0)


def test_the_whole_box_is_the_image():
    images = noise()[1]
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, len(images))
    torch.testing.assert_close(crop(images, whole), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("least", [0.08, 0.5, 0.9])
def test_boxes_keep_their_bounds(least):
    left, top, width, height = _boxes(torch.from_numpy(np.random.default_rng(0).random((4, 20000), np.float32)), least)
    area, aspect = (width * height).numpy(), (width / height).numpy()
    assert least - 1e-5 <= area.min() < least + 0.01
    assert area.mean() == pytest.approx((1 + least) / 2, abs=0.01)  # uniform between least and 1
    assert aspect.min() >= 3 / 4 - 1e-5
    assert aspect.max() <= 4 / 3 + 1e-5
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.01)
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6


def test_small_boxes_have_every_aspect():
    """Of a small enough area the logarithm of the aspect is uniform between ±log(4/3)."""
    _, _, width, height = _boxes(torch.from_numpy(np.random.default_rng(0).random((4, 20000), np.float32)), 0.08)
    small = width * height < 0.5
    logs = (width / height)[small].log().numpy()
    assert logs.std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.02)


def test_each_image_has_its_own_draw():
    images = noise(1)[1].expand(8, 3, 32, 32)
    changed = draw(images, flip=True, crop_scale=0.5, color_jitter=0.4)
    assert len({image.numpy().tobytes() for image in changed}) == 8


def test_stacked_views_are_as_many_images():
    images = noise()[1]
    stacked = draw(images.reshape(3, 2, 3, 32, 32), crop_scale=0.5, flip=True)
    assert torch.equal(stacked.reshape(6, 3, 32, 32), draw(images, crop_scale=0.5, flip=True))


def step(seed, epoch, index, batch):
    callback = Augment(PLAIN.model_copy(update={"flip": True, "crop_scale": 0.5}), VIEW, seed)
    callback.on_train_batch_start(SimpleNamespace(current_epoch=epoch), None, batch, index)
    return batch


@pytest.mark.parametrize("other", [(1, 2, 3), (0, 3, 3), (0, 2, 4)])
def test_draws_depend_on_seed_epoch_and_batch(other):
    images = noise()[1]
    first = step(0, 2, 3, images.clone())
    assert torch.equal(first, step(0, 2, 3, images.clone()))
    assert not torch.equal(first, step(*other, images.clone()))


def test_images_are_found_in_any_batch():
    """One batch an environment, as `domains` gives them; labels and features are left alone."""
    images, labels, features = noise()[1], torch.arange(6), torch.ones(6, 8)
    a, b = step(0, 0, 0, {"a": [images.clone(), labels.clone()], "b": (images.clone(), features.clone())}).values()
    assert torch.equal(a[1], labels)
    assert torch.equal(b[1], features)
    assert not torch.equal(a[0], images)
    assert not torch.equal(a[0], b[0])
