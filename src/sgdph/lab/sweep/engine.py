"""The engine for many runs: the order and the retries of tasks, and what computes them.

A task is a run, or other work that can be repeated without harm: it continues from what is on the
disk, and does nothing if all is done. So the process that computes a task needs only the task
itself, and a task whose process dies is given to another process. Tasks are computed by this
process, by a pool of processes on this machine (:mod:`sgdph.lab.sweep.pool`), or by Ray
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

from sgdph.lab.progress import reporter_for, say
from sgdph.lab.run.directory import LOGS
from sgdph.lab.sweep.board import Find, board_for
from sgdph.lab.sweep.cluster import Cluster
from sgdph.lab.sweep.cores import available_cores
from sgdph.lab.sweep.pool import Pool
from sgdph.lab.sweep.state import note_failure
from sgdph.lab.sweep.worker import ATTEMPTS, Task, Worker

# Seconds between checks of the runs' progress.
LOOK_EVERY = 1.0


@dataclass(frozen=True)
class Place:
    """Where tasks are computed.

    Attributes:
        jobs: How many run at once; with Ray, ``None`` for as many as it has room for.
        ray: Ray's address; ``None`` computes on this machine.
        split_gpus: Whether each process on this machine sees only one of the GPUs, assigned in
            turn. If not, every process sees all GPUs.
    """

    jobs: int | None = 1
    ray: str | None = None
    split_gpus: bool = True


@dataclass(frozen=True)
class Expected:
    """The runs that tasks train, for the display of their progress.

    Attributes:
        find: Finds the runs.
        runs: The total number of runs.
        epochs: The total number of their epochs.
    """

    find: Find
    runs: int
    epochs: int


def compute(
    directory: Path, tasks: Iterable[Task], expected: Expected, place: Place, console: Console
) -> None:
    """Compute tasks until each is done or has failed, and report the progress.

    Args:
        directory: Where the tasks write; failures are recorded in its ``logs``.
        tasks: The tasks; taken one by one, when there is room.
        expected: The runs that the tasks train.
        place: Where the tasks are computed.
        console: Where to report the progress.

    Raises:
        LabError: If Ray is not available, or has no machine with enough cores for a task.
        KeyboardInterrupt: If interrupted; nothing trains any more then.
    """
    if place.jobs == 1 and place.ray is None:
        with reporter_for(console, expected.runs) as reporter:
            run_tasks(directory, tasks, ThisProcess(Worker(reporter)))
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
    """An object that computes tasks.

    Attributes:
        slots: How many tasks it takes at a time.
    """

    slots: int

    def submit(self, task: Task) -> Future[bool]:
        """Start a task; the future holds what :class:`Train` returns."""


class ThisProcess:
    """An executor that computes tasks one after another in this process.

    Args:
        worker: The worker of this process.
    """

    slots = 1

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def submit(self, task: Task) -> Future[bool]:
        """Compute a task, and return its finished future.

        Raises:
            KeyboardInterrupt: If interrupted.
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
    """Compute tasks until each is done or has failed.

    A task whose process dies is tried again, up to :data:`ATTEMPTS` times in all. A task that
    another process (on any machine) is computing goes to the end of the queue and is tried again
    there. So it is taken over if that process dies.

    Args:
        directory: Where failures are recorded.
        tasks: The tasks; taken one by one, when there is room.
        executor: Computes the tasks.
        look: Called whenever tasks end, and at least once per :data:`LOOK_EVERY` seconds of
            waiting.

    Raises:
        KeyboardInterrupt: If interrupted.
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
                # Not an error of the run itself: the run records its own errors.
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
