"""Writes the stubs from `proto/`: run `python -m l2r2_serving.generate` in a checkout after every change there.

`--check` writes nothing and fails when what is committed differs. `--release` keeps the interface as it is now in
`proto/released.json`: from then on the tests refuse what would break its callers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from l2r2.errors import ArtifactError, BackendError, BackendMissing

PROTO = Path(__file__).parents[2] / "proto"
RELEASED = PROTO / "released.json"
"""The interface as it was last released: buf's image."""

STUBS = Path(__file__).parent
SOURCE = "l2r2/v1/recognition.proto"
KSERVE = "inference/grpc_predict_v2.proto"
"""Names of the files in their descriptors, which reflection and other languages see."""

FOLDERS: Final[Mapping[str, str]] = {SOURCE: "v1", KSERVE: "inference"}
"""File → folder of its stubs in this package."""

_VERSIONS = re.compile(r"\d+\.\d+\.\d+|^    \d+,$", re.MULTILINE)


def stubs(proto: Path = PROTO) -> dict[str, str]:
    """Path in this package → text of every generated file.

    Raises:
        BackendMissing: grpcio-tools is not installed.
        ArtifactError: there is no `proto` folder, as in an installed package.
        BackendError: protoc refused a file; its reasons are on stderr.
    """
    return {
        f"{folder}/{name}": text
        for source, folder in FOLDERS.items()
        for name, text in _generated(proto, source, folder).items()
    }


def differing(folder: Path = STUBS, proto: Path = PROTO) -> list[str]:
    """Paths of generated files that `folder` lacks or holds otherwise; the generators' versions do not count."""
    return [
        name
        for name, text in stubs(proto).items()
        if not (folder / name).is_file()
        or _VERSIONS.sub("", (folder / name).read_text(encoding="utf-8")) != _VERSIONS.sub("", text)
    ]


def _generated(proto: Path, source: str, folder: str) -> dict[str, str]:
    if not (proto / source).is_file():
        raise ArtifactError(f"{proto / source} is missing; run this in a checkout of the project")
    try:
        from grpc_tools import protoc  # type: ignore[import-untyped]
    except ImportError as error:
        raise BackendMissing("grpcio-tools is not installed; run: pip install 'l2r2[dev]'") from error
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        includes = [f"-I{proto}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
        if protoc.main(["protoc", *includes, *outputs, source]) != 0:
            raise BackendError(f"protoc refused {proto / source}; its reasons are above")
        return {
            path.name: _moved(path.read_text(encoding="utf-8"), Path(source), folder)
            for path in sorted(Path(scratch).rglob("*.py*"))
        }


def _moved(text: str, source: Path, folder: str) -> str:
    """The proto package l2r2.v1 is l2r2_serving.v1 in Python: nothing may land in another's package."""
    package = ".".join(source.parent.parts)
    text = text.replace(f"from {package} import", f"from l2r2_serving.{folder} import")
    return text.replace(f"'{package}.{source.stem}_pb2'", f"'l2r2_serving.{folder}.{source.stem}_pb2'")


def breaking(released: Path = RELEASED) -> str:
    """What would break callers of the released interface, a line each; empty: nothing.

    Raises:
        BackendMissing: buf is not installed.
    """
    done = subprocess.run(  # noqa: S603
        [_find_buf(), "breaking", "--against", str(released)],
        cwd=PROTO.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def release(released: Path = RELEASED) -> int:
    """Keep l2r2.v1 as it is now, a line a value so that a difference can be read; buf's exit status.

    The other file is not ours to change, and has a test of its own.

    Raises:
        BackendMissing: buf is not installed.
    """
    words = ["build", "--path", str(PROTO / "l2r2"), "--exclude-source-info", "-o", str(released)]
    done = subprocess.run([_find_buf(), *words], cwd=PROTO.parent, check=False)  # noqa: S603
    if done.returncode == 0:
        image = json.loads(released.read_text(encoding="utf-8"))
        released.write_text(json.dumps(image, indent=1) + "\n", encoding="utf-8")
    return done.returncode


def _find_buf() -> str:
    found = shutil.which("buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise BackendMissing("buf is not installed; run: pip install 'l2r2[dev]'")
    return found


def main(arguments: list[str]) -> int:
    """Write the stubs, with --check compare them (1 when they differ), or with --release keep the interface."""
    if arguments == ["--release"]:
        return release()
    if arguments == ["--check"]:
        stale = differing()
        sys.stderr.writelines(f"{STUBS / name} is stale; run: python -m l2r2_serving.generate\n" for name in stale)
        return int(bool(stale))
    for name, text in stubs().items():
        (STUBS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
