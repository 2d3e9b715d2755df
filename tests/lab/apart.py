"""The command ``sgdph`` in a process of its own, which has nothing left to import."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TextIO


@dataclass
class Apart:
    """A command that runs.

    Attributes:
        process: Its process.
        output: What it writes, line by line.
    """

    process: BaseProcess
    output: TextIO

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@contextmanager
def started_apart(*words: object) -> Iterator[Apart]:
    """Start a command; it is killed at the end, unless it has ended by then."""
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=(writer, list(map(str, words))))
    process.start()
    writer.close()
    with reader, os.fdopen(os.dup(reader.fileno()), encoding="utf-8") as output:
        try:
            yield Apart(process, output)
        finally:
            process.kill()
            process.join()


def _command(writer: Connection, words: list[str]) -> None:
    from sgdph.lab import cli

    # As in a terminal, whatever the tests were started by.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with os.fdopen(os.dup(writer.fileno()), "w", buffering=1, encoding="utf-8") as sys.stdout:
        writer.close()
        code = cli.main(words)
    sys.stdout = sys.__stdout__
    sys.exit(code)
