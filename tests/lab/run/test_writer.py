"""An epoch's files: written while the next epoch trains, and resumed on another device."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.conftest import (
    Silent,
    checkpoint_of,
    interrupt_at,
    same_bits,
    start,
    tiny_config,
    without_seconds,
)
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.files import WriteError
from sgdph.lab.run import training, writer
from sgdph.lab.run.directory import CHECKPOINT, RunDirectory
from sgdph.lab.run.start import prepare
from sgdph.lab.run.training import train_run
from sgdph.lab.run.writer import Snapshot, Writer


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files of CPU runs in the background, as for GPU runs."""
    monkeypatch.setattr(training, "writes_beside", lambda *_: True)


@pytest.mark.parametrize("step", [6, 9])
def test_a_run_written_in_the_background_is_the_same(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = tiny_config(keep_checkpoints=(1, 3), seed=3)
    start(config, tmp_path / "whole", digits)
    monkeypatch.setattr(training, "writes_beside", lambda *_: True)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "beside", digits, interrupt_at(step))
    run = RunDirectory(tmp_path / "beside")
    # The run waited for the write in progress.
    assert run.status() == "interrupted"
    assert checkpoint_of(run.path)["epoch"] == len(run.read_metrics()) == (step - 1) // 4
    start(config, run.path, digits)
    whole = RunDirectory(tmp_path / "whole")
    for name in (CHECKPOINT, "epoch-1.pt", "epoch-3.pt"):
        assert same_bits(checkpoint_of(run.path, name), checkpoint_of(whole.path, name))
    assert without_seconds(run.read_metrics()) == without_seconds(whole.read_metrics())
    assert run.read_summary()["epochs"] == whole.read_summary()["epochs"]
    assert run.status() == "finished"


@pytest.mark.usefixtures("beside")
def test_training_continues_without_changing_a_checkpoint_being_written(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch's steps are taken before the first epoch's checkpoint is written."""
    stepped, written = threading.Event(), []
    write = writer.write_checkpoint

    def slow(paths: Any, content: Any) -> None:
        # Ends after the next epoch has begun, and fails if that epoch waits for this write.
        assert content["epoch"] == 3 or stepped.wait(60)
        stepped.clear()
        written.append(content["epoch"])
        write(paths, content)

    monkeypatch.setattr(training, "write_checkpoint", slow)
    config = tiny_config(keep_checkpoints=(1, 2, 3))

    def at_batch(number: int) -> None:
        if number in (7, 11):
            stepped.set()

    start(config, tmp_path / "beside", digits, Silent(at_batch))
    assert written == [1, 2, 3]
    monkeypatch.undo()
    start(config, tmp_path / "whole", digits)
    for epoch in (1, 2, 3):
        name = f"epoch-{epoch}.pt"
        assert same_bits(
            checkpoint_of(tmp_path / "beside", name), checkpoint_of(tmp_path / "whole", name)
        )


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("epoch", [2, 3])
def test_a_failed_background_write_ends_the_run_and_loses_nothing(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    write = writer.write_checkpoint

    def full(paths: Any, content: Any) -> None:
        if content["epoch"] == epoch:
            raise WriteError("the disk is full")
        write(paths, content)

    config = tiny_config()
    start(config, tmp_path / "whole", digits)
    monkeypatch.setattr(training, "write_checkpoint", full)
    with pytest.raises(WriteError, match="the disk is full"):
        start(config, tmp_path / "run", digits)
    run = RunDirectory(tmp_path / "run")
    assert run.status() == "interrupted"
    assert checkpoint_of(run.path)["epoch"] == epoch - 1
    monkeypatch.setattr(training, "write_checkpoint", write)
    start(config, run.path, digits)
    assert same_bits(checkpoint_of(run.path), checkpoint_of(tmp_path / "whole"))


def test_later_changes_do_not_affect_a_snapshot() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3))
    model.to(memory_format=torch.channels_last)
    state = model.state_dict()
    content = {"model": state, "history": [{"epoch": 1}], "pair": (torch.ones(2), "text", None)}
    snapshot = Snapshot(content, torch.device("cpu")).content()
    expected = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3))
    expected.load_state_dict(snapshot["model"])
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for value in state.values():
            value.add_(1)
    content["history"].append({"epoch": 2})  # type: ignore[union-attr]
    assert isinstance(snapshot["model"], OrderedDict)
    assert same_bits(dict(snapshot["model"]), before)
    assert snapshot["model"]["0.weight"].stride() == state["0.weight"].stride()
    # Modules read a state's version from it.
    assert snapshot["model"]._metadata == state._metadata  # type: ignore[attr-defined]
    assert snapshot["history"] == [{"epoch": 1}]
    assert snapshot["pair"][1:] == ("text", None)


def test_a_writer_runs_writes_in_order() -> None:
    done: list[int] = []
    with Writer(True) as beside:
        for number in range(5):
            beside.do(lambda number=number: done.append(number))  # type: ignore[misc]
        beside.wait()
        assert done == list(range(5))


def test_a_run_from_a_gpu_resumes_without_a_gpu(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is as written by a process whose tensors are on ``cuda:3``."""
    config = tiny_config(epochs=2, keep_checkpoints=(1,))
    start(config, tmp_path / "whole", digits)
    content = torch.load(tmp_path / "whole" / "epoch-1.pt", weights_only=True)
    # As long as the state of a CUDA generator.
    content["generators"][0]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    gpus = RunDirectory(tmp_path / "gpus")
    gpus.create(tiny_config(epochs=2, keep_checkpoints=(1,), device="cuda:3"))
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:3")
        torch.save(content, gpus.path / CHECKPOINT)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(gpus.path / CHECKPOINT, weights_only=True)
    train_run(prepare(config, digits), gpus, Silent())
    assert same_bits(checkpoint_of(gpus.path), checkpoint_of(tmp_path / "whole"))
