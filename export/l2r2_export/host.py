"""What a profile was taken on: processor, memory, graphics, versions; and what it used."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("l2r2", "numpy", "pillow", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch")

FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm")
"""Of the processor: those that decide which kernels run."""

RAPL = Path("/sys/class/powercap")


def facts() -> dict[str, str]:
    """Name → value; what the platform does not tell is left out."""
    found = {
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "usable cores": str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else "",
        **_processor(),
        **_memory(),
        **_graphics(),
        **dict(_versions()),
    }
    return {name: value for name, value in found.items() if value}


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in megabytes (10⁶ bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def energy_joules() -> float | None:
    """What the processor packages have used since some moment; None where the platform does not tell."""
    total = 0.0
    found = False
    for package in sorted(RAPL.glob("intel-rapl:?")):
        try:
            total += int((package / "energy_uj").read_text()) / 1e6
            found = True
        except (OSError, ValueError):
            continue
    return total if found else None


def _processor() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"processor": platform.processor()}
    first: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        first.setdefault(name.strip(), value.strip())
    flags = set((first.get("flags") or first.get("Features") or "").split())
    return {
        "processor": first.get("model name", ""),
        "processor MHz": first.get("cpu MHz", ""),
        "processor flags": " ".join(flag for flag in FLAGS if flag in flags),
    }


def _memory() -> dict[str, str]:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return {}
    return {"memory MB": str(round(pages * size / 1e6))}


def _graphics() -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    names = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.limit", "memory.total")
    query = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603  a constant command
    if done.returncode != 0 or not done.stdout.strip():
        return {}
    values = done.stdout.strip().splitlines()[0].split(", ")
    return {f"gpu {name}": value for name, value in zip(names, values, strict=False)}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield f"version {name}", version(name)
        except PackageNotFoundError:
            continue
