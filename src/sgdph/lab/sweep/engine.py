"""One engine for many runs: what is tried when, how often, and on what it is computed.

A task is a run, or whatever else can be done twice without harm: it goes on from what lies on the
disk, and does nothing where all is done. So nothing has to be told to who computes it but the task
itself, and one whose process dies is simply given to another. What computes tasks is this process,
a pool of processes on this machine (:mod:`sgdph.lab.sweep.pool`), or Ray
(:mod:`sgdph.lab.sweep.cluster`).
"""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.progress import reporter_for, say
from sgdph.lab.run.directory import LOGS
from sgdph.lab.run.start import load_data
from sgdph.lab.sweep.board import Find, board_for
from sgdph.lab.sweep.cluster import Cluster
from sgdph.lab.sweep.cores import available_cores
from sgdph.lab.sweep.pool import Pool
from sgdph.lab.sweep.state import note_failure
from sgdph.lab.sweep.worker import ATTEMPTS, Task, Worker

# How often the runs' progress is looked at, in seconds.
LOOK_EVERY = 1.0


@dataclass(frozen=True)
class Place:
    """On what tasks are computed.

    Attributes:
        jobs: How many at once; with Ray ``None`` for as many as it has room for.
        ray: Ray's address; ``None`` computes on this machine.
        split_gpus: Whether each process of this machine sees one of the GPUs, in turn; if not, all
            of them see all.
        load: Loads data sets, where this process computes.
    """

    jobs: int | None = 1
    ray: str | None = None
    split_gpus: bool = True
    load: Callable[[RunConfig], Dataset] = load_data


@dataclass(frozen=True)
class Expected:
    """What is to be seen of the runs that tasks train.

    Attributes:
        find: Finds the runs.
        runs: How many there will be.
        epochs: How many epochs they have in all.
    """

    find: Find
    runs: int
    epochs: int


def compute(
    directory: Path, tasks: Iterable[Task], expected: Expected, place: Place, console: Console
) -> None:
    """Have tasks computed until every one is done, or has failed, and tell of the progress.

    Args:
        directory: What they write in; failures are noted in its ``logs``.
        tasks: The tasks; asked for one by one, when there is room.
        expected: The runs that come of them.
        place: On what they are computed.
        console: Where to tell of the progress.

    Raises:
        LabError: If Ray cannot be had.
        KeyboardInterrupt: When interrupted; nothing is training any more then.
    """
    if place.jobs == 1 and place.ray is None:
        with reporter_for(console, expected.runs) as reporter:
            run_tasks(directory, tasks, ThisProcess(Worker(reporter, place.load)))
        return
    executor: Pool | Cluster
    if place.ray is not None:
        executor = Cluster(place.ray, place.jobs, available_cores())
    else:
        logs = directory / LOGS
        executor = Pool(place.jobs or 1, logs, split_gpus=place.split_gpus)
        say(console, f"{executor.slots} workers; their logs are in {logs}")
    with board_for(directory, expected.find, expected.runs, expected.epochs, console) as board:
        with executor:
            run_tasks(directory, tasks, executor, board.look)
        board.look()


class Executor(Protocol):
    """What computes tasks.

    Attributes:
        slots: How many it is given at a time.
    """

    slots: int

    def submit(self, task: Task) -> Future[bool]:
        """Begin a task; the future holds what :class:`Train` returns."""


class ThisProcess:
    """Computes tasks one after another in this process.

    Args:
        worker: This process.
    """

    slots = 1

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def submit(self, task: Task) -> Future[bool]:
        """Do a task.

        Raises:
            KeyboardInterrupt: When interrupted.
        """
        future: Future[bool] = Future()
        future.set_result(task.train(self.worker))
        return future


def run_tasks(
    directory: Path,
    tasks: Iterable[Task],
    executor: Executor,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Have tasks computed until every one is done, or has failed.

    A task whose process dies is tried again, :data:`ATTEMPTS` times in all. What another process,
    of whatever machine, is computing is asked for again at the end of the queue, and so taken over
    where that process dies.

    Args:
        directory: Where failures are noted.
        tasks: The tasks; asked for one by one, when there is room.
        executor: What computes them.
        look: Called every second.

    Raises:
        KeyboardInterrupt: When interrupted.
    """
    fresh, again = iter(tasks), deque[Task]()
    deaths: Counter[str] = Counter()
    running: dict[Future[bool], Task] = {}
    while True:
        while len(running) < executor.slots:
            task = next(fresh, None) or (again.popleft() if again else None)
            if task is None:
                break
            running[executor.submit(task)] = task
        if not running:
            break
        done, _ = wait(running, LOOK_EVERY, FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            try:
                settled = future.result()
            except BrokenProcessPool as error:
                deaths[task.name] += 1
                settled = deaths[task.name] >= ATTEMPTS
                if settled:
                    note_failure(directory, task.name, _death(error))
            except Exception as error:
                # Not the run's own, which it notes itself.
                settled = True
                note_failure(directory, task.name, "".join(traceback.format_exception(error)))
            if not settled:
                again.append(task)
        look()


def _death(error: BrokenProcessPool) -> str:
    return (
        f"{error}\nits process died {ATTEMPTS} times (killed or out of memory?); the finished "
        "epochs are kept"
    )
