"""Runs of several processes, with a stand-in for ``torchrun``."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.conftest import tiny_config
from sgdph.lab.errors import LabError
from sgdph.lab.run import launch
from sgdph.lab.run.claims import Claimed
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.launch import train_in_processes

CONFIG = tiny_config(processes=2, batch_size=24, data_dir="/data")
Play = Callable[[Callable[[], None], int], list[list[str]]]


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Replaces the processes with a given function and a given exit code."""

    def play(act: Callable[[], None], code: int) -> list[list[str]]:
        commands: list[list[str]] = []

        def start(command: list[str], **options: Any) -> SimpleNamespace:
            commands.append(command)
            assert options["stdin"] is subprocess.DEVNULL
            options["stdout"].write(b"the last words\n")
            options["stdout"].flush()
            act()
            return SimpleNamespace(wait=lambda: code)

        monkeypatch.setattr(launch.subprocess, "Popen", start)
        return commands

    return play


def nothing() -> None:
    pass


def test_torchrun_resumes_the_run_with_its_data_directory_and_device(
    tmp_path: Path, torchrun: Play
) -> None:
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


def test_the_error_shows_the_last_output_of_failed_processes(
    tmp_path: Path, torchrun: Play
) -> None:
    torchrun(nothing, 1)
    with pytest.raises(LabError, match=r"code 1 .*\nthe last words"):
        train_in_processes(CONFIG, RunDirectory(tmp_path / "run"), tmp_path / "run.log")


def test_a_diverged_run_is_not_a_failure(tmp_path: Path, torchrun: Play) -> None:
    run = RunDirectory(tmp_path)
    torchrun(lambda: run.write_summary({"status": "diverged"}), 1)
    train_in_processes(CONFIG, run, tmp_path / "run.log")


def test_an_interruption_of_the_processes_raises_keyboard_interrupt(
    tmp_path: Path, torchrun: Play
) -> None:
    torchrun(nothing, 130)
    with pytest.raises(KeyboardInterrupt):
        train_in_processes(CONFIG, RunDirectory(tmp_path), tmp_path / "run.log")


def test_a_run_that_another_process_trains_raises_claimed(tmp_path: Path, torchrun: Play) -> None:
    torchrun(nothing, 2)
    with RunDirectory(tmp_path).claim(), pytest.raises(Claimed):
        train_in_processes(CONFIG, RunDirectory(tmp_path), tmp_path / "run.log")


# A worker that waits for its torchrun. If interrupted, torchrun takes a moment to end.
WORKER = """
import signal, subprocess, sys
from multiprocessing.connection import Connection
from sgdph.lab.sweep import pool
from sgdph.lab.run.launch import wait

# As a worker does: who runs the tests in the background of a script has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
process = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.DEVNULL)
pool._training.set()
pool.end_with(Connection(0, writable=False))
try:
    wait(process)
except KeyboardInterrupt:
    print("interrupted after", process.returncode, flush=True)
"""
TORCHRUN = """
import signal, subprocess, sys

try:
    print("ready", flush=True)
    signal.pause()
except KeyboardInterrupt:
    subprocess.run([sys.executable, "-c", ""])
    print("ended", flush=True)
    raise SystemExit(7)
"""


@pytest.mark.skipif(not hasattr(signal, "pause"), reason="needs POSIX signals")
def test_a_worker_without_its_parent_stops_its_processes_and_waits_for_them() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, TORCHRUN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline() == "ready\n"
        # This closes standard input, as when the parent ends.
        said, _ = worker.communicate(timeout=120)
    finally:
        worker.kill()
    assert said == "ended\ninterrupted after 7\n"
