"""A fit that is stopped anywhere goes on, and ends in the same weights, bit by bit."""

import json
import re
import subprocess
import sys
import textwrap

import pytest
import torch

from l2r2.errors import ArtifactError
from l2r2.training import fit as fit_module
from tests.training.noise import TRAINABLE, fit

kinds = pytest.mark.parametrize("kind", TRAINABLE)


class PlugPulled(Exception):  # noqa: N818  no error, an event
    """Pulls the plug inside the process."""


def stop_at(last):
    """An on_epoch that ends the fit before that epoch is saved."""

    def on_epoch(epoch, _):
        if epoch == last:
            raise PlugPulled

    return on_epoch


@pytest.fixture
def stopped(dataset, tmp_path):
    """A folder in which a fit was stopped in epoch 2 of 0 to 3."""
    with pytest.raises(PlugPulled):
        fit(dataset, tmp_path, trainable="head", on_epoch=stop_at(2))
    return tmp_path


@kinds
def test_killed_and_resumed_equals_uninterrupted(dataset, uninterrupted, tmp_path, kind):
    program = f"""
        import time
        from pathlib import Path
        import torch
        from l2r2.datasets import load_dataset
        from tests.training.noise import fit

        torch.set_num_threads(1)

        def on_epoch(epoch, _):
            print(epoch, flush=True)
            if epoch == 2:
                time.sleep(120)

        fit(load_dataset(Path({str(dataset.folder)!r})), Path({str(tmp_path)!r}), trainable={kind!r}, on_epoch=on_epoch)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as child:
        assert [child.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        child.kill()
    assert child.returncode == -9
    assert not (tmp_path / "model.safetensors").exists()

    told = []
    resumed = fit(dataset, tmp_path, trainable=kind, on_epoch=lambda epoch, _: told.append(epoch))
    assert told == [2, 3]
    assert resumed.weights.read_bytes() == uninterrupted[kind].weights.read_bytes()
    assert resumed.logits.read_bytes() == uninterrupted[kind].logits.read_bytes()
    assert resumed.best == uninterrupted[kind].best


def test_chance_repeats_after_a_stop(dataset, tmp_path):
    """Crops, colours and stochastic depth are those of the epoch, however often the fit was stopped before it."""
    changes = {"crop_scale": 0.3, "color_jitter": 0.4, "drop_path": 0.5, "warmup_epochs": 1, "optimizer": "sgd"}
    whole = fit(dataset, tmp_path / "whole", **changes)
    for end in (1, 3):
        with pytest.raises(PlugPulled):
            fit(dataset, tmp_path / "stopped", on_epoch=stop_at(end), **changes)
    assert fit(dataset, tmp_path / "stopped", **changes).weights.read_bytes() == whole.weights.read_bytes()


@kinds
@pytest.mark.parametrize("ends", [(0,), (1, 1, 3)])
def test_stopped_more_than_once(dataset, uninterrupted, tmp_path, kind, ends):
    for end in ends:
        with pytest.raises(PlugPulled):
            fit(dataset, tmp_path, trainable=kind, on_epoch=stop_at(end))
    assert fit(dataset, tmp_path, trainable=kind).weights.read_bytes() == uninterrupted[kind].weights.read_bytes()


def stopped_before_scoring(dataset, folder, monkeypatch, **changes):
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_score", lambda *_: stop_at(0)(0, None))
        with pytest.raises(PlugPulled):
            fit(dataset, folder, trainable="head", **changes)


def test_stopped_after_the_last_epoch(dataset, uninterrupted, tmp_path, monkeypatch):
    stopped_before_scoring(dataset, tmp_path, monkeypatch)
    told = []
    resumed = fit(dataset, tmp_path, trainable="head", on_epoch=lambda epoch, _: told.append(epoch))
    assert told == []
    assert resumed.best == uninterrupted["head"].best
    assert resumed.weights.read_bytes() == uninterrupted["head"].weights.read_bytes()


def test_a_fit_that_had_stopped_early_trains_no_further(dataset, tmp_path, monkeypatch):
    changes = {"learning_rate": 1e-12, "patience": 2, "epochs": 50}
    stopped_before_scoring(dataset, tmp_path, monkeypatch, **changes)
    told = []
    fit(dataset, tmp_path, trainable="head", on_epoch=lambda epoch, _: told.append(epoch), **changes)
    assert told == []


def test_checkpoints_are_safetensors(stopped):
    paths = sorted((stopped / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["best.ckpt", "last.ckpt"]
    for path in paths:
        data = path.read_bytes()
        # the format: the header's length as eight bytes, little-endian, then the header as JSON
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert {values["dtype"] for name, values in header.items() if name != "__metadata__"} <= {"F32", "I64", "F64"}


def test_nothing_is_pickled(dataset, tmp_path, monkeypatch):
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("torch's pickles were used"))
    with pytest.raises(PlugPulled):
        fit(dataset, tmp_path, trainable="head", on_epoch=stop_at(2))
    fit(dataset, tmp_path, trainable="head")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_checkpoint(dataset, stopped, size):
    last = stopped / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:size])
    with pytest.raises(
        ArtifactError, match=rf"^{re.escape(str(last))} is no checkpoint of ours: .+; delete it to start anew$"
    ):
        fit(dataset, stopped, trainable="head")


def test_a_checkpoint_that_is_deleted_is_started_anew(dataset, uninterrupted, stopped):
    (stopped / "checkpoints" / "last.ckpt").unlink()
    assert fit(dataset, stopped, trainable="head").weights.read_bytes() == uninterrupted["head"].weights.read_bytes()


def test_loader_processes_draw_the_resumed_epochs_order(dataset, tmp_path):
    """They begin before Lightning tells the sampler its epoch."""
    whole = fit(dataset, tmp_path / "whole", trainable="all", workers=1)
    with pytest.raises(PlugPulled):
        fit(dataset, tmp_path / "parts", trainable="all", workers=1, on_epoch=stop_at(2))
    resumed = fit(dataset, tmp_path / "parts", trainable="all", workers=1)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
