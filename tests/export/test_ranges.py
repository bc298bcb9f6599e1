from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from l2r2.errors import ExportError
from l2r2_export.ranges import DRAWN, best_range, ranges_of


def small() -> onnx.ModelProto:
    """x → relu(x) → x + relu(x), and a shape that nothing may quantize."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["sum"]),
        helper.make_node("Shape", ["sum"], ["shape"]),
        helper.make_node("Reshape", ["sum", "shape"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    return onnx.shape_inference.infer_shapes(model)


def test_every_tensor_that_may_be_quantized_gets_a_range(tmp_path: Path) -> None:
    batches = [
        np.random.default_rng(i).uniform(-1, 2, (n, 3, 8, 8)).astype(np.float32) for i, n in enumerate((4, 0, 2))
    ]
    found = ranges_of(small(), batches, False, tmp_path)
    assert set(found) == {"x", "r", "sum", "y"}
    seen = np.concatenate(batches)
    assert found["x"] == pytest.approx((seen.min(), seen.max()), rel=0.06)  # nothing is rare in it: little is clipped
    assert found["r"] == pytest.approx((0.0, seen.max()), rel=0.06)
    assert found["sum"] == pytest.approx((seen.min(), 2 * seen.max()), rel=0.06)


def test_what_is_rare_and_far_is_clipped(tmp_path: Path) -> None:
    batch = np.random.default_rng(0).normal(size=(4, 3, 256, 256)).astype(np.float32)
    batch[0, 0, 0, 0] = 60.0  # one of 786,432
    low, high = ranges_of(small(), [batch], False, tmp_path)["x"]
    assert batch.min() <= low < 0
    assert high == pytest.approx(0.3 * 60)  # the least that is tried


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    batch = np.zeros((1, 3, 8, 8), np.float32)
    batch[0, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="tensor 'x' is not finite on the calibration set"):
        ranges_of(small(), [batch], False, tmp_path)


def error(values: np.ndarray, low: float, high: float) -> float:
    """As a table of 256 levels says, one of which is zero."""
    scale = (high - low) / 255
    levels = (np.arange(256) - round(-low / scale)) * scale
    return float(np.mean(np.abs(values[:, None] - levels[None]).min(axis=1) ** 2))


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 100), symmetric=st.booleans())
def test_the_range_is_no_worse_than_all_that_was_seen(seed: int, scale: float, symmetric: bool) -> None:
    values = scale * np.random.default_rng(seed).standard_t(3, 256)
    low, high = float(values.min()), float(values.max())
    found = best_range(values, low, high, symmetric)
    assert found[0] <= 0 <= found[1]
    assert not symmetric or found[0] == -found[1]
    widest = (-max(-low, high), max(-low, high)) if symmetric else (low, high)
    assert widest[0] <= found[0]
    assert found[1] <= widest[1]
    assert error(values, *found) <= error(values, *widest) * (1 + 1e-9)


def test_a_tensor_of_zeros_has_an_empty_range() -> None:
    assert best_range(np.zeros(DRAWN), 0.0, 0.0) == (0.0, 0.0)
