"""What a bundle is and knows, for its callers."""

from __future__ import annotations

from l2r2.config import SaliencySettings
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.v1 import recognition_pb2 as pb


def info(opened: OpenBundle) -> pb.BundleInfo:
    """Its name and version."""
    return pb.BundleInfo(name=opened.name, version=opened.version)


def describe(opened: OpenBundle) -> pb.BundleDescription:
    """All that a caller may want to know before it asks."""
    manifest = opened.manifest
    localizer, policy, images = manifest.localizer, manifest.policy, manifest.images
    if isinstance(localizer, SaliencySettings):
        name, threshold = str(localizer.name), localizer.min_score
    else:
        name, threshold = str(localizer.settings.name), localizer.settings.box_threshold
    return pb.BundleDescription(
        info=info(opened),
        class_names=manifest.class_names,
        hazardous_class_names=policy.hazardous,
        vocabularies=[
            pb.Vocabulary(source=source, values=sorted(values, key=_order))
            for source, values in sorted(manifest.prior.vocabularies.items())
        ],
        gate_threshold=policy.threshold,
        localizer_threshold=threshold,
        coverage=policy.coverage,
        fusion=policy.operator,
        localizer=name,
        deployment=opened.deployment,
        image_limits=pb.ImageLimits(
            max_bytes=images.max_bytes, max_pixels=images.max_pixels, min_side_px=images.min_side_px
        ),
    )


def _order(value: str) -> tuple[int, str]:
    """Months by number, words by letter."""
    return (int(value), "") if value.isdecimal() else (0, value)
