"""A run's directory: its configuration and its results.

| file | content |
|---|---|
| ``config.yaml`` | the resolved configuration; its presence makes the directory a run |
| ``env.json`` | versions, machine and command line, also of every resumed session |
| ``metrics.jsonl`` | one line per finished epoch |
| ``summary.json`` | the outcome; status running, finished, interrupted, diverged or pruned |
| ``last.pt`` | the checkpoint after the last finished epoch |
| ``epoch-3.pt`` … | checkpoints that the configuration asks to keep; ``epoch-0.pt`` is untrained |
| ``events.out.tfevents.*`` | TensorBoard's files, if the run is tracked with it |
| ``run.lock`` | locked while a process trains the run, and names it; unlocked, it has no meaning |

All files are replaced atomically, except ``metrics.jsonl``, TensorBoard's files and the lock. So a
process killed at any moment leaves the old or the new file. A kill may cut off a line of
``metrics.jsonl``; a resumed run rewrites the file from the history in its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.config.yaml import from_yaml, to_yaml
from sgdph.lab.errors import LabError
from sgdph.lab.files import (
    append_line,
    make_directory,
    read_json,
    read_json_lines,
    remove_files,
    write_json,
    write_text,
)
from sgdph.lab.run.claims import LOCK, Claim
from sgdph.lab.run.record_directory import RecordDirectory

CONFIG, ENV, METRICS, SUMMARY, CHECKPOINT = (
    "config.yaml",
    "env.json",
    "metrics.jsonl",
    "summary.json",
    "last.pt",
)
# A folder inside a directory of runs, for the logs of the processes that train them.
LOGS = "logs"
# TensorBoard's files, which are in the run's directory.
EVENTS = "events.out.tfevents.*"
# The configuration is deleted last, so a partly deleted directory is still recognised as a run.
RUN_FILES = (ENV, METRICS, SUMMARY, CHECKPOINT, CONFIG)

# ENDED: the run reached its own end. OVER: nothing is left to do for the run; this also holds if a
# tuning stopped it early.
ENDED = ("finished", "diverged")
OVER = (*ENDED, "pruned")

# In seconds. Writing a record or a report takes about one second.
LOCK_TIMEOUT = 120.0


def kept_checkpoint(epoch: int) -> str:
    """Return the file name of a kept checkpoint."""
    return f"epoch-{epoch}.pt"


class RunDirectory(RecordDirectory):
    """The files of one run.

    Args:
        path: The directory; it need not exist yet.
    """

    what, files = "run", RUN_FILES

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._claim = Claim(path)

    def claim(self) -> Claim:
        """Return the claim on the run: a context manager that reserves it for this process.

        ``with run.claim():`` creates the directory if needed. The claim of one ``RunDirectory`` can
        be entered again while it is held, as :func:`sgdph.lab.run.training.train_run` does. So
        claim first; then check what exists, create or clear the run, and train it, all inside the
        context.

        Raises:
            Claimed: On entry, if another process is training the run. A process that looks for
                work then tries the next run.
            LabError: On entry, if the directory cannot be locked.
        """
        return self._claim

    def clear(self) -> None:
        """Delete the run's files, and no others; the lock stays.

        Raises:
            LabError: As for :meth:`check_clearable`, or if another process is training the run.
                Nothing is deleted then.
        """
        with self.claim():
            super().clear()

    def leave(self) -> None:
        """Remove the lock of a claimed, cleared run, and its directory if that is then empty."""
        remove_files(self.path, [LOCK])
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def names(self) -> tuple[str, ...]:
        """Return the names of all possible files; the configuration lists the kept checkpoints."""
        try:
            kept = self.read_config().keep_checkpoints or ()
        except LabError:
            kept = ()
        events = sorted(file.name for file in self.path.glob(EVENTS))
        return (*map(kept_checkpoint, kept), *events, *self.files)

    def recognise(self) -> None:
        """Raise LabError if the directory does not hold a run."""
        self.read_config()

    def read_config(self) -> RunConfig:
        """Read the configuration.

        Raises:
            LabError: If there is none, or it is not a run's.
        """
        file = self.recorded(CONFIG)
        return from_yaml(file.read_text(encoding="utf-8"), file)

    def create(self, config: RunConfig) -> None:
        """Begin a run: create the directory and write the configuration.

        Raises:
            LabError: If a run already exists there, or the path is not a directory.
        """
        self.check_free()
        make_directory(self.path)
        write_text(self.path / CONFIG, to_yaml(config))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one epoch's line; it is on the disk when this returns."""
        append_line(self.path / METRICS, json.dumps(line, allow_nan=False))

    def replace_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Replace the lines of all epochs."""
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_text(self.path / METRICS, text)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the finished epochs' lines, without a last line that a kill cut off.

        Raises:
            LabError: If another line is damaged.
        """
        return read_json_lines(self.path / METRICS)

    def check_no_metrics(self) -> None:
        """Raise LabError if several epochs were recorded, but there is no checkpoint to resume.

        A kill after the first epoch's line was written, but not its checkpoint, leaves one line.
        More lines mean that the checkpoint was lost.
        """
        if not (self.path / CHECKPOINT).exists() and len(self.read_metrics()) > 1:
            raise LabError(
                f"{self.path} has the metrics of {len(self.read_metrics())} epochs but no "
                f"{CHECKPOINT}; restore it or copy a kept checkpoint there, or delete the "
                "directory and train the run again"
            )

    def write_env(self, environment: Mapping[str, Any]) -> None:
        """Record the environment: of a new run at the top, of a later session under ``resumed``."""
        first = self.read_env()
        if first:
            first.setdefault("resumed", []).append(dict(environment))
        write_json(self.path / ENV, first or environment)

    def read_env(self) -> dict[str, Any]:
        """Read the first session's environment; empty if a kill came before it was written."""
        return read_json(self.path / ENV)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace the outcome."""
        write_json(self.path / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any]:
        """Read the outcome; empty if a kill came before the first one was written."""
        return read_json(self.path / SUMMARY)

    def status(self) -> str | None:
        """Return the recorded status, or None if there is none yet."""
        return self.read_summary().get("status")


class DirectoryOfRuns(RecordDirectory):
    """The directory of a record that includes runs; they are checked and cleared with it.

    Args:
        path: The directory; it need not exist yet.
    """

    def inner_runs(self) -> list[RunDirectory]:
        """List the runs that belong to the record; they need not exist."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Return whether any file or run of the record exists."""
        return super().exists() or any(run.exists() for run in self.inner_runs())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing the record's own files during the context.

        Raises:
            LabError: If another process is still writing after :data:`LOCK_TIMEOUT` seconds.
        """
        make_directory(self.path)
        try:
            with FileLock(self.path / f"{self.what}.lock", timeout=LOCK_TIMEOUT):
                yield
        except Timeout as error:
            raise LabError(
                f"another process has been writing in {self.path} for {LOCK_TIMEOUT:.0f} s; wait "
                "for it or stop it, then run the same command again"
            ) from error

    def check_clearable(self) -> None:
        """Raise LabError if files with the record's or its runs' names belong to something else."""
        super().check_clearable()
        for run in self.inner_runs():
            run.check_clearable()

    def clear(self) -> None:
        """Delete the record's files, runs and logs, and no others; remove emptied directories.

        Raises:
            LabError: As for :meth:`check_clearable`, or if one of its runs is being trained.
                Nothing is deleted then.
        """
        self.check_clearable()
        runs = [run for run in self.inner_runs() if run.exists()]
        with ExitStack() as claims:
            for run in runs:
                claims.enter_context(run.claim())
            for run in runs:
                run.clear()
                run.leave()
            self.remove()
        self._clear_logs()

    def _clear_logs(self) -> None:
        logs = self.path / LOGS
        for pattern in ("*.log", "*.error.txt"):
            for file in logs.glob(pattern):
                file.unlink()
        if logs.is_dir() and not any(logs.iterdir()):
            logs.rmdir()
