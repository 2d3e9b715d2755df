"""Trains a run that the kernel kills, once for each moment, each time in a fork."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgdph.lab.data.loading import load_dataset
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.start import prepare
from sgdph.lab.run.training import train_run

# File operations of the second epoch, in order.
OPERATIONS = {
    "before the metrics": ("open", "metrics.jsonl"),
    "before the kept checkpoint": ("open", "epoch-2.pt.partial"),
    "before the last checkpoint": ("open", "last.pt.partial"),
    "before the checkpoint is replaced": ("os.rename", "last.pt.partial"),
    "before the summary": ("open", "summary.json.partial"),
}
MOMENTS = ("at a step", "within the checkpoint", *OPERATIONS)
STEP = 3
# The file that lists, in the same order, the signal that killed each run.
SIGNALS = "signals"
CONFIG: Mapping[str, Any] = {
    "dataset": "digits",
    "train_size": 100,
    "epochs": 3,
    "batch_size": 50,
    "device": "cpu",
    "threads": 1,
    "keep_checkpoints": (2,),
}


class Killer:
    """A reporter that gets its process killed at a given moment of the second epoch."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.steps = self.epoch = 0

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        if self.moment in OPERATIONS:
            # An audit hook cannot be removed, so it is added here, in the fork.
            sys.addaudithook(self.operation)

    def operation(self, event: str, arguments: tuple[Any, ...]) -> None:
        name, file = OPERATIONS[self.moment]
        if self.epoch == 1 and event == name and Path(str(arguments[0])).name == file:
            os.kill(os.getpid(), signal.SIGKILL)

    def batch_finished(self) -> None:
        self.steps += 1
        if self.steps == STEP and self.moment == "at a step":
            os.kill(os.getpid(), signal.SIGKILL)

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        self.epoch += 1
        if self.moment == "within the checkpoint":
            # Python ignores SIGXFSZ, so that the write raises an error. With the default action,
            # the signal ends the process exactly at the size limit.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    def run_finished(self, name: str, message: str) -> None:
        pass


def main(folder: Path) -> None:
    config, data = resolve(CONFIG), load_dataset("digits", train_size=100)
    for moment in MOMENTS:
        child = os.fork()
        if child == 0:
            run = RunDirectory(folder / moment)
            run.create(config)
            train_run(prepare(config, data), run, Killer(moment))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        with (folder / SIGNALS).open("a") as file:
            file.write(f"{signal.Signals(os.WTERMSIG(status)).name}\n")
