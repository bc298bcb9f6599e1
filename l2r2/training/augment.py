"""Random changes of training views: mirrored, cropped, coloured otherwise; on the device, a whole batch at once.

Every number is drawn from seed, epoch and batch, so that a resumed fit repeats.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn.functional import affine_grid, grid_sample

from l2r2.config import TrainSettings, ViewSettings

MAX_ASPECT = 4 / 3
"""Of a random crop's sides. Source: Szegedy et al. 2015, arXiv:1409.4842, section 6."""

GREY = (0.2989, 0.587, 0.114)
"""Red, green and blue in what the eye takes for brightness. Source: ITU-R BT.601."""


class Augment(Callback):
    """Changes every image of a batch in place before the step; whatever is trained sees them so."""

    def __init__(self, settings: TrainSettings, view: ViewSettings, seed: int) -> None:
        self._settings, self._view, self._seed = settings, view, seed

    @torch.no_grad()
    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
    ) -> None:
        rng = np.random.default_rng([self._seed, trainer.current_epoch, batch_idx])
        for images in _images(batch):
            images.copy_(augment(images, self._settings, self._view, rng))


def augment(
    images: torch.Tensor, settings: TrainSettings, view: ViewSettings, rng: np.random.Generator
) -> torch.Tensor:
    """Mirror, crop and colour each image by draws of its own.

    The images are normalised (`views.normalize`); colours are changed in [0, 1] and normalised again, so brightness,
    contrast and saturation mean what they mean for photographs. What leaves [0, 1] is cut off.

    Args:
        images: float32, "… 3 size size".
        settings: flip, crop_scale and color_jitter.
        view: mean and std.
    """
    flat = images.reshape(-1, *images.shape[-3:])
    draws = torch.from_numpy(rng.random((8, len(flat)), np.float32)).to(images.device)
    if settings.flip:
        flat = torch.where(_per_image(draws[0] < 0.5), flat.flip(-1), flat)
    if settings.crop_scale < 1:
        flat = crop(flat, _boxes(draws[1:5], settings.crop_scale))
    if settings.color_jitter > 0:
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (view.mean, view.std))
        factors = 1 + settings.color_jitter * (2 * draws[5:] - 1)
        flat = (jitter(flat * std + mean, factors) - mean) / std
    return flat.reshape(images.shape)


def crop(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Cut a box out of each image and enlarge it to the whole, bilinearly.

    Args:
        images: "n 3 h w".
        boxes: "4 n": left, top, width, height as shares of the image, inside it.
    """
    left, top, width, height = boxes
    zero = torch.zeros_like(left)
    rows = [width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1]  # [-1, 1] → the box in [-1, 1]
    grid = affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jitter(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, then contrast, then saturation.

    Args:
        images: "n 3 h w", [0, 1].
        factors: "3 n", one a change: 1 changes nothing, 0 gives black, plain grey, and no colour.
    """
    brightness, contrast, saturation = (_per_image(factor) for factor in factors)
    images = (images * brightness).clamp(0, 1)
    level = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    images = torch.lerp(level, images, contrast).clamp(0, 1)
    return torch.lerp(_grey(images), images, saturation).clamp(0, 1)


def _boxes(draws: torch.Tensor, least: float) -> torch.Tensor:
    area = least + (1 - least) * draws[0]
    widest = (-area.log()).clamp(max=math.log(MAX_ASPECT))  # a wider box of this area would stick out
    aspect = (widest * (2 * draws[1] - 1)).exp()
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    return torch.stack([draws[2] * (1 - width), draws[3] * (1 - height), width, height])


def _grey(images: torch.Tensor) -> torch.Tensor:
    return (images * images.new_tensor(GREY).view(3, 1, 1)).sum(dim=1, keepdim=True)


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


def _images(batch: Any) -> list[torch.Tensor]:
    """Tensors of images in a batch of any nesting."""
    if isinstance(batch, torch.Tensor):
        return [batch] if batch.ndim >= 4 else []
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return [images for part in parts for images in _images(part)]
