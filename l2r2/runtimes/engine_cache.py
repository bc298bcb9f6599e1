"""Engines that were built ahead: where they are kept, and whether one may be used here.

    FOLDER/<digest of the key>/engine        as the runtime wrote it
    FOLDER/<digest of the key>/engine.json   its key and sha256
    FOLDER/.<digest of the key>.lock         held by the process that builds it

An engine is machine code for one GPU, one version of the runtime and one range of shapes, made from one model file. Any
of these being different makes it another engine; one that is damaged, changed or another's is refused by name.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256 as digest_of
from pathlib import Path
from typing import Final

from l2r2.errors import ArtifactError, BackendError
from l2r2.files import sha256, whole_folder, write_text
from l2r2.runtimes.locks import held
from l2r2.runtimes.profiles import ShapeProfile

logger = logging.getLogger(__name__)

ENGINE: Final = "engine"
REBUILD: Final = "delete it and build it again: l2r2 export BUNDLE --build"

Progress = Callable[[str, float], None]
"""Told what is being done and which share of the whole is done, [0, 1]."""

Build = Callable[[Path, Progress | None], None]
"""Writes an engine to a path that does not exist yet."""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        model: sha256 of the model file, and of the weights beside it.
        runtime: tensorrt or tensorrt-rtx.
        version: Of the runtime.
        architecture: Of the GPU, such as SM89.
        precision: fp32, fp16, bf16 or int8.
        pins: Layers kept in float32, in any order, each once.
        profile: The shapes it is built for, as `str(ShapeProfile)`; empty: fixed ones.
    """

    model: str
    runtime: str
    version: str
    architecture: str
    precision: str = "fp32"
    pins: tuple[str, ...] = ()
    profile: str = ""

    @classmethod
    def of(
        cls,
        model: Path,
        runtime: str,
        version: str,
        architecture: str,
        precision: str = "fp32",
        pins: Sequence[str] = (),
        profile: ShapeProfile | None = None,
    ) -> EngineKey:
        """The key of a model file's engine.

        Raises:
            ArtifactError: the file cannot be read.
        """
        text = "" if profile is None else str(profile)
        return cls(_digest(model), runtime, version, architecture, precision, tuple(sorted(set(pins))), text)

    @property
    def digest(self) -> str:
        """Thirty-two hexadecimal digits that change with any field."""
        return digest_of(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """A folder of engines; processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: EngineKey) -> Path | None:
        """The engine of a key, checked; None: it was never built. Builds nothing and waits for nobody.

        Raises:
            ArtifactError: it is there, but damaged, changed or another's.
        """
        place = self.folder / key.digest
        if not place.exists():
            return None
        engine = place / ENGINE
        check_engine(engine, **asdict(key))
        return engine

    def get_or_build(self, key: EngineKey, build: Build, progress: Progress | None = None) -> Path:
        """The engine of a key, built if need be. Never call it on the request path.

        Of several processes that ask at once one builds and the others wait for its result. If it dies, or its build
        fails, the next one builds.

        Args:
            build: Writes the engine; whatever it raises is raised here, and nothing is left behind.
            progress: Told of the build, and of waiting for another's.
        Raises:
            ArtifactError: as `find`; or the disk is full or the folder cannot be written.
        """
        engine = self.find(key)
        if engine is not None:
            return engine

        def waiting(owner: str) -> None:
            logger.info("process %s builds the same engine (%s); waiting for it", owner, key.digest)
            if progress is not None:
                progress(f"waiting for process {owner}, which builds the same engine", 0.0)

        with held(self.folder / f".{key.digest}.lock", waiting):
            engine = self.find(key)
            if engine is not None:
                return engine
            for left in self.folder.glob(f".{key.digest}.*.tmp"):  # of a process that was killed: we hold its lock
                shutil.rmtree(left, ignore_errors=True)
            with whole_folder(self.folder / key.digest) as beside:
                build(beside / ENGINE, progress)
                if not (beside / ENGINE).is_file():
                    raise BackendError(f"the build of engine {key.digest} ended and wrote no engine; run it again")
                write_header(beside / ENGINE, key)
        return self.folder / key.digest / ENGINE


def write_header(engine: Path, key: EngineKey) -> None:
    """Write `<engine>.json` beside an engine: what it is, and its sha256."""
    header = {"key": asdict(key), "bytes": engine.stat().st_size, "sha256": sha256(engine)}
    write_text(engine.with_name(engine.name + ".json"), json.dumps(header, indent=2) + "\n")


def check_engine(engine: Path, **expected: object) -> EngineKey:
    """Check an engine against its header, and its header against what is needed here.

    Args:
        expected: Fields of `EngineKey` that must have these values.
    Returns:
        Its key.
    Raises:
        ArtifactError: engine or header is missing, truncated, changed, or of another GPU, version, model, …
    """
    place = engine.with_name(engine.name + ".json")
    try:
        header = json.loads(place.read_bytes())
        values = header["key"]
        key = EngineKey(**{**values, "pins": tuple(values["pins"])})
        size, digest = int(header["bytes"]), str(header["sha256"])
    except OSError as error:
        raise ArtifactError(f"{place} cannot be read ({error.strerror}); {REBUILD}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{place} is no header of an engine: {error}; {REBUILD}") from None
    for name, wanted in expected.items():
        got = getattr(key, name)
        if got != wanted:
            raise ArtifactError(f"{engine} is for {name} {got!r}; expected {wanted!r}; {REBUILD}")
    try:
        got_size = engine.stat().st_size
        got_digest = sha256(engine) if got_size == size else ""
    except OSError as error:
        raise ArtifactError(f"{engine} cannot be read ({error.strerror}); {REBUILD}") from None
    if got_size != size:
        raise ArtifactError(f"{engine} has {got_size} bytes; expected {size}; {REBUILD}")
    if got_digest != digest:
        raise ArtifactError(f"{engine} has changed: sha256 {got_digest[:12]}…; expected {digest[:12]}…; {REBUILD}")
    return key


def _digest(model: Path) -> str:
    weights = model.with_name(model.name + ".data")  # where ONNX keeps what does not fit into 2 GB
    try:
        parts = [sha256(model)] + ([sha256(weights)] if weights.is_file() else [])
    except OSError as error:
        raise ArtifactError(f"{model} cannot be read ({error.strerror})") from None
    return parts[0] if len(parts) == 1 else digest_of("".join(parts).encode()).hexdigest()
