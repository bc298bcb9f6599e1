"""FP32 → static INT8 as ONNX with Q/DQ pairs, calibrated; for OpenVINO's own form see `quantize_nncf`."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from jaxtyping import Float32

from l2r2.errors import ArtifactError, ExportError
from l2r2.runtimes.processor import saturates
from l2r2_export.graphs import first_line, require_onnx, save_checked
from l2r2_export.qdq_graph import LAYERS, QUANTIZED, between, ends, guard, layers_of
from l2r2_export.ranges import ranges_of
from l2r2_export.rounding import Layer, compensated, moments_of

if TYPE_CHECKING:
    import onnx

Images = Float32[np.ndarray, "n 3 size size"]

Target = Literal["onnxruntime", "openvino", "tensorrt"]
"""Whom a file is for. All are standard ONNX; they differ in what the runtime makes of them: TensorRT takes symmetric
activations only, and ONNX Runtime rounds the weights of layers that were to be kept unless it is stopped."""


class Quantizer(Protocol):
    """A calibrated model that can be written with any of its layers kept in floating point."""

    @property
    def layers(self) -> Mapping[str, float]:
        """Name → multiplications for one photograph (1 where a size is unknown), in the order in which they compute."""
        ...

    def write(self, out: Path, keep: Collection[str] = ()) -> None:
        """Write the model with those layers in floating point and all others in INT8.

        Raises:
            ExportError: no such layer, or the model cannot be quantized; nothing was written.
            ArtifactError: the place cannot be written.
        """
        ...


class QdqQuantizer:
    """ONNX with Q/DQ pairs: weights per output channel, activations per tensor. Fulfils `Quantizer`.

    Pairs are placed by ONNX Runtime's quantizer, ranges are chosen as in `ranges`, weights rounded as in `rounding`.
    """

    def __init__(
        self,
        source: Path,
        calibration: Sequence[Images],
        target: Target = "onnxruntime",
        *,
        seven_bits: bool | None = None,
        compensate: bool = True,
    ) -> None:
        """Fuse what can be, and watch the layers on the calibration photographs.

        Args:
            source: A float32 model, one file.
            calibration: Batches of what the model will be given, from the training split; some hundred photographs.
            seven_bits: Weights of seven bits, for x86 processors without VNNI, which add up 16-bit products with
                saturation; None: on a CPU as this processor needs it, for TensorRT never.
            compensate: Round weights so that outputs change least; else each to nearest.
        Raises:
            BackendMissing: onnx or ONNX Runtime is not installed.
            ExportError: the calibration set is empty or not finite, or the model cannot be calibrated.
            ArtifactError: the source is no readable model.
        """
        require_onnx()
        check_calibration(calibration, source)
        self._source, self._target = source, target
        self._seven_bits = (target != "tensorrt" and saturates()) if seven_bits is None else seven_bits
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        with tempfile.TemporaryDirectory() as folder, as_export_error(source, "calibrated"):
            fused = Path(folder) / "fused.onnx"
            self._model = _fused(source, fused)
            self._ranges = _ranges(self._model, calibration, target == "tensorrt", Path(folder))
            found = list(layers_of(self._model.graph))
            self.layers: Mapping[str, float] = {node.name: multiplications for node, multiplications in found}
            if compensate:
                self._weights = _compensated(self._model, self._quantized(()), [node for node, _ in found], calibration)

    def write(self, out: Path, keep: Collection[str] = ()) -> None:
        """As `Quantizer.write`."""
        check_names(keep, self.layers, self._source)
        what = f"INT8 of {self._source.name}"
        if set(keep) == set(self.layers):
            save_checked(copy.deepcopy(self._model), out, what)
            return
        with as_export_error(self._source, "quantized"):
            model = self._quantized(keep)
            for weight in model.graph.initializer:
                _replace(weight, self._weights, model.graph)
            if self._target == "onnxruntime":  # others leave kept layers alone, and misread what guards them
                guard(model.graph, keep)
        save_checked(model, out, what)

    def _quantized(self, keep: Collection[str]) -> onnx.ModelProto:
        """As ONNX Runtime's quantizer does it."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        symmetric = self._target == "tensorrt"
        quantizer = QDQQuantizer(
            copy.deepcopy(self._model),
            True,  # per channel
            self._seven_bits,
            QuantType.QInt8,
            QuantType.QInt8 if symmetric else QuantType.QUInt8,
            self._ranges,
            [],
            sorted({*keep, *between(self._model.graph, keep)}),
            sorted(QUANTIZED),
            {
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "MatMulConstBOnly": True,
                # Ranges are taken where a tensor is used, after its activation. Else a sum is rounded before it is
                # clipped, and a clip before a kept layer is lost: it is removed for a pair that then is not made.
                "QDQKeepRemovableActivations": True,
                "OpTypesToExcludeOutputQuantization": sorted(LAYERS),
                "QuantizeBias": not symmetric,  # TensorRT dequantizes no 32-bit integers
            },
        )
        for tensor in ends(self._model.graph, keep):
            quantizer.quantize_activation_tensor(tensor)
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        model: onnx.ModelProto = quantizer.model.model
        return model


def check_calibration(calibration: Sequence[Images], source: Path) -> None:
    """Refuse what nothing can be calibrated on.

    Raises:
        ExportError: no photographs, or numbers that are not finite.
    """
    if sum(len(batch) for batch in calibration) == 0:
        raise ExportError(
            f"{source.name}: the calibration set is empty; expected rendered views of the training split, some hundred"
        )
    if not all(np.isfinite(batch).all() for batch in calibration):
        raise ExportError(f"{source.name}: the calibration set has numbers that are not finite; check how it was read")


def check_names(keep: Collection[str], layers: Mapping[str, float], source: Path) -> None:
    """Refuse a name that is no layer.

    Raises:
        ExportError: there is one.
    """
    if unknown := sorted(set(keep) - set(layers)):
        raise ExportError(
            f"{source.name} has no layer {unknown[0]!r} to keep; expected one of its {len(layers)} layers"
        )


def _fused(source: Path, fused: Path) -> onnx.ModelProto:
    """The model as ONNX Runtime's basic optimization leaves it, at `fused` and with its shapes inferred."""
    import onnx
    import onnxruntime as ort
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(fused)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common error class
        raise ArtifactError(f"{source} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
    model = onnx.load(str(fused))
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    onnx.save(model, str(fused))
    return load_model_with_shape_infer(fused)


def _ranges(model: onnx.ModelProto, calibration: Sequence[Images], symmetric: bool, folder: Path) -> Any:
    """Tensor → range, as ONNX Runtime's own class."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    found = ranges_of(model, calibration, symmetric, folder)
    ends = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
    return TensorsData(CalibrationMethod.MinMax, ends)


def _compensated(
    model: onnx.ModelProto, quantized: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], calibration: Sequence[Images]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of a rounded weight → the scale that it was rounded with, and the weight rounded anew."""
    from onnx import numpy_helper

    values = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    given = {weight.name: numpy_helper.to_array(weight) for weight in quantized.graph.initializer}
    once = {node.input[1]: node for node in nodes if f"{node.input[1]}_quantized" in given}
    layers = {name: Layer(node, values[name]) for name, node in once.items() if Layer.fits(node, values[name])}
    found = {}
    for moments in moments_of(model, list(layers.values()), calibration):
        for name, moment in moments.items():
            layer, scale, before = layers[name], given[f"{name}_scale"], given[f"{name}_quantized"]
            rows = layer.rows(values[name])
            by_row = np.broadcast_to(scale, rows.shape[0] * rows.shape[1]).reshape(rows.shape[:2])
            largest = int(np.abs(before.astype(np.int16)).max())
            found[f"{name}_quantized"] = (scale, layer.back(compensated(rows, by_row, moment, largest)))
    return found


def _replace(
    weight: onnx.TensorProto, better: Mapping[str, tuple[np.ndarray, np.ndarray]], graph: onnx.GraphProto
) -> None:
    """Take the better rounding of a weight, where it was made for the same scale."""
    from onnx import numpy_helper

    if weight.name not in better:
        return
    scale, values = better[weight.name]
    name = weight.name.removesuffix("_quantized") + "_scale"
    used = next(numpy_helper.to_array(each) for each in graph.initializer if each.name == name)
    if np.array_equal(used, scale):
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))


@contextlib.contextmanager
def as_export_error(source: Path, done: str) -> Iterator[None]:
    """Whatever a quantizer raises, in one line."""
    try:
        yield
    except (ArtifactError, ExportError):
        raise
    except Exception as error:  # neither quantizer has a common error class
        raise ExportError(
            f"{source.name} cannot be {done}: {first_line(error)}; keep it in FP32, or name the layers to keep"
        ) from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Neither progress bars nor log lines of the quantizers."""
    import warnings

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
