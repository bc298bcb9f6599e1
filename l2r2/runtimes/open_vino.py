"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from l2r2.errors import ArtifactError, BackendError, ConfigError
from l2r2.machine import available_cores
from l2r2.runtimes.packages import keep_silent, require
from l2r2.runtimes.profiles import ShapeProfile
from l2r2.runtimes.tensors import Input, check_feed

HINTS: Final = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""Precision → what OpenVINO computes in. int8 is in the file (FakeQuantize or Q/DQ); the rest of it stays float32."""


def load_openvino() -> ModuleType:
    """The package.

    Raises:
        BackendMissing: it is not installed.
    """
    keep_silent()
    return require("openvino", "OpenVINO", "openvino")


COPIES_BYTES = 256 * 2**20
"""The most that copies of a model may take together, as its file is large."""


class OpenVinoSession:
    """A model compiled once, for as many inferences side by side as the cores hold; more than those wait.

    Each of them has a copy of the compiled model, made when it is first needed, and is run by the thread that calls.
    With one for all, OpenVINO wakes a thread of its own for each inference, which often waits for the core that the
    caller is about to leave while another is idle: the demo's cascade lost 7 % on two cores. A model that would take
    more than `COPIES_BYTES` is not copied.

    Attributes:
        inputs: Tensor name → shape; a string is a free axis.
        outputs: Tensor names.
    """

    def __init__(
        self,
        path: Path,
        threads: int = 1,
        precision: str = "fp32",
        cache: Path | None = None,
        profile: ShapeProfile | None = None,
    ) -> None:
        """Compile a model.

        Args:
            path: ONNX, or OpenVINO IR (.xml with its .bin beside it).
            threads: Of one inference. As many inferences as the cores hold run side by side.
            precision: What is computed in; without it OpenVINO takes bfloat16 wherever the CPU has it.
            cache: Where compiled models are kept; None: nowhere. OpenVINO runs what it finds there unchecked: a folder
                that nobody else can write to.
            profile: Compile for its best shapes alone, with a batch of 1; larger batches then run one by one. With free
                axes OpenVINO cannot plan memory: U²-Netp takes twice as much, and is slower.
        Raises:
            BackendMissing: OpenVINO is not installed.
            ConfigError: the profile is not of this model, or has another batch.
            ArtifactError: the file is missing, damaged or no model that OpenVINO can run.
            BackendError: this CPU does not compute in that precision.
        """
        load_openvino()
        self._most = max(1, available_cores() // threads)
        copied = self._most * _size(path) <= COPIES_BYTES
        streams = self._most if not copied else 0 if threads == 1 else 1  # 0: no threads are made that would idle
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(max(1, streams) * threads),
            # Pinned threads wait for a core that a neighbour holds while another is idle.
            "ENABLE_CPU_PINNING": False,
        }
        if cache is not None:
            settings["CACHE_DIR"] = str(cache)
        shapes = {} if profile is None else {name: each.opt for name, each in profile.inputs.items()}
        if any(batch != 1 for batch, *_ in shapes.values()):
            raise ConfigError(f"OpenVINO compiles for a batch of 1 or for any; expected no profile, got {profile}")
        core = openvino_core()
        try:
            with _one_at_a_time:
                model = core.read_model(str(path))
                inputs = _inputs(model)
                if shapes:
                    model.reshape(shapes)
            compiled = core.compile_model(model, "CPU", settings)
            self._copy = compiled.export_model() if copied and self._most > 1 else None
        except Exception as error:  # OpenVINO raises RuntimeError, and others from its frontends
            raise ArtifactError(f"{path} cannot be loaded by OpenVINO: {_reason(error)}") from error
        with _one_at_a_time:
            taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != HINTS[precision]:
            raise BackendError(f"this CPU computes in {taken} where {HINTS[precision]} was asked; take precision fp32")
        self._compiled = compiled
        self._settings = settings
        self._one_by_one = bool(shapes)
        self._inputs = {
            name: Input(given.dtype, [given.shape[0], *shapes[name][1:]] if name in shapes else given.shape)
            for name, given in inputs.items()
        }
        self.inputs: dict[str, list[int | str]] = {name: tensor.shape for name, tensor in self._inputs.items()}
        self.outputs: tuple[str, ...] = tuple(port.get_any_name() for port in compiled.outputs)
        self._room = threading.Semaphore(self._most)
        self._requests = [compiled.create_infer_request()]
        self._idle = deque(self._requests)

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once.

        Raises:
            BackendError: the feed does not fit the model, or the runtime failed.
        """
        check_feed("OpenVINO", self._inputs, feed)
        n = len(next(iter(feed.values())))
        if not self._one_by_one or n == 1:
            return self._run(feed)
        parts = [self._run({name: values[i : i + 1] for name, values in feed.items()}) for i in range(n)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._room:
            request = self._take()
            try:
                results = request.infer(dict(feed), share_inputs=True)
                return dict(zip(self.outputs, results.values(), strict=True))
            except Exception as error:
                raise BackendError(f"OpenVINO failed: {_reason(error)}") from error
            finally:
                self._idle.append(request)

    def _take(self) -> Any:
        """An idle request, or another, of a copy of its own if copies are made; never more than run side by side."""
        try:
            return self._idle.pop()  # atomic, and so is append
        except IndexError:
            copy, compiled = self._copy, self._compiled
        try:
            if copy is not None:
                compiled = openvino_core().import_model(copy, "CPU", self._settings)
            request = compiled.create_infer_request()
        except Exception as error:  # no memory left, say
            raise BackendError(f"OpenVINO failed: {_reason(error)}") from error
        self._requests.append(request)
        if len(self._requests) == self._most:
            self._copy = None
        return request


_one_at_a_time = threading.Lock()
"""Held around what first converts a type of OpenVINO's to one of Python's: two threads that do it at once may wait for
each other for ever, one with the interpreter's lock, one with that of a variable in C++ (seen in 2026.4)."""


def openvino_core() -> Any:
    """The process's one Core.

    A Core gives the thread that first uses it a signal stack, and unmaps it when the Core goes, from whatever thread
    and in whatever order that happens: a thread left without its stack dies of the next signal. So none ever goes.
    """
    with _one_at_a_time:  # two threads that both found none would make two
        return _core()


@functools.cache
def _core() -> Any:
    return load_openvino().Core()


def _inputs(model: Any) -> dict[str, Input]:
    return {port.get_any_name(): Input(np.dtype(port.element_type.to_dtype()), _shape(port)) for port in model.inputs}


def _shape(port: Any) -> list[int | str]:
    return [str(axis) if axis.is_dynamic else axis.get_length() for axis in port.partial_shape]


def _size(path: Path) -> int:
    """Bytes of a model with its weights, which may be in a file beside it."""
    return sum(file.stat().st_size for file in {path, path.with_suffix(".bin")} if file.is_file())


def _reason(error: Exception) -> str:
    """What OpenVINO says, in one line, without the places in its source."""
    summary = str(error).rpartition("Summary:")[2]
    lines = [line.strip("- ") for line in summary.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from ", "Check '", "FrontEnd API "))]
    return "; ".join(said)[:400] or type(error).__name__
