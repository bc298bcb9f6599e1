"""What a session needs of CUDA, through NVIDIA's cuda-bindings: 30 MB beside the driver, where PyTorch is gigabytes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from l2r2.errors import BackendError
from l2r2.runtimes.packages import require

DRIVER: str = "install NVIDIA's driver, or take a runtime for the CPU (onnxruntime, openvino)"


class Cuda:
    """One GPU.

    Attributes:
        architecture: Its compute capability, such as SM89.
    """

    def __init__(self, device: int = 0) -> None:
        """Find a GPU.

        Raises:
            BackendMissing: cuda-bindings is not installed.
            BackendError: there is no driver, or no such GPU.
        """
        self._api: ModuleType = require("cuda.bindings.runtime", "cuda-bindings", "cuda")
        error, count = self._api.cudaGetDeviceCount()
        if int(error) != 0:
            raise BackendError(f"no NVIDIA GPU can be used here: {self._say(error)}; {DRIVER}")
        if not 0 <= device < count:
            raise BackendError(f"there is no GPU {device}; expected 0 to {count - 1}")
        self.device = device
        attribute = self._api.cudaDeviceAttr
        major, minor = (
            self._call(self._api.cudaDeviceGetAttribute(which, device))
            for which in (attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor)
        )
        self.architecture = f"SM{major}{minor}"

    def enter(self) -> None:
        """Make this the GPU of the calling thread."""
        self._call(self._api.cudaSetDevice(self.device))

    def stream(self) -> int:
        """A stream that does not wait for the default one."""
        return int(self._call(self._api.cudaStreamCreateWithFlags(self._api.cudaStreamNonBlocking)))

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        return int(self._call(self._api.cudaMalloc(max(size, 1))))

    def upload(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy a contiguous array to the GPU; it must live until `wait`."""
        self._copy(address, array.ctypes.data, array.nbytes, self._api.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def download(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy into a contiguous array, which holds the values after `wait`."""
        self._copy(array.ctypes.data, address, array.nbytes, self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def wait(self, stream: int) -> None:
        """Until all that was put into a stream is done."""
        self._call(self._api.cudaStreamSynchronize(stream))

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call(self._api.cudaFree(address))

    def destroy(self, stream: int) -> None:
        """Give a stream back."""
        self._call(self._api.cudaStreamDestroy(stream))

    def _copy(self, target: int, source: int, size: int, kind: object, stream: int) -> None:
        self._call(self._api.cudaMemcpyAsync(target, source, size, kind, stream))

    def _call(self, answer: tuple[Any, ...]) -> Any:
        """The value of a call, whose first element says whether it went well."""
        if int(answer[0]) != 0:
            raise BackendError(f"CUDA failed: {self._say(answer[0])}")
        return answer[1] if len(answer) > 1 else None

    def _say(self, error: Any) -> str:
        _, text = self._api.cudaGetErrorString(error)
        return str(text.decode() if isinstance(text, bytes) else text)
