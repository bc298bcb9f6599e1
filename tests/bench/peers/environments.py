"""An environment a peer, made once and kept; what cannot be installed is told with its reason."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from l2r2.files import write_text

ROOT = Path("mlruns/bench/venvs")
PEERS = {
    "litserve": "litserve==0.2.19 python-multipart",  # which its forms need
    "bentoml": "bentoml==1.4.40",
    "mlserver": "mlserver==1.7.1 uvloop<0.22",  # with which its workers start
    "rayserve": "ray[serve]==2.60.0",
}
"""Figure's name → what is installed: the newest of each when this was written."""

WORK = ("jaxtyping", "numpy", "pillow", "polars", "pydantic>=2.8,<3", "rich", "scipy", "typer")
"""What `l2r2` needs to recognize."""

SAME = ("onnxruntime", "openvino")
"""What does the work: the very versions of this environment."""

TIMEOUT_S = 900


def environment(peer: str) -> Path | None:
    """Its python; None, and the reason printed, where it cannot be installed. The reason is kept, too."""
    folder = ROOT / peer
    python, refused = folder / "bin" / "python", ROOT / f"{peer}.refused"
    if not (folder / ".ready").is_file() and not refused.is_file():
        print(f"  installing {PEERS[peer]} into {folder}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=True)
            wanted = [*PEERS[peer].split(), *WORK, *(f"{name}=={version(name)}" for name in SAME)]
            command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
            (folder / ".ready").touch()
        except subprocess.CalledProcessError as error:
            lines = [line for line in (error.stderr or error.stdout).splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip said nothing"]
            write_text(refused, errors[0].partition(" (from versions")[0] + "\n")
        except subprocess.TimeoutExpired:
            write_text(refused, f"pip was not done after {TIMEOUT_S} s\n")
    if refused.is_file():
        print(f"  {PEERS[peer]} cannot be installed here: {refused.read_text(encoding='utf-8').strip()}")
        return None
    return python
