"""The packages behind the runtimes: imported when they are first needed, named when they are missing."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from l2r2.errors import BackendError, BackendMissing


def require(package: str, title: str, extra: str) -> ModuleType:
    """Import a package.

    Args:
        title: As a person calls it.
        extra: Of l2r2, that brings it.
    Raises:
        BackendMissing: it is not installed; the message has the command.
        BackendError: it is installed and cannot be loaded.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise BackendMissing(f"{title} is not installed; run: pip install 'l2r2[{extra}]'") from error
    except Exception as error:  # a shared library that is missing says so in many ways
        raise BackendError(
            f"{title} is installed but cannot be loaded: {first_line(error)}; install it again"
        ) from error


def keep_silent() -> None:
    """Keep OpenVINO and NNCF from reporting each use: a child process, a file in the home, a connection.

    Both do without the package that does it where it cannot be imported. To be called before either is imported.
    """
    modules: Any = sys.modules
    modules.setdefault("openvino_telemetry", None)  # None: importing it is an ImportError


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
