"""What this processor does with eight-bit numbers."""

from __future__ import annotations

import platform
from pathlib import Path


def saturates() -> bool:
    """Whether this processor adds up 8-bit products in 16 bits: x86 without VNNI.

    Weights of all eight bits then give wrong sums; those of seven bits are right everywhere. Source: ONNX Runtime's
    quantization guide, "When to use reduce-range".
    """
    if platform.machine().lower() not in {"x86_64", "amd64", "i686"}:
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # unknown
