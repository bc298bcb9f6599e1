"""Sessions on inference runtimes, behind one protocol (`l2r2.types.Session`), and the engines they need built ahead."""

from l2r2.runtimes.engine_cache import EngineCache as EngineCache
from l2r2.runtimes.engine_cache import EngineKey as EngineKey
from l2r2.runtimes.engines import build_ahead as build_ahead
from l2r2.runtimes.onnx_runtime import OnnxRuntimeSession as OnnxRuntimeSession
from l2r2.runtimes.profiles import ShapeProfile as ShapeProfile
from l2r2.runtimes.profiles import ShapeRange as ShapeRange
from l2r2.runtimes.sessions import PRECISIONS as PRECISIONS
from l2r2.runtimes.sessions import RUNTIMES as RUNTIMES
from l2r2.runtimes.sessions import RuntimeSession as RuntimeSession
from l2r2.runtimes.sessions import open_session as open_session
from l2r2.runtimes.sessions import why_not as why_not

__all__ = [
    "PRECISIONS",
    "RUNTIMES",
    "EngineCache",
    "EngineKey",
    "OnnxRuntimeSession",
    "RuntimeSession",
    "ShapeProfile",
    "ShapeRange",
    "build_ahead",
    "open_session",
    "why_not",
]
