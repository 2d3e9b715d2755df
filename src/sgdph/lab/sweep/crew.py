"""Processes on this machine that share one piece of work, and end with the one that started them.

A parent starts them, each with a log of its own, hands each its order over standard input and keeps
that pipe open. A worker that finds it closed stops like at Ctrl-C: so none outlives its parent,
however that ended.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sgdph.lab.errors import LabError
from sgdph.lab.output import utf8_environment

# How long a worker that was told to stop may take, in seconds.
GRACE = 60.0
LOOK_EVERY = 1.0


@dataclass(frozen=True)
class Crew:
    """The workers of one directory.

    Attributes:
        processes: The workers.
        logs: Their logs.
    """

    processes: tuple[subprocess.Popen[bytes], ...]
    logs: tuple[Path, ...]

    @classmethod
    def start(
        cls,
        module: str,
        order: Mapping[str, Any],
        logs: Sequence[Path],
        *,
        split_gpus: bool,
    ) -> Crew:
        """Start a worker for each log.

        Args:
            module: What they run; it calls :func:`read_order` first.
            order: What they are to do; must fit JSON. They are told the parent's command as well.
            logs: Where each writes; an earlier log is carried on.
            split_gpus: Whether each sees one of the GPUs, in turn; if not, all of them see all.
        """
        line = json.dumps({**order, "argv": sys.argv}).encode() + b"\n"
        processes = []
        for index, path in enumerate(logs):
            with path.open("ab") as log:
                process = subprocess.Popen(
                    (sys.executable, "-m", module),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**utf8_environment(), **(visible_device(index) if split_gpus else {})},
                    # Ctrl-C goes to the parent alone, which then stops each once.
                    start_new_session=True,
                )
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
            processes.append(process)
        return cls(tuple(processes), tuple(logs))

    def wait(self, look: Callable[[], None]) -> None:
        """Wait for all to end, looking at the runs every second.

        Args:
            look: Called every second, and once at the end.

        Raises:
            KeyboardInterrupt: When interrupted; the workers have then stopped.
        """
        try:
            for process in self.processes:
                while True:
                    look()
                    try:
                        process.wait(LOOK_EVERY)
                        break
                    except subprocess.TimeoutExpired:
                        continue
        finally:
            self.stop()
        look()

    def stop(self) -> None:
        """Have every worker stop after the step it is at, and wait until it has."""
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self.processes:
            _wait_or_kill(process)

    def complaints(self) -> list[str]:
        """Say of each worker that ended otherwise than by having nothing left to do."""
        return [
            f"worker {number} ended with code {process.returncode}: see {log}"
            for number, (process, log) in enumerate(zip(self.processes, self.logs, strict=True), 1)
            if process.returncode != 0
        ]


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def check_workers(count: int | None, flag: str) -> None:
    """Raise LabError unless a number of workers, where one was asked for with a flag, is one."""
    if count is not None and count < 1:
        raise LabError(f"{flag} must be at least 1; got {count}")


def threads_each(count: int) -> int:
    """Return how many CPU threads each of so many processes gets."""
    return max(1, available_cores() // count)


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_device(index: int) -> dict[str, str]:
    """Return the environment that gives the worker of this index, from 0, one of the GPUs."""
    if not torch.cuda.is_available():
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)].strip()}


def read_order() -> dict[str, Any]:
    """Read the parent's order, and take over the command that runs say they were made by.

    To be called before anything else that a worker does.
    """
    # A program started in the background of a script ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            raise SystemExit("the parent ended before it gave an order")
        line += piece
    order: dict[str, Any] = json.loads(line)
    sys.argv = list(order["argv"])
    return order


def interrupt() -> None:
    """Do to this process what Ctrl-C in a terminal does: what it started is interrupted as well."""
    if os.name == "posix" and os.getpgrp() == os.getpid():
        # A signal, unlike interrupt_main, ends a wait for another process too.
        os.killpg(0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def watch_parent() -> None:
    """Interrupt this process when its standard input ends."""

    def watch() -> None:
        # Not through sys.stdin, whose lock would be in the way when the process ends.
        while os.read(0, 1024):
            pass
        interrupt()

    threading.Thread(target=watch, daemon=True).start()
