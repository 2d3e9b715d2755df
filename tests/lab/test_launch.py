"""Runs of several processes, with ``torchrun`` played by the test."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgdph.lab import launch
from sgdph.lab.claims import Claimed
from sgdph.lab.config import LabError
from sgdph.lab.launch import train_in_processes
from sgdph.lab.runs import RunDirectory

from .conftest import tiny_config

CONFIG = tiny_config(processes=2, batch_size=24, data_dir="/data")
Play = Callable[[Callable[[], None], int], list[list[str]]]


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Takes what is to be done in place of the processes, and their exit code."""

    def play(act: Callable[[], None], code: int) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **options: Any) -> SimpleNamespace:
            commands.append(command)
            assert options["stdin"] is subprocess.DEVNULL
            options["stdout"].write(b"the last words\n")
            options["stdout"].flush()
            act()
            return SimpleNamespace(returncode=code)

        monkeypatch.setattr(launch.subprocess, "run", run)
        return commands

    return play


def nothing() -> None:
    pass


def test_the_processes_carry_the_run_on_at_its_place(tmp_path: Path, torchrun: Play) -> None:
    run = RunDirectory(tmp_path / "run")
    commands = torchrun(lambda: run.write_summary({"status": "finished"}), 0)
    run.create(CONFIG)
    train_in_processes(CONFIG, run, tmp_path / "logs" / "run.log")
    (command,) = commands
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[command.index("train") :] == [
        *("train", "--out", str(run.path), "--resume"),
        *("--data-dir", "/data", "--device", "cpu", "--threads", "1"),
    ]


def test_a_failure_says_what_they_said_last(tmp_path: Path, torchrun: Play) -> None:
    torchrun(nothing, 1)
    with pytest.raises(LabError, match=r"code 1 .*\nthe last words"):
        train_in_processes(CONFIG, RunDirectory(tmp_path / "run"), tmp_path / "run.log")


def test_a_run_that_diverged_is_no_failure(tmp_path: Path, torchrun: Play) -> None:
    run = RunDirectory(tmp_path)
    torchrun(lambda: run.write_summary({"status": "diverged"}), 1)
    train_in_processes(CONFIG, run, tmp_path / "run.log")


def test_an_interruption_goes_on_up(tmp_path: Path, torchrun: Play) -> None:
    torchrun(nothing, 130)
    with pytest.raises(KeyboardInterrupt):
        train_in_processes(CONFIG, RunDirectory(tmp_path), tmp_path / "run.log")


def test_a_run_that_another_process_took_is_no_failure(tmp_path: Path, torchrun: Play) -> None:
    torchrun(nothing, 2)
    with RunDirectory(tmp_path).claim(), pytest.raises(Claimed):
        train_in_processes(CONFIG, RunDirectory(tmp_path), tmp_path / "run.log")
