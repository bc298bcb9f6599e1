"""What a device needs to serve or to ask is small: nothing of training is imported."""

import os
import subprocess
import sys
from pathlib import Path

from l2r2.bundle import Bundle
from tests.tiny import RED, encode, make_photo

HEAVY = ("torch", "torchvision", "timm", "transformers", "lightning", "mlflow", "sklearn", "pandas", "onnx")

CHECK = """
import sys
heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1].split(",")))
sys.exit(f"imported: {', '.join(heavy)}" if heavy else 0)
"""

EVERY_MODULE = """
import importlib, pkgutil
import l2r2_serving
for module in pkgutil.walk_packages(l2r2_serving.__path__, "l2r2_serving."):
    importlib.import_module(module.name)
"""

ANSWER = """
import sys
from pathlib import Path
from l2r2_serving.bundles import find_bundle, open_bundle
opened = open_bundle(find_bundle(sys.argv[2]))
opened.warm_up()
opened.answer(Path(sys.argv[3]).read_bytes(), {"habitat": "forest", "month": "9"}, 5)
"""

COMMANDS = """
from l2r2.cli import build
build()
"""


def check(code: str, *arguments: str, path: Path | None = None) -> tuple[int, str]:
    """Run code in a fresh interpreter; 0 when nothing heavy was imported, else what was."""
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, "-c", code + CHECK, ",".join(HEAVY), *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.returncode, done.stderr.strip()


def test_importing_everything_is_light() -> None:
    assert check(EVERY_MODULE) == (0, "")


def test_answering_is_light(bundle: Bundle, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(make_photo(RED)))
    assert check(ANSWER, str(bundle.folder), str(photo)) == (0, "")


def test_the_command_line_knows_its_commands_without_grpc() -> None:
    code = COMMANDS + "import sys\nassert 'grpc' not in sys.modules and 'onnxruntime' not in sys.modules\n"
    assert check(code) == (0, "")


def test_this_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").write_text("")
    code, says = check(EVERY_MODULE + "import torch, mlflow\n", path=tmp_path)
    assert (code, says) == (1, "imported: mlflow, torch")
