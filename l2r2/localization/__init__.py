"""Finding the foreground. One localizer a file."""

from l2r2.localization.cache import RegionCache as RegionCache
from l2r2.localization.saliency import SaliencyLocalizer as SaliencyLocalizer

__all__ = ["RegionCache", "SaliencyLocalizer"]
