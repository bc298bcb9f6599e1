"""What a profile was taken on: processor, memory, graphics, versions; and what it used."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from l2r2.machine import available_cores

PACKAGES = (
    "l2r2",
    "numpy",
    "pillow",
    "scipy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt_rtx",
    "cuda-bindings",
    "torch",
)

FLAGS = (
    "sse4_2",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "neon",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
)
"""Of the processor: those that decide which kernels run."""

UNSTEADY = ("processor MHz", "load", "gpu clocks.sm", "gpu clocks.mem", "gpu temperature.gpu")
"""Facts of the moment rather than of the machine."""

CPU_FOLDER = Path("/sys/devices/system/cpu")
RAPL = Path("/sys/class/powercap")
CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def facts() -> dict[str, str]:
    """Name → value; what the platform does not tell is left out."""
    found = {
        "system": platform.platform(terse=True),
        "distribution": _distribution(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "board": _read(PROC / "device-tree/model").rstrip("\0"),
        "cores": str(os.cpu_count()),
        "usable cores": str(available_cores()),
        "cpu quota": _read(CGROUP / "cpu.max").partition("max ")[0],
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "",
        **_processor(),
        **_clocks(),
        **_memory(),
        **_graphics(),
        **dict(_versions()),
    }
    return {name: value for name, value in found.items() if value}


def device_name(host: Mapping[str, str], on_gpu: bool) -> str:
    """What a person calls the device: the GPU where that is what ran, else the board or the processor."""
    if on_gpu and "gpu name" in host:
        return host["gpu name"]
    name = host.get("board") or host.get("processor") or host.get("machine", "device")
    return f"{name}, {host.get('usable cores') or host.get('cores', '?')} cores"


def forget_peak() -> None:
    """Start the peak memory anew, where the platform can (Linux)."""
    with suppress(OSError):
        (PROC / "self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Largest resident size of this process since `forget_peak`, else since its start; megabytes (10⁶ bytes)."""
    for line in _read(PROC / "self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@dataclass(frozen=True, slots=True)
class Energy:
    """Counters of energy at one moment, in joules; only differences mean something.

    Attributes:
        packages: Processor package → (counter, where it starts again from zero).
        gpu: Of the first NVIDIA GPU; None where the platform does not tell.
    """

    packages: Mapping[str, tuple[float, float]]
    gpu: float | None

    @classmethod
    def now(cls) -> Energy:
        """Read the counters: RAPL's (which Linux lets only root read, on most machines) and NVML's."""
        packages = {}
        for package in sorted(RAPL.glob("intel-rapl:?")):  # AMD's go by that name too
            counter, turn = (_read(package / name) for name in ("energy_uj", "max_energy_range_uj"))
            if counter.isdigit():
                packages[package.name] = (int(counter) / 1e6, int(turn or 0) / 1e6)
        millijoules = _nvml_number("nvmlDeviceGetTotalEnergyConsumption")
        return cls(packages, None if millijoules is None else millijoules / 1000)

    def processor_since(self, before: Energy) -> float | None:
        """Joules that the processor packages used, neighbours included; a counter may have turned over once."""
        both = before.packages.keys() & self.packages.keys()
        if not both:
            return None
        used = 0.0
        for name in both:
            (then, _), (now, turn) = before.packages[name], self.packages[name]
            used += now - then if now >= then else now - then + turn
        return used

    def gpu_since(self, before: Energy) -> float | None:
        """Joules that the GPU used, neighbours included."""
        return None if self.gpu is None or before.gpu is None else self.gpu - before.gpu


def gpu_memory_mb() -> float | None:
    """In use on the first NVIDIA GPU, by whomever; megabytes (10⁶ bytes). None where there is none."""
    nvml = _nvml()
    if nvml is None:
        return None
    library, device = nvml
    amounts = (ctypes.c_ulonglong * 3)()  # total, free, used
    return None if library.nvmlDeviceGetMemoryInfo(device, amounts) else amounts[2] / 1e6


@functools.cache
def _nvml() -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    """NVIDIA's management library, which comes with the driver, and its first GPU."""
    for name in ("libnvidia-ml.so.1", "nvml.dll"):
        with suppress(OSError, AttributeError):
            library, device = ctypes.CDLL(name), ctypes.c_void_p()
            if not library.nvmlInit_v2() and not library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
                return library, device
    return None


def _nvml_number(function: str) -> int | None:
    nvml = _nvml()
    if nvml is None:
        return None
    library, device = nvml
    value = ctypes.c_ulonglong()
    return None if getattr(library, function)(device, ctypes.byref(value)) else value.value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _processor() -> dict[str, str]:
    first: dict[str, str] = {}
    for line in _read(PROC / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        first.setdefault(name.strip(), value.strip())
    flags = set((first.get("flags") or first.get("Features") or "").split())
    return {
        "processor": first.get("model name")
        or _ask("sysctl", "-n", "machdep.cpu.brand_string")
        or platform.processor(),
        "processor family": "/".join(first[key] for key in ("cpu family", "model", "stepping") if key in first),
        "processor MHz": first.get("cpu MHz", ""),
        "processor flags": " ".join(flag for flag in FLAGS if flag in flags),
    }


def _clocks() -> dict[str, str]:
    """In kHz as Linux has them; a virtual machine seldom tells."""
    folder = CPU_FOLDER / "cpu0/cpufreq"
    turbo = {"0": "on", "1": "off"}.get(_read(CPU_FOLDER / "intel_pstate/no_turbo"), "")
    return {
        "governor": _read(folder / "scaling_governor"),
        "processor kHz least": _read(folder / "cpuinfo_min_freq"),
        "processor kHz most": _read(folder / "cpuinfo_max_freq"),
        "turbo": turbo or {"1": "on", "0": "off"}.get(_read(CPU_FOLDER / "cpufreq/boost"), ""),
    }


def _memory() -> dict[str, str]:
    limit = _read(CGROUP / "memory.max")
    found = {"memory limit MB": str(round(int(limit) / 1e6))} if limit.isdigit() else {}
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return found
    return {"memory MB": str(round(pages * size / 1e6)), **found}


def _graphics() -> dict[str, str]:
    names = (
        "name",
        "driver_version",
        "compute_cap",
        "clocks.sm",
        "clocks.mem",
        "clocks.max.sm",
        "clocks.max.mem",
        "power.limit",
        "memory.total",
        "temperature.gpu",
    )
    told = _ask("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    if not told:
        return {}
    values = told.splitlines()[0].split(", ")
    return {f"gpu {name}": value for name, value in zip(names, values, strict=False) if not value.startswith("[N")}


def _ask(program: str, *words: str) -> str:
    """What a program says; nothing where it is missing or fails."""
    place = shutil.which(program)
    if place is None:
        return ""
    done = subprocess.run([place, *words], capture_output=True, text=True, check=False)  # noqa: S603  constant commands
    return done.stdout.strip() if done.returncode == 0 else ""


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"version {name}", version(name)
