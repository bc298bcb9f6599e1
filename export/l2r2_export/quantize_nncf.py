"""FP32 → static INT8 as OpenVINO IR, by NNCF."""

from __future__ import annotations

import gc
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from l2r2.errors import ArtifactError, BackendMissing, ExportError
from l2r2.files import whole_file
from l2r2.runtimes.open_vino import openvino_core
from l2r2.runtimes.packages import keep_silent
from l2r2_export.graphs import first_line
from l2r2_export.quantize import Images, check_calibration, check_names, silent

if TYPE_CHECKING:
    import openvino


class NncfQuantizer:
    """NNCF's quantizer for OpenVINO: IR of two files, NAME.xml and NAME.bin. Fulfils `Quantizer`."""

    def __init__(self, source: Path, calibration: Sequence[Images]) -> None:
        """Read the model; NNCF calibrates anew at each `write`.

        Args:
            source: A float32 model that OpenVINO reads: ONNX or IR.
            calibration: As for `QdqQuantizer`.
        Raises:
            BackendMissing: OpenVINO or NNCF is not installed.
            ExportError: the calibration set is empty or not finite.
            ArtifactError: the source is no readable model.
        """
        _require_nncf()
        check_calibration(calibration, source)
        self._source = source
        self._images = [batch[i : i + 1] for batch in calibration for i in range(len(batch))]
        self.layers: Mapping[str, float] = dict(_ir_layers(_read_folded(source)))

    def write(self, out: Path, keep: Collection[str] = ()) -> None:
        """As `Quantizer.write`; `out` ends in .xml and its weights lie beside it."""
        check_names(keep, self.layers, self._source)
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "model.xml"
            reason = apart(lambda: self._quantize(made, keep))
            if reason is not None:
                raise ExportError(
                    f"{self._source.name} cannot be quantized: {reason}; keep it in FP32, or name the layers to keep"
                )
            with whole_file(out) as beside, whole_file(out.with_suffix(".bin")) as weights_beside:
                shutil.copyfile(made, beside)
                shutil.copyfile(made.with_suffix(".bin"), weights_beside)

    def _quantize(self, made: Path, keep: Collection[str]) -> None:
        import nncf
        import openvino

        model = _read_folded(self._source)
        name = model.inputs[0].get_any_name()
        if set(keep) != set(self.layers):
            with silent():
                model = nncf.quantize(
                    model,
                    nncf.Dataset(self._images, lambda image: {name: image}),
                    preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric activations: the quicker ones
                    subset_size=len(self._images),
                    ignored_scope=nncf.IgnoredScope(names=sorted(keep)),
                )
        openvino.save_model(model, str(made), compress_to_fp16=False)


def apart(work: Callable[[], None]) -> str | None:
    """Do work that makes OpenVINO Cores in a thread that ends with it; what went wrong in one line, or None.

    Each Core that loads the CPU's plugin gives its thread a signal stack and takes it away when it goes. Where several
    go in another order than the reverse of how they came, and NNCF's go whenever Python collects them, the thread is
    left with a stack that is unmapped, and dies of the next signal. This one gets no signals, and nothing outlives it.
    """
    said: list[str | None] = [None]

    def run() -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            work()
        except Exception as error:  # noqa: BLE001  NNCF and OpenVINO have no common error class
            said[0] = first_line(error)
        gc.collect()  # what refers to itself would otherwise go later, in any thread

    thread = threading.Thread(target=run, name="nncf")
    thread.start()
    thread.join()
    return said[0]


def _read_folded(source: Path) -> openvino.Model:
    """The model with constants folded.

    A depthwise weight that is still reshaped in the graph is quantized after the Reshape, where OpenVINO's passes do
    not find it: the layer would then run in floating point.
    """
    from openvino.passes import ConstantFolding, Manager

    try:
        model = openvino_core().read_model(source)
    except Exception as error:  # OpenVINO raises RuntimeError and its own
        raise ArtifactError(f"{source} cannot be read by OpenVINO: {first_line(error)}") from error
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    return model


_IR_LAYERS = frozenset(
    {"Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData", "MatMul"}
)


def _ir_layers(model: openvino.Model) -> Iterator[tuple[str, float]]:
    for node in model.get_ordered_ops():
        if node.get_type_name() in _IR_LAYERS and node.input(1).get_partial_shape().is_static:
            spots = 1.0
            if node.get_type_name() != "MatMul":
                axes = list(node.output(0).get_partial_shape())[2:]
                spots = float(np.prod([axis.get_length() if axis.is_static else 1 for axis in axes]))
            yield node.get_friendly_name(), float(np.prod(list(node.input(1).get_shape()))) * spots


def nncf_installed() -> bool:
    """Whether NNCF can be tried."""
    return find_spec("nncf") is not None and find_spec("openvino") is not None


def _require_nncf() -> None:
    """Raise BackendMissing with the command that installs what INT8 for OpenVINO needs."""
    keep_silent()
    try:
        with silent():
            import nncf  # noqa: F401
            import openvino  # noqa: F401
    except ImportError as error:
        raise BackendMissing(f"{error.name} is not installed; run: pip install 'l2r2[quantize]'") from error
