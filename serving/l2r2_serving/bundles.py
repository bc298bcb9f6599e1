"""Bundles that are open: from a place to answers, and the shelf a server serves from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l2r2.bundle import Bundle, load_bundle
from l2r2.config import ImageSettings
from l2r2.errors import ConfigError
from l2r2.images import Photograph
from l2r2.recognizer import Recognizer
from l2r2.types import Metadata, Pixels, Region
from l2r2_serving.answer import Answer
from l2r2_serving.errors import NotReady, UnknownBundle

REGISTRY = "models:/"
"""How the address of a bundle in a model registry begins."""


@dataclass(frozen=True, slots=True)
class OpenBundle:
    """A bundle whose models are loaded. Threads may share it.

    Attributes:
        name, version: As in `Answer`.
        recognizer: One thread an inference, so that as many photographs as cores run side by side.
        images: What a photograph may be.
    """

    name: str
    version: str
    recognizer: Recognizer
    images: ImageSettings

    def answer(self, data: bytes, metadata: Metadata, top_k: int) -> Answer:
        """Decode and recognize one encoded photograph.

        Args:
            top_k: Candidates wanted, at least 1.
        Raises:
            ImageError: the bytes are no photograph that can be recognized.
            BackendError: a model failed.
        """
        (prediction,) = self.recognizer.recognize([Photograph(data, self.images)], [metadata], top_k=top_k)
        return Answer(
            prediction=prediction,
            bundle_name=self.name,
            bundle_version=self.version,
            unrecognized={source: metadata[source] for source in prediction.unrecognized},
        )

    def warm_up(self) -> None:
        """Run every model once, so that no caller pays for first-use allocations.

        Raises:
            BackendError: a model failed.
        """
        photo, region = _warm_up_photo()
        self.recognizer.recognize([photo])
        # The cascade alone would leave out a model: FG when nothing is found, FULL when FG is sure.
        self.recognizer.recognize([photo], regions=[region])
        self.recognizer.recognize([photo], regions=[None])


class Shelf:
    """Open bundles by name. Belongs to one event loop; a bundle found stays usable after another took its place."""

    def __init__(self) -> None:
        self._open: dict[str, OpenBundle] = {}

    def put(self, bundle: OpenBundle) -> None:
        """Serve a bundle, in place of another of its name."""
        self._open[bundle.name] = bundle

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
    if place.startswith(REGISTRY):
        from l2r2.tracking import fetch_bundle

        return load_bundle(fetch_bundle(place, tracking_uri))
    if tracking_uri is not None:
        raise ConfigError(
            f"a tracking URI was given for the folder {place}; it belongs to {REGISTRY}NAME@ALIAS, leave it out"
        )
    return load_bundle(Path(place))


def open_bundle(
    bundle: Bundle, runtime: str | None = None, precision: str | None = None, threads: int | None = None
) -> OpenBundle:
    """Load every model of a checked bundle; seconds.

    Args:
        runtime, precision, threads: As `Bundle.recognizer`; None: as the bundle says.
    Raises:
        ConfigError, BackendMissing, BackendError, ArtifactError: as `Bundle.recognizer`.
    """
    recognizer = bundle.recognizer(runtime, precision, threads)
    return OpenBundle(bundle.manifest.name, bundle.version, recognizer, bundle.manifest.images)


def _warm_up_photo() -> tuple[Pixels, Region]:
    """A light square on a dark ground, and where it is."""
    photo = np.full((256, 256, 3), 32, np.uint8)
    photo[64:192, 64:192] = 224
    return photo, Region((64.0, 64.0, 192.0, 192.0), 1.0, photo[..., 0] > 128)
