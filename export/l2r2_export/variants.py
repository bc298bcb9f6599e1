"""A stage's model in another precision for one runtime: made, searched where it breaks, compared, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import ValidationError

from l2r2.config import SaliencySettings
from l2r2.errors import BackendError, ConfigError, ParityError
from l2r2.localization import SaliencyLocalizer
from l2r2.metrics import Labels
from l2r2.runtimes import RuntimeSession, open_session
from l2r2.runtimes.sessions import check_names, load_runtime
from l2r2.runtimes.tensorrt_building import weakly_typed
from l2r2.types import Classifier, Photos
from l2r2_export.precision import HalfConverter
from l2r2_export.precision_parity import (
    REGION_TOLERANCES,
    TOLERANCES,
    Figures,
    Precision,
    RegionTolerance,
    Tolerance,
    gate,
)
from l2r2_export.quantize import Images, QdqQuantizer, Quantizer, Target, check_calibration
from l2r2_export.quantize_nncf import NncfQuantizer, nncf_installed
from l2r2_export.sensitivity import Step, Trial, log_of, search
from l2r2_export.slices import evenly
from l2r2_export.trials import ClassifierTrial, Opened, SaliencyTrial, network_inputs

LOCALIZER_CALIBRATION = 48
"""Photographs at most that a localizer is calibrated on: each has a hundred thousand places, not one."""

LOCALIZER_VALIDATION = 120
"""Photographs at most that a localizer is compared on; at 0.2 s each, half a minute an evaluation."""

NEVER: Final = {
    ("onnxruntime", "bf16"): "its CPU provider has no such convolution; choose openvino, or fp16",
    ("onnxruntime-cuda", "int8"): "its CUDA provider turns pairs back into floats; choose onnxruntime-tensorrt",
}
"""Runtime and precision that never go together → why, and what to do."""

HERE: Final = frozenset({"onnxruntime", "onnxruntime-cuda", "openvino"})
"""Runtimes that open a file as it is; others need an engine first."""


@dataclass(frozen=True)
class Variant:
    """A stage's model for one runtime.

    Attributes:
        file: What the runtime reads; the source itself where the precision is a setting of the runtime.
        precision: Reached; fp32 where nothing lower passed and that was allowed.
        kept: Layers in float32.
        figures: Against the FP32 reference on validation.
        tolerance: What they keep to.
        log: Steps of the searches, JSON's types.
        compared_on: The runtime that the figures are from; another one where an engine is needed first.
    """

    file: Path
    precision: Precision
    kept: tuple[str, ...]
    figures: Figures
    tolerance: dict[str, float]
    log: tuple[Mapping[str, object], ...]
    compared_on: str


def classifier_variant(
    source: Path,
    runtime: str,
    precision: Precision,
    folder: Path,
    *,
    name: str,
    reference: Classifier,
    classes: int,
    calibration: Sequence[Images],
    validation: Images,
    labels: Labels,
    groups: np.ndarray,
    threads: int,
    fallback: bool = False,
) -> Variant:
    """Make a classifier's model for a runtime, and compare it with the reference.

    Args:
        source: ONNX, float32.
        folder: Where files are written, and only what passed.
        name: Of the stage; names files.
        calibration: Batches of the training split; for int8.
        validation, labels, groups: n ≥ 1 photographs of the validation split.
        threads: Of one inference.
        fallback: Whether FP32 on that runtime will do where the precision does not pass.
    Raises:
        ParityError: outside the tolerance, with the figures. Nothing was written.
        ExportError: the calibration set is empty or not finite, or the model cannot be converted.
        BackendError: the runtime, or this CPU, does not compute in that precision.
        BackendMissing, ArtifactError, ConfigError: from runtimes and files.
    """
    order = _Order(source, runtime, folder, name, calibration, threads)

    def judged(opened: Opened, limits: Tolerance | RegionTolerance) -> Trial:
        return ClassifierTrial(opened, reference, classes, calibration, validation, labels, groups, limits)

    return _lowered(order, precision, TOLERANCES, judged, fallback)


def localizer_variant(
    source: Path,
    runtime: str,
    precision: Precision,
    folder: Path,
    *,
    settings: SaliencySettings,
    size_px: int,
    reference: SaliencyLocalizer,
    calibration: Photos,
    validation: Photos,
    threads: int,
    fallback: bool = False,
) -> Variant:
    """Make a saliency localizer's model for a runtime, and compare it with the reference.

    Args:
        source: ONNX, float32; height and width free where `size_px` is not the reference's.
        settings: The reference's.
        size_px: Height and width that the model will be fed; smaller is quicker and finds less.
        calibration: Photographs of the training split, for int8; at most `LOCALIZER_CALIBRATION` are looked at.
        validation: n ≥ 1 photographs of the validation split; at most `LOCALIZER_VALIDATION` are looked at.
    Others, Raises: As `classifier_variant`; ConfigError also where the localizer does not take that size.
    """
    order = _Order(source, runtime, folder, "localizer", [], threads)
    if precision == "int8":
        chosen = [calibration[i] for i in evenly(len(calibration), LOCALIZER_CALIBRATION)]
        sized = with_size(settings, size_px)
        inputs = network_inputs(chosen, sized)
        order = replace(order, calibration=[inputs[i : i + 1] for i in range(len(inputs))])
    looked_at = [validation[i] for i in evenly(len(validation), LOCALIZER_VALIDATION)]

    def judged(opened: Opened, limits: Tolerance | RegionTolerance) -> Trial:
        sized = with_size(settings, size_px)
        return SaliencyTrial(opened, reference, sized, source, order.calibration, looked_at, limits)

    return _lowered(order, precision, REGION_TOLERANCES, judged, fallback)


def with_size(settings: SaliencySettings, size_px: int) -> SaliencySettings:
    """The settings at another size.

    Raises:
        ConfigError: the network does not take it.
    """
    try:
        return SaliencySettings.model_validate({**settings.model_dump(), "size_px": size_px})
    except ValidationError as error:
        raise ConfigError(
            f"localizer {settings.name} at {size_px} px: {error.errors()[0]['msg']}; choose another size"
        ) from None


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be made, whatever the stage."""

    source: Path
    runtime: str
    folder: Path
    name: str
    calibration: Sequence[Images]
    threads: int

    def path(self, precision: Precision, suffix: str = ".onnx") -> Path:
        return self.folder / f"{self.name.lower()}.{precision}{suffix}"


Judged = Callable[[Opened, Tolerance | RegionTolerance], Trial]


def _lowered(
    order: _Order,
    precision: Precision,
    tolerances: Mapping[Precision, Tolerance] | Mapping[Precision, RegionTolerance],
    judged: Judged,
    fallback: bool,
) -> Variant:
    try:
        return _made(order, precision, tolerances[precision], judged)
    except ParityError as error:
        if not fallback or precision == "fp32":
            raise
        found = _made(order, "fp32", tolerances["fp32"], judged)
        return replace(found, log=({"what": "refused", "precision": precision, "reason": str(error)}, *found.log))


def _made(order: _Order, precision: Precision, limits: Tolerance | RegionTolerance, judged: Judged) -> Variant:
    form = _form(order.runtime, precision)
    if precision == "int8":
        check_calibration(order.calibration, order.source)
    compared_on, setting = _compared_on(order.runtime, precision, form)

    def opened(file: Path) -> RuntimeSession:
        return open_session(file, compared_on, threads=order.threads, precision=setting)

    trial = judged(opened, limits)

    def variant(file: Path, kept: Sequence[str], figures: Figures, log: Sequence[Step]) -> Variant:
        return Variant(file, precision, tuple(kept), figures, asdict(limits), log_of(log), compared_on)

    # First the source itself: where another runtime or a smaller input is too much already, no search can help.
    figures = trial.figures(order.source)
    gate(f"{order.name} in {precision if form == 'source' else 'fp32'} on {compared_on}", figures, limits)
    if form == "source":
        return variant(order.source, (), figures, ())
    refusals = []
    for suffix, made in _quantizers(order, precision):
        quantizer = made()
        out = order.path(precision, suffix)
        try:
            found = search(quantizer, out, trial)
        except ParityError as error:
            refusals.append(f"{type(quantizer).__name__}: {error}")
            continue
        kept = quantizer.in_float32() if isinstance(quantizer, HalfConverter) else found.kept
        if form == "flags":  # the runtime converts the source itself, and is told what to leave
            out.unlink()
            return variant(order.source, kept, found.figures, found.steps)
        return variant(out, kept, found.figures, found.steps)
    raise ParityError(f"{order.name} in {precision} on {compared_on}: {'; '.join(refusals)}")


def _form(runtime: str, precision: Precision) -> Literal["source", "flags", "file"]:
    """source: the runtime computes the FP32 file so; flags: as that, but for layers named; file: one of its own.

    Raises:
        ConfigError: no such runtime or precision.
        BackendError: that runtime does not compute so.
    """
    check_names(runtime, precision)
    if runtime == "torch":
        raise BackendError("torch runs what `l2r2 train` saved, not what is exported; choose another runtime")
    if (runtime, precision) in NEVER:
        raise BackendError(f"{runtime} does not compute in {precision}; {NEVER[runtime, precision]}")
    if precision == "fp32" or (runtime == "openvino" and precision != "int8"):
        return "source"
    if precision == "int8" or runtime in {"onnxruntime", "onnxruntime-cuda", "tensorrt-rtx"}:
        return "file"
    return "flags" if runtime == "onnxruntime-tensorrt" or _takes_flags() else "file"


def _takes_flags() -> bool:
    """Whether TensorRT is of a version that takes the precision from flags."""
    try:
        return weakly_typed(load_runtime("tensorrt"))
    except BackendError:
        return False


def _compared_on(runtime: str, precision: Precision, form: str) -> tuple[str, str]:
    """The runtime that a file is compared on, and its precision setting there.

    Where an engine is needed first, ONNX Runtime stands in; for BF16, which it lacks, OpenVINO, which then computes
    with weights and casts in BF16.
    """
    if runtime in HERE:
        return runtime, precision
    return ("openvino" if precision == "bf16" and form != "source" else "onnxruntime"), "fp32"


def _quantizers(order: _Order, precision: Precision) -> Iterator[tuple[str, Callable[[], Quantizer]]]:
    """Suffix of the file and what makes it, the better one first.

    On OpenVINO, files with Q/DQ pairs are as quick as NNCF's and a tenth as far from FP32, thanks to `rounding`.
    """
    if precision != "int8":
        half = precision
        yield ".onnx", lambda: HalfConverter(order.source, "fp16" if half == "fp16" else "bf16")
        return
    target: Target = "tensorrt" if order.runtime not in HERE else "openvino"
    if order.runtime == "onnxruntime":
        target = "onnxruntime"
    yield ".onnx", lambda: QdqQuantizer(order.source, order.calibration, target)
    if order.runtime == "openvino" and nncf_installed():
        yield ".xml", lambda: NncfQuantizer(order.source, order.calibration)
