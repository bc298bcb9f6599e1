"""NNCF's INT8 for OpenVINO: the answers stay, kept layers too, and it leaves the process alive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from l2r2.errors import ArtifactError, ExportError
from l2r2.runtimes import open_session
from l2r2_export.quantize_nncf import NncfQuantizer, apart
from tests.export.toy import logits_of, toy_classifier, toy_images

pytest.importorskip("nncf")
pytest.importorskip("openvino")

CALIBRATION = [toy_images(32, 5)[0]]
IMAGES = toy_images(120, 7)[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_classifier(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.fixture(scope="module")
def quantizer(source: Path) -> NncfQuantizer:
    return NncfQuantizer(source, CALIBRATION)


def _noise(file: Path, source: Path) -> float:
    before = logits_of(source, IMAGES)
    after = open_session(file, "openvino", precision="int8").infer({"images": IMAGES})["logits"]
    return float(np.square(after - before).mean() / before.var(axis=0).mean())


def test_layers_are_those_of_the_model(quantizer: NncfQuantizer) -> None:
    assert list(quantizer.layers.values()) == [8 * 3 * 9 * 256, 8 * 9 * 64, 16 * 8 * 64, 3 * 16]


def test_all_in_int8_the_answers_stay_and_keeping_more_changes_less(
    quantizer: NncfQuantizer, source: Path, tmp_path: Path
) -> None:
    names = list(quantizer.layers)
    noises = []
    for keep in ((), names[:3], names):
        quantizer.write(tmp_path / "q.xml", keep)
        assert (tmp_path / "q.bin").is_file()
        noises.append(_noise(tmp_path / "q.xml", source))
    assert 0.1 > noises[0] > noises[1] > noises[2]
    assert noises[2] < 1e-9


def test_what_cannot_be_quantized_is_refused(quantizer: NncfQuantizer, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the calibration set is empty"):
        NncfQuantizer(source, [])
    with pytest.raises(ExportError, match="not finite"):
        NncfQuantizer(source, [np.full((2, 3, 16, 16), np.nan, np.float32)])
    with pytest.raises(ExportError, match="has no layer 'nowhere' to keep"):
        quantizer.write(tmp_path / "q.xml", ["nowhere"])
    (tmp_path / "half.onnx").write_bytes(source.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=r"half\.onnx cannot be read by OpenVINO: "):
        NncfQuantizer(tmp_path / "half.onnx", CALIBRATION)
    assert not (tmp_path / "q.xml").exists()


SCRIPT = """
import signal, sys
from pathlib import Path
import openvino
from l2r2.runtimes import open_session
from l2r2_export.quantize_nncf import NncfQuantizer, apart
from tests.export.toy import toy_images

source, out = Path(sys.argv[1]), Path(sys.argv[2])
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))

def load():
    core = openvino.Core()
    return [core, core.compile_model(str(source), "CPU")]

def two_that_go_in_the_order_in_which_they_came():
    first, second = load(), load()
    first.clear()
    second.clear()

if sys.argv[3] == "apart":
    apart(two_that_go_in_the_order_in_which_they_came)
    images = toy_images(8, 5)[0]
    NncfQuantizer(source, [images]).write(out)
    open_session(out, "openvino", precision="int8").infer({"images": images})
else:
    two_that_go_in_the_order_in_which_they_came()
signal.raise_signal(signal.SIGUSR1)
assert caught == [1]
print("alive")
"""


def _run(source: Path, out: Path, where: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), str(out), where],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_a_signal_afterwards_does_not_kill_the_process(source: Path, tmp_path: Path) -> None:
    done = _run(source, tmp_path / "q.xml", "apart")
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr[-2000:]


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks as Linux has them")
def test_in_the_same_thread_it_does(source: Path, tmp_path: Path) -> None:
    """Once this fails, OpenVINO has mended its Cores, and `apart` may go."""
    assert _run(source, tmp_path / "q.xml", "here").returncode == -11


def test_what_goes_wrong_apart_is_told_in_a_line() -> None:
    def wrong() -> None:
        raise RuntimeError("first\nsecond")

    assert apart(wrong) == "first"
    assert apart(lambda: None) is None
