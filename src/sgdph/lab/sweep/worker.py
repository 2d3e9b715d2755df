"""What the processes that train are given, and what they keep."""

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
from sgdph.lab.progress import LineReporter, Reporter, screen
from sgdph.lab.run.claims import Claimed
from sgdph.lab.run.start import load_data
from sgdph.lab.sweep.state import note_failure

# How often a task is tried whose process dies.
ATTEMPTS = 3


class Worker:
    """What a process that trains keeps from run to run.

    Args:
        reporter: What is told of the progress.
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
            # Let go of the old one first: both may not fit.
            self._data = None
            self._data = (key, self._load(config))
        return self._data[1]

    @contextmanager
    def noting_failure(self, directory: Path, name: str) -> Iterator[None]:
        """Note an error within, with its traceback, and go on.

        Args:
            directory: What the run belongs to.
            name: The run's name.

        Raises:
            Claimed: If another process is at the run: that is no failure.
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
    """Return the worker of a process that does nothing else; it reports lines, for a log."""
    return Worker(LineReporter(screen(140)))


class Train(Protocol):
    """What a task does; can be pickled."""

    def __call__(self, worker: Worker) -> bool:
        """Train; return False where another process is at it, so that it has to be asked again."""


@dataclass(frozen=True)
class Task:
    """What one process computes.

    Attributes:
        name: What it is called where it fails.
        train: Does it.
        cores: How many CPU cores it takes.
        gpus: How many GPUs it takes, where there are any.
    """

    name: str
    train: Train
    cores: int = 1
    gpus: int = 0


def data_key(config: RunConfig) -> tuple[object, ...]:
    """Return all that a run's data set depends on."""
    return (
        config.dataset,
        config.data_dir,
        config.train_size,
        config.validation_size,
        config.image_size,
    )
