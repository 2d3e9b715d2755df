"""Shared by the laboratory's tests: one thread, tiny runs, a reporter that interrupts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sgdph.lab import cli
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.claims import LOCK
from sgdph.lab.run.directory import CHECKPOINT, RunDirectory
from sgdph.lab.run.distributed import ALONE
from sgdph.lab.run.evaluation import evaluation_sums
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.start import prepare
from sgdph.lab.run.training import train_run

Command = Callable[..., tuple[int, str, str]]
TINY: Mapping[str, Any] = {
    "dataset": "digits",
    "train_size": 100,
    "epochs": 3,
    "batch_size": 25,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def sgdph(capsys: pytest.CaptureFixture[str]) -> Command:
    """Call the command line, and return its exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def evaluate(
    model: nn.Module, data: Dataset, arithmetic: Arithmetic | None = None
) -> tuple[float, float]:
    """Compute mean cross-entropy (nats) and accuracy (0 to 1) over all labels evaluated on."""
    loss, correct, count = evaluation_sums(model, data, arithmetic or Arithmetic(), ALONE).tolist()
    return loss / count, correct / count


def snapshot(directory: Path) -> dict[str, bytes]:
    """Read every file of a directory."""
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits", train_size=100)


def tiny_config(**options: Any) -> RunConfig:
    """Configure a run that takes one second: 100 digits, 3 epochs of 4 steps."""
    return resolve({**TINY, **options})


class Silent:
    """A reporter that prints nothing. It calls ``at_batch`` with each finished step's number."""

    def __init__(self, at_batch: Callable[[int], None] = lambda number: None) -> None:
        self.at_batch = at_batch
        self.batches = 0

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        pass

    def batch_finished(self) -> None:
        self.batches += 1
        self.at_batch(self.batches)

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        pass

    def run_finished(self, name: str, message: str) -> None:
        pass


def interrupt_at(number: int) -> Silent:
    """Make a reporter that acts like Ctrl-C after the given step."""

    def at_batch(batch: int) -> None:
        if batch == number:
            raise KeyboardInterrupt

    return Silent(at_batch)


def start(
    config: RunConfig, path: Path, data: Dataset, reporter: Silent | None = None
) -> dict[str, Any]:
    """Start a run, or resume the one in the directory."""
    directory = RunDirectory(path)
    prepared = prepare(config, data)
    if not directory.exists():
        directory.create(config)
    return train_run(prepared, directory, reporter or Silent())


def kill_in_the_middle(run: RunDirectory) -> int | None:
    """Kill the process that trains a run, if it is past the first epoch and before the last one.

    Returns:
        The id of the killed process, or ``None`` if it was too early or too late.
    """
    try:
        pid = int(json.loads((run.path / LOCK).read_text())["pid"])
        # Stopped first, so that the run cannot change between this check and the kill.
        os.kill(pid, signal.SIGSTOP)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        # The run has not begun, its lock has no process id yet, or its process has ended.
        return None
    epochs = len(run.read_metrics()) if (run.path / CHECKPOINT).is_file() else 0
    if 0 < epochs < run.read_config().epochs:
        os.kill(pid, signal.SIGKILL)
        return pid
    os.kill(pid, signal.SIGCONT)
    return None


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Remove the measured times from lines of metrics."""
    return [
        {name: value for name, value in line.items() if not name.endswith("seconds")}
        for line in lines
    ]


def same_bits(first: Any, second: Any) -> bool:
    """Return whether two nested structures hold the same tensors, bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_bits(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return bool(first == second)


def checkpoint_of(path: Path, name: str = "last.pt") -> dict[str, Any]:
    """Load a run's checkpoint, without the measured times."""
    content = torch.load(path / name, weights_only=True)
    content["history"] = without_seconds(content["history"])
    return dict(content)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers of pools with imports done; importing takes most of a new worker's time."""
    monkeypatch.setattr("sgdph.lab.sweep.pool.START_METHOD", "forkserver")


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip a report's pictures, which take most of its time."""
    monkeypatch.setattr("sgdph.lab.reports.report.draw_pictures", lambda *_: [])
