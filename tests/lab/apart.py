"""Run the command ``sgdph`` in its own process, forked with the imports already done."""

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
    """A running command.

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
    """Start a command, and kill it on exit if it still runs."""
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

    # As in a terminal, however the tests were started.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with os.fdopen(os.dup(writer.fileno()), "w", buffering=1, encoding="utf-8") as sys.stdout:
        writer.close()
        code = cli.main(words)
    sys.stdout = sys.__stdout__
    sys.exit(code)
