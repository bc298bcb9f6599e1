"""Bundles that are open: from a place to answers, and the shelf a server serves from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from l2r2.bundle import Bundle, load_bundle
from l2r2.errors import ArtifactError, ConfigError, InputError
from l2r2.images import Photograph
from l2r2.manifest import MANIFEST, Manifest
from l2r2.recognizer import Recognizer, locating_scale
from l2r2.runtimes.batching import Ran
from l2r2.types import Metadata, Pixels, Prediction, Region
from l2r2_serving.answer import Answer, Options
from l2r2_serving.deadline import Allowance, Costs, Deadline
from l2r2_serving.errors import NotReady, UnknownBundle
from l2r2_serving.pictures import thumbnail_jpeg

REGISTRY = "models:/"
"""How the address of a bundle in a model registry begins."""

DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class OpenBundle:
    """A bundle whose models are loaded. Threads may share it.

    Attributes:
        name, version: As in `Answer`.
        recognizer: One thread an inference, so that as many photographs as cores run side by side.
        manifest: What the bundle says of itself.
        deployment: Runtime and precision that answer, such as onnxruntime/fp32.
        costs: Of its classifiers, learnt as it answers.
    """

    name: str
    version: str
    recognizer: Recognizer
    manifest: Manifest
    deployment: str
    costs: Costs = field(default_factory=Costs)

    def answer(
        self,
        data: bytes,
        metadata: Metadata,
        top_k: int,
        options: Options = DEFAULTS,
        deadline: Deadline | None = None,
    ) -> Answer:
        """Decode and recognize one encoded photograph.

        Args:
            top_k: Candidates wanted, at least 1.
            deadline: When the answer is of no more use; FULL is left out where it would not fit.
        Raises:
            ImageError: the bytes are no photograph that can be recognized.
            InputError: a box outside the photograph.
            DeadlinePassed: nobody waits any more; nothing was begun after that.
            BackendError: a model failed.
        """
        deadline = deadline or Deadline()
        deadline.require()
        photo = Photograph(data, self.manifest.images)
        regions, locating = self._regions(photo, options, deadline)
        predictions = self.recognizer.recognize(
            [photo] * (1 if regions is None else len(regions)),
            [metadata] * (1 if regions is None else len(regions)),
            regions,
            top_k,
            fg_only=options.crop,
            budget=Allowance(deadline, self.costs),
        )
        self.costs.learn(predictions[0].latency_ms)
        predictions = [_told(each, options, locating) for each in predictions]
        first = predictions[0]
        thumbnails = [
            thumbnail_jpeg(photo, each.region, options.thumbnail_px) if each.region is not None else b""
            for each in (predictions if options.thumbnail_px else [])
        ]
        several = options.max_detections > 1 and first.region is not None
        return Answer(
            prediction=first,
            bundle_name=self.name,
            bundle_version=self.version,
            unrecognized={source: metadata[source] for source in first.unrecognized},
            detections=tuple(predictions) if several else (),
            thumbnails=tuple(thumbnails),
        )

    def _regions(
        self, photo: Photograph, options: Options, deadline: Deadline
    ) -> tuple[list[Region | None] | None, dict[str, float]]:
        """Where the foregrounds are, if the caller says so or wants it otherwise than the recognizer's own way; and the
        milliseconds that it took to decode and to look.
        """
        began = time.perf_counter()
        if options.crop or options.box is not None:
            width, height = photo.size_px
            decoding = {"decode": 1000 * (time.perf_counter() - began)}
            if options.crop or options.box is None:
                return [Region((0.0, 0.0, float(width), float(height)), 1.0)], decoding
            return [_inside(options.box, width, height, normalized=options.box_normalized)], decoding
        if options.max_detections > 1 or options.localizer_threshold is not None or options.mask:
            photo.at(locating_scale(self.recognizer.localizer, photo))
            decoded = time.perf_counter()
            deadline.require()
            found: list[Region | None] = self.recognizer.detect(
                photo, options.max_detections, options.localizer_threshold, masks=options.mask
            )
            located = time.perf_counter()
            return found, {"decode": 1000 * (decoded - began), "locate": 1000 * (located - decoded)}
        return None, {}

    def warm_up(self) -> None:
        """Run every model once, so that no caller pays for first-use allocations, and learn what FULL costs.

        Raises:
            BackendError: a model failed.
        """
        photo, region = _warm_up_photo()
        self.recognizer.recognize([photo])
        # The cascade alone would leave out a model: FG when nothing is found, FULL when FG is sure.
        self.recognizer.recognize([photo], regions=[region])
        self.recognizer.recognize([photo], regions=[None])
        (again,) = self.recognizer.recognize([photo], regions=[None])  # the first time is no measure
        self.costs.learn(again.latency_ms)


class Shelf:
    """Open bundles by name. Belongs to one event loop; a bundle found stays usable after another took its place."""

    def __init__(self) -> None:
        self._open: dict[str, OpenBundle] = {}

    def put(self, bundle: OpenBundle) -> None:
        """Serve a bundle, in place of another of its name."""
        self._open[bundle.name] = bundle

    def all(self) -> list[OpenBundle]:
        """What is served, by name."""
        return [self._open[name] for name in sorted(self._open)]

    def require_any(self) -> None:
        """Raise NotReady while there is none."""
        if not self._open:
            raise NotReady("the server is still loading its bundle; ask its health service and try again when SERVING")

    def find(self, name: str) -> OpenBundle:
        """Give a bundle; an empty name means the only one.

        Raises:
            NotReady: there is none yet.
            UnknownBundle: none of that name, or several and no name.
        """
        self.require_any()
        known = ", ".join(sorted(self._open))
        if not name and len(self._open) > 1:
            raise UnknownBundle(f"several bundles are served and none was named; expected one of: {known}")
        found = self._open.get(name) if name else next(iter(self._open.values()))
        if found is None:
            raise UnknownBundle(f"no bundle {name[:80]!r} is served; expected one of: {known}, or no name")
        return found


def find_bundle(place: str, tracking_uri: str | None = None) -> Bundle:
    """Check a bundle in a folder, or fetch it from a model registry and check it.

    Args:
        place: A folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: Where the registry is; None: as MLflow is configured.
    Raises:
        ConfigError: a tracking URI for a folder, which needs none.
        ArtifactError: no bundle there, or not a whole and unchanged one.
    """
    return load_bundle(fetch(place, tracking_uri))


def fetch(place: str, tracking_uri: str | None = None) -> Path:
    """Local folder of a bundle, not yet checked.

    Args:
        place, tracking_uri: As for `find_bundle`.
    Raises:
        ConfigError: a tracking URI for a folder, which needs none.
        ArtifactError: the registry has no such bundle, or cannot be reached.
    """
    if place.startswith(REGISTRY):
        from l2r2.tracking import fetch_bundle

        return fetch_bundle(place, tracking_uri)
    if tracking_uri is not None:
        raise ConfigError(
            f"a tracking URI was given for the folder {place}; it belongs to {REGISTRY}NAME@ALIAS, leave it out"
        )
    return Path(place)


def latest(place: str, tracking_uri: str | None = None) -> str:
    """What changes when the bundle at a place does: the version that an alias points at, or which file its manifest is.

    Args:
        place, tracking_uri: As for `find_bundle`. Nothing is fetched.
    Raises:
        ArtifactError: no bundle there, or the registry cannot be reached.
    """
    if place.startswith(REGISTRY):
        from l2r2.tracking import resolve_bundle

        return resolve_bundle(place, tracking_uri)
    try:
        status = (Path(place) / MANIFEST).stat()
    except OSError as error:
        raise ArtifactError(f"{place} has no readable {MANIFEST}: {error.strerror}") from None
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def open_bundle(
    bundle: Bundle,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    ran: Ran | None = None,
) -> OpenBundle:
    """Load every model of a checked bundle; seconds.

    Args:
        runtime, precision, threads: As `Bundle.recognizer`; None: as the bundle says.
        ran: Told of inferences that join the calls of several threads.
    Raises:
        ConfigError, BackendMissing, BackendError, ArtifactError: as `Bundle.recognizer`.
    """
    recognizer = bundle.recognizer(runtime, precision, threads, ran=ran)
    deployment = bundle.deployment(runtime, precision).name
    return OpenBundle(bundle.manifest.name, bundle.version, recognizer, bundle.manifest, deployment)


def _inside(box: tuple[float, float, float, float], width: int, height: int, *, normalized: bool) -> Region:
    """A caller's box in pixels, cut to the photograph."""
    if normalized:
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    if not (x1 - x0 >= 1 and y1 - y0 >= 1):  # so, since NaN is not either
        raise InputError(
            f"the box {tuple(round(side, 1) for side in box)} px has no pixel of the {width}×{height} photograph; "
            "expected left < right and top < bottom, inside it"
        )
    return Region((x0, y0, x1, y1), 1.0)


def _told(prediction: Prediction, options: Options, locating: Mapping[str, float]) -> Prediction:
    """Without what was not asked for, and with what was done before; a step done twice counts as one."""
    own = prediction.latency_ms
    region = prediction.region
    return replace(
        prediction,
        region=region if region is None or options.mask else replace(region, mask=None),
        explanation=prediction.explanation if options.explanation else None,
        prediction_set=prediction.prediction_set if options.prediction_set else None,
        latency_ms={**locating, **{step: ms + locating.get(step, 0.0) for step, ms in own.items()}},
    )


def _warm_up_photo() -> tuple[Pixels, Region]:
    """A light square on a dark ground, and where it is."""
    photo = np.full((256, 256, 3), 32, np.uint8)
    photo[64:192, 64:192] = 224
    return photo, Region((64.0, 64.0, 192.0, 192.0), 1.0, photo[..., 0] > 128)
