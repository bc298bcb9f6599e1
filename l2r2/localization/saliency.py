"""Class-agnostic salient object → box. U²-Net's family (Qin et al. 2020, arXiv:2005.09007) on any runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32
from PIL import Image

from l2r2.config import SaliencySettings
from l2r2.errors import BackendError
from l2r2.types import Mask, Photos, Pixels, Region, Session

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)

Saliency = Float32[np.ndarray, "n size size"]
"""Probability of being salient, [0, 1], in the network's square frame."""

MAX_INSTANCES = 16
"""Components of a photograph that are told apart."""


class SaliencyLocalizer:
    """The largest connected component of what is salient.

    The score is the mean saliency inside the component, before the min-max scaling that the threshold is applied to: a
    photograph with nothing in it scores low, though its scaled map has a maximum of 1 like any other.
    """

    def __init__(
        self,
        session: Session,
        settings: SaliencySettings,
        weights_digest: str,
        *,
        input_name: str,
        masks: bool = False,
    ) -> None:
        """Store the parts.

        Args:
            session: One input "n 3 size size", first output "n 1 size size" in [0, 1].
            weights_digest: Of the model file; part of `key`.
            input_name: The session's input tensor.
            masks: Whether regions carry a mask (FG_M and BG_S need one).
        """
        self._session = session
        self._settings = settings
        self._input = input_name
        self._masks = masks
        self.side_px = settings.size_px
        """The square that photographs are shrunk to."""
        self.key = f"{settings.name}-{weights_digest[:12]}-{settings.digest()}{'-masks' if masks else ''}"

    @property
    def sessions(self) -> Mapping[str, Session]:
        """Stage → what runs it."""
        return {"localizer": self._session}

    def locate(self, photos: Photos) -> list[Region | None]:
        """One region or None a photograph, in order."""
        if not photos:
            return []
        saliency = self.saliency(photos)
        return [
            region_of(values, photo.shape[1], photo.shape[0], self._settings, masks=self._masks)
            for values, photo in zip(saliency, photos, strict=True)
        ]

    def instances(self, photos: Photos, min_score: float | None = None, *, masks: bool = False) -> list[list[Region]]:
        """The components of each photograph that are large and salient enough, the largest first.

        None where the largest is not: what else is salient there is no more than noise.
        """
        if not photos:
            return []
        settings = self._settings
        if min_score is not None:
            settings = settings.model_copy(update={"min_score": min_score})
        saliency = self.saliency(photos)
        return [
            regions_of(values, photo.shape[1], photo.shape[0], settings, masks=masks or self._masks)
            for values, photo in zip(saliency, photos, strict=True)
        ]

    def decide(self, photo: Pixels, instances: Sequence[Region]) -> Region | None:  # noqa: ARG002
        """The largest."""
        return instances[0] if instances else None

    def saliency(self, photos: Photos) -> Saliency:
        """The network's first output.

        Raises:
            BackendError: it is not finite.
        """
        batch = np.stack([_network_input(photo, self._settings.size_px) for photo in photos])
        saliency = next(iter(self._session.infer({self._input: batch}).values()))[:, 0]
        if not np.isfinite(saliency).all():
            raise BackendError("the localizer gave saliency that is not finite; its export or its precision is broken")
        return saliency


def region_of(
    saliency: Float32[np.ndarray, "size size"],
    width: int,
    height: int,
    settings: SaliencySettings,
    *,
    masks: bool = False,
) -> Region | None:
    """Turn one saliency map into the region of a photograph of width × height pixels; None when nothing qualifies."""
    found = regions_of(saliency, width, height, settings, most=1, masks=masks)
    return found[0] if found else None


def regions_of(
    saliency: Float32[np.ndarray, "size size"],
    width: int,
    height: int,
    settings: SaliencySettings,
    *,
    most: int = MAX_INSTANCES,
    masks: bool = False,
) -> list[Region]:
    """The components that qualify, the largest first, up to the first that does not."""
    from scipy import ndimage

    low, high = float(saliency.min()), float(saliency.max())
    if not high > low:
        return []
    salient = saliency > low + settings.threshold * (high - low)
    labels, count = ndimage.label(salient)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    across, down = width / saliency.shape[1], height / saliency.shape[0]
    found: list[Region] = []
    for place in np.argsort(-sizes, kind="stable")[:most]:
        component = labels == place + 1
        score = float(saliency[component].mean())
        if sizes[place] < settings.min_area * saliency.size or score < settings.min_score:
            break
        rows, columns = ndimage.find_objects(component.astype(np.int8))[0]
        box = (columns.start * across, rows.start * down, columns.stop * across, rows.stop * down)
        found.append(Region(box, min(score, 1.0), _in_photo(component, width, height) if masks else None))
    return found


def _network_input(photo: Pixels, size: int) -> Float32[np.ndarray, "3 size size"]:
    small = Image.fromarray(photo).resize((size, size), Image.Resampling.LANCZOS)
    values = np.asarray(small, np.float32)
    values = values / max(float(values.max()), 1.0)
    return np.ascontiguousarray(((values - _MEAN) / _STD).transpose(2, 0, 1))


def _in_photo(component: np.ndarray, width: int, height: int) -> Mask:
    small = Image.fromarray(component.astype(np.uint8) * 255)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)) >= 128
