"""Worker processes on this machine.

Each worker is a ``ProcessPoolExecutor`` of one process. A worker that dies breaks only its own
executor: the others continue to train, and it is known which task the worker died with. The parent
holds the only writing end of a pipe. When it is closed, workers stop as on Ctrl-C. So no worker
outlives its parent, however the parent ended.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import torch

from sgdph.lab.errors import INTERRUPTED, OK
from sgdph.lab.files import make_directory
from sgdph.lab.sweep.worker import Task, Train, process_worker

# How long a worker that was told to stop may take, in seconds.
GRACE = 60.0

# multiprocessing starts workers as new processes, because torch's threads do not survive a fork.
START_METHOD = "spawn"

_training = threading.Event()


class Pool:
    """An executor with several processes; a context manager that stops them at its end.

    Args:
        slots: The number of processes.
        logs: The folder of their logs; existing logs are appended to.
        split_gpus: Whether each process sees only one of the GPUs, assigned in turn. If not, every
            process sees all GPUs.
    """

    def __init__(self, slots: int, logs: Path, *, split_gpus: bool) -> None:
        make_directory(logs)
        self.slots = slots
        self.logs = logs
        self.split_gpus = split_gpus
        self._context = multiprocessing.get_context(START_METHOD)
        self._reader, self._writer = self._context.Pipe(duplex=False)
        self._executors = [self._start(index) for index in range(slots)]
        self._last: list[Future[bool] | None] = [None] * slots

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop every worker after its current step, and wait until it has stopped."""
        self._writer.close()
        for executor in self._executors:
            executor.shutdown(cancel_futures=True)
        self._reader.close()

    def submit(self, task: Task) -> Future[bool]:
        """Give a task to a free worker, which is restarted first if its process has died."""
        index = next(k for k, last in enumerate(self._last) if last is None or last.done())
        with ignored_interrupts():
            try:
                future = self._executors[index].submit(_train, task.train)
            except BrokenExecutor:
                self._executors[index] = self._start(index)
                future = self._executors[index].submit(_train, task.train)
        self._last[index] = future
        return future

    def _start(self, index: int) -> ProcessPoolExecutor:
        environment = visible_device(index) if self.split_gpus else {}
        log = self.logs / f"worker-{index + 1}.log"
        return ProcessPoolExecutor(
            1, self._context, initializer=_begin, initargs=(log, environment, self._reader)
        )


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Make processes that start during the context ignore Ctrl-C until they are workers.

    A process interrupted while it imports torch would print a traceback over the parent's output.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def visible_device(index: int) -> dict[str, str]:
    """Return the environment that gives a worker, by its index from 0, one of the GPUs."""
    if not torch.cuda.is_available():
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)].strip()}


def _begin(log: Path, environment: dict[str, str], parent: Connection) -> None:
    """Make this process a worker: its output goes to a log, and it ends with its parent."""
    os.environ.update(environment)
    if hasattr(os, "setsid"):
        # Ctrl-C then reaches only the parent, which stops each worker once.
        os.setsid()
    # A program that a script starts in the background ignores Ctrl-C; its children would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream = log.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    end_with(parent)


def _train(train: Train) -> bool:
    _training.set()
    try:
        return train(process_worker())
    except KeyboardInterrupt:
        print("stopped", flush=True)
        # Do not report the interruption: the parent may be gone.
        os._exit(INTERRUPTED)
    finally:
        _training.clear()


def end_with(parent: Connection) -> None:
    """Interrupt this process when the other end of a pipe is closed.

    The system closes that end at the latest when the parent ends. An idle process ends at once. A
    process that does not stop is ended after :data:`GRACE` seconds.
    """

    def watch() -> None:
        with suppress(EOFError, OSError):
            parent.recv_bytes()
        if not _training.is_set():
            os._exit(OK)
        interrupt()
        time.sleep(GRACE)
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def interrupt() -> None:
    """Interrupt this process as Ctrl-C in a terminal does, and on POSIX the ones it started."""
    if os.name == "posix" and os.getpgrp() == os.getpid():
        # Unlike interrupt_main, a signal also ends a wait for another process.
        os.killpg(0, signal.SIGINT)
    else:
        _thread.interrupt_main()
