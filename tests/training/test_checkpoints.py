"""Nested checkpoints as safetensors: what goes in comes out, and nothing else goes in."""

import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save

from l2r2.errors import ArtifactError
from l2r2.training.checkpoints import SafetensorsCheckpointIO

tensors = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0, max_dims=3)
).map(lambda array: torch.from_numpy(np.asarray(array)))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints") / "a.ckpt"


@given(tree=st.dictionaries(keys, trees, max_size=5))
def test_a_tree_comes_back(place, tree):
    SafetensorsCheckpointIO().save_checkpoint(tree, place)
    assert same(SafetensorsCheckpointIO().load_checkpoint(place), tree)


@pytest.mark.parametrize("name", ["__tensor__", "__tuple__", "__items__"])
def test_keys_that_look_like_ours_come_back(place, name):
    tree = {name: [1], "inner": {name: "t0"}}
    SafetensorsCheckpointIO().save_checkpoint(tree, place)
    assert SafetensorsCheckpointIO().load_checkpoint(place) == tree


def test_tensors_that_share_memory_come_back(place):
    whole = torch.arange(12.0).reshape(3, 4)
    tree = {"whole": whole, "turned": whole.T, "row": whole[1]}
    SafetensorsCheckpointIO().save_checkpoint(tree, place)
    assert same(SafetensorsCheckpointIO().load_checkpoint(place), tree)


def test_paths_become_text(place):
    SafetensorsCheckpointIO().save_checkpoint({"where": Path("a/b")}, place)
    assert SafetensorsCheckpointIO().load_checkpoint(place) == {"where": "a/b"}


@pytest.mark.parametrize(("value", "name"), [(object(), "object"), ({1}, "set"), (b"x", "bytes"), (print, "builtin_")])
def test_other_objects_are_refused(tmp_path, value, name):
    with pytest.raises(ArtifactError, match=rf"^a checkpoint holds a {name}.*, which safetensors cannot keep$"):
        SafetensorsCheckpointIO().save_checkpoint({"a": [value]}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_the_old_checkpoint_stays_where_a_new_one_is_refused(tmp_path):
    SafetensorsCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "a.ckpt")
    with pytest.raises(ArtifactError):
        SafetensorsCheckpointIO().save_checkpoint({"a": object()}, tmp_path / "a.ckpt")
    assert SafetensorsCheckpointIO().load_checkpoint(tmp_path / "a.ckpt") == {"a": 1}


FOREIGN = {
    "empty": b"",
    "no safetensors": b"PK\x03\x04" + bytes(100),
    "no tree": save({"a": torch.zeros(1)}),
    "another tree": save({"a": torch.zeros(1)}, {"tree": "{"}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused(tmp_path, name):
    path = tmp_path / "a.ckpt"
    path.write_bytes(FOREIGN[name])
    with pytest.raises(
        ArtifactError, match=rf"^{re.escape(str(path))} is no checkpoint of ours: .+; delete it to start anew$"
    ):
        SafetensorsCheckpointIO().load_checkpoint(path)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match=r"a\.ckpt is no checkpoint of ours: "):
        SafetensorsCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


def test_removing_twice(tmp_path):
    SafetensorsCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "a.ckpt")
    for _ in range(2):
        SafetensorsCheckpointIO().remove_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(dataset, tmp_path):
    """The operating system refuses every byte past a limit: of a checkpoint, then of a fit's final weights."""
    program = f"""
        import resource, signal
        from pathlib import Path
        import torch
        from l2r2.datasets import load_dataset
        from l2r2.errors import ArtifactError
        from l2r2.training.checkpoints import SafetensorsCheckpointIO
        from tests.training.noise import fit

        folder = Path({str(tmp_path)!r})
        torch.set_num_threads(1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        for write in (
            lambda: SafetensorsCheckpointIO().save_checkpoint({{"a": torch.zeros(100_000)}}, folder / "a.ckpt"),
            lambda: fit(load_dataset(Path({str(dataset.folder)!r})), folder / "fit", trainable="head", epochs=1),
        ):
            try:
                write()
            except ArtifactError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        f"cannot write {tmp_path / name}: File too large; nothing was changed, make room and run it again"
        for name in ("a.ckpt", "fit/model.safetensors")
    ], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["checkpoints"]
