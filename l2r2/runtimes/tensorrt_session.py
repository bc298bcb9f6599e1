"""Running engines of TensorRT and TensorRT-RTX."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from l2r2.errors import ArtifactError, BackendError
from l2r2.runtimes.cuda_device import Cuda
from l2r2.runtimes.tensorrt_building import logger_of
from l2r2.runtimes.tensors import FREE, Input, check_feed


class TensorRtSession:
    """An engine loaded once; `infer` may be called from several threads, each with a context and a stream of its own.

    Attributes:
        inputs: Tensor name → shape; a string is a free axis.
        outputs: Tensor names.
    """

    def __init__(self, trt: ModuleType, title: str, engine: Path, cuda: Cuda) -> None:
        """Load an engine that `check_engine` has passed.

        Args:
            trt: `tensorrt` or `tensorrt_rtx`.
            title: As a person calls it.
        Raises:
            ArtifactError: it is no engine for this version and this GPU.
            BackendError: it has inputs or outputs of a kind that l2r2 does not feed.
        """
        self._trt, self._title, self._cuda = trt, title, cuda
        self._log = log = logger_of(trt)
        log.errors.clear()
        cuda.enter()
        self._runtime = trt.Runtime(log)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise ArtifactError(f"{engine} cannot be loaded by {title} {trt.__version__}: {log.said()}; build it again")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        given = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._inputs = {name: Input(self._dtype(trt, name), self._shape(name)) for name in given}
        self._results = {name: self._dtype(trt, name) for name in names if name not in given}
        self._bounds = {name: self._engine.get_tensor_profile_shape(name, 0) for name in given}
        self.inputs: dict[str, list[int | str]] = {name: tensor.shape for name, tensor in self._inputs.items()}
        self.outputs: tuple[str, ...] = tuple(self._results)
        self._idle: deque[_Lane] = deque()
        weakref.finalize(self, _close, self._idle)

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once; returns when the results are on the host.

        Raises:
            BackendError: the feed does not fit the engine, or TensorRT or CUDA failed.
        """
        self._check(feed)
        self._cuda.enter()
        try:
            try:
                lane = self._idle.pop()  # atomic, and so is append
            except IndexError:
                lane = _Lane(self._cuda, self._engine.create_execution_context(), self._log)
            answer = lane.run(feed, self._results)
        except BackendError as error:  # a lane that failed is not used again
            raise BackendError(f"{self._title} failed: {error}") from error
        self._idle.append(lane)
        return answer

    def layer_times(self, feed: Mapping[str, np.ndarray], runs: int) -> dict[str, float]:
        """Milliseconds that one inference spends in each layer of the engine: the mean of `runs`, in order.

        In a context of its own, with TensorRT's IProfiler, which slows it.

        Raises:
            BackendError: as `infer`.
        """
        self._check(feed)
        self._cuda.enter()
        context, profiler = self._engine.create_execution_context(), profiler_of(self._trt)
        try:
            lane = _Lane(self._cuda, context, self._log)
            lane.run(feed, self._results)
            context.profiler = profiler
            # The layers' times are read once the stream is done, so that reading them does not add to them.
            context.enqueue_emits_profile = False
            for _ in range(runs):
                lane.run(feed, self._results)
                if not context.report_to_profiler():
                    raise BackendError(f"it does not tell the times of its layers: {self._log.said()}")  # noqa: TRY301
            lane.close()
        except BackendError as error:
            raise BackendError(f"{self._title} failed: {error}") from error
        return {name: ms / runs for name, ms in profiler.ms.items()}

    def _check(self, feed: Mapping[str, np.ndarray]) -> None:
        check_feed(self._title, self._inputs, feed)
        for name, (low, _, high) in self._bounds.items():
            shape = feed[name].shape
            if not all(least <= axis <= most for least, axis, most in zip(low, shape, high, strict=True)):
                raise BackendError(
                    f"{self._title} failed: {name} is {list(shape)}; the engine was built for {list(low)} to "
                    f"{list(high)}, build it with another profile"
                )

    def _dtype(self, trt: ModuleType, name: str) -> np.dtype:
        kind = self._engine.get_tensor_dtype(name)
        if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BackendError(f"{self._title} wants {name} on the host; l2r2 feeds tensors on the GPU only")
        try:
            return np.dtype(trt.nptype(kind))
        except TypeError:
            raise BackendError(f"{name} is {kind.name}, which numpy lacks; export it with float32 ends") from None

    def _shape(self, name: str) -> list[int | str]:
        return [FREE if axis < 0 else axis for axis in self._engine.get_tensor_shape(name)]


class _Lane:
    """What one inference at a time needs: a context, a stream and memory that grows to the largest seen."""

    def __init__(self, cuda: Cuda, context: Any, log: Any) -> None:
        if context is None:
            raise BackendError(f"no context for the engine: {log.said()}")
        self._cuda, self._context, self._log = cuda, context, log
        self._stream = cuda.stream()
        self._memory: dict[str, tuple[int, int]] = {}  # tensor → address, bytes
        self._finalizer = weakref.finalize(self, _free, cuda, self._memory, self._stream)

    def run(self, feed: Mapping[str, np.ndarray], results: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                raise BackendError(f"it refuses {name} of shape {list(array.shape)}")
            self._cuda.upload(array, self._place(name, array.nbytes), self._stream)
        answer = {}
        for name, dtype in results.items():
            shape = tuple(self._context.get_tensor_shape(name))
            if any(axis < 0 for axis in shape):
                raise BackendError(
                    f"the shape of {name} depends on the values, which l2r2 cannot read; export it fixed"
                )
            answer[name] = np.empty(shape, dtype)
            self._place(name, answer[name].nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise BackendError(f"the engine did not run: {self._log.said()}")
        for name, array in answer.items():
            self._cuda.download(self._memory[name][0], array, self._stream)
        self._cuda.wait(self._stream)
        return answer

    def close(self) -> None:
        self._finalizer()

    def _place(self, name: str, size: int) -> int:
        """Memory for a tensor, told to the context."""
        address, there = self._memory.get(name, (0, 0))
        if address == 0 or there < size:
            if address:
                self._cuda.free(address)
                del self._memory[name]
            address = self._cuda.allocate(size)
            self._memory[name] = (address, size)
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"it refuses memory for {name}")
        return address


def profiler_of(trt: ModuleType) -> Any:
    """An `IProfiler` whose `ms` adds up what it is told: layer → milliseconds, in order."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] = self.ms.get(layer_name, 0.0) + ms

    return Profiler()


def _close(lanes: deque[_Lane]) -> None:
    while lanes:
        lanes.pop().close()


def _free(cuda: Cuda, memory: Mapping[str, tuple[int, int]], stream: int) -> None:
    cuda.enter()
    for address, _ in memory.values():
        cuda.free(address)
    cuda.destroy(stream)
