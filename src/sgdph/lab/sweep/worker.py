"""The tasks that training processes get, and the state that these processes keep."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.progress import LineReporter, Reporter, Screen
from sgdph.lab.run.claims import Claimed
from sgdph.lab.run.start import load_data
from sgdph.lab.sweep.state import note_failure

# How many times a task is tried, in all, if its process dies.
ATTEMPTS = 3


class Worker:
    """The state that a training process keeps from run to run.

    Args:
        reporter: Receives the progress.
        load: Loads a run's data set; the last one is kept.
    """

    def __init__(
        self, reporter: Reporter, load: Callable[[RunConfig], Dataset] = load_data
    ) -> None:
        self.reporter = reporter
        self._load = load
        self._data: tuple[object, Dataset] | None = None

    def dataset(self, config: RunConfig) -> Dataset:
        """Return the data set of a run."""
        key = data_key(config)
        if self._data is None or self._data[0] != key:
            # Release the old data set first: both may not fit into memory.
            self._data = None
            self._data = (key, self._load(config))
        return self._data[1]

    @contextmanager
    def noting_failure(self, directory: Path, name: str) -> Iterator[None]:
        """Record an error inside the context, with its traceback, and continue.

        Args:
            directory: The directory that the run belongs to.
            name: The run's name.

        Raises:
            Claimed: If another process is training the run, which is not a failure.
        """
        try:
            yield
        except Claimed:
            raise
        except Exception as error:
            note_failure(directory, name, "".join(traceback.format_exception(error)))
            self.reporter.run_finished(name, f"failed: {type(error).__name__}: {error}")


@cache
def process_worker() -> Worker:
    """Return the worker of a process that only trains; it reports in lines, for a log."""
    return Worker(LineReporter(Screen(width=140)))


class Train(Protocol):
    """The function of a task; it can be pickled."""

    def __call__(self, worker: Worker) -> bool:
        """Train; return False if another process is doing it, so that it must be tried again."""


@dataclass(frozen=True)
class Task:
    """A piece of work for one process.

    Attributes:
        name: Its name in the record of a failure.
        train: Does the work.
        cores: How many CPU cores it takes.
        gpus: How many GPUs it takes, if there are any.
    """

    name: str
    train: Train
    cores: int = 1
    gpus: int = 0


def data_key(config: RunConfig) -> tuple[object, ...]:
    """Return everything that a run's data set depends on."""
    return (
        config.dataset,
        config.data_dir,
        config.train_size,
        config.validation_size,
        config.image_size,
    )
