"""A run's directory: what the run was, and what it measured.

| file | content |
|---|---|
| ``config.yaml`` | the resolved configuration; its presence makes the directory a run |
| ``env.json`` | versions, machine and command line, and those of every resumption |
| ``metrics.jsonl`` | one line per finished epoch |
| ``summary.json`` | the outcome; status running, finished, interrupted, diverged or pruned |
| ``last.pt`` | the checkpoint after the last finished epoch |
| ``epoch-3.pt`` … | the checkpoints that the configuration has kept, ``epoch-0.pt`` untrained |
| ``events.out.tfevents.*`` | TensorBoard's, where the run is tracked by it |
| ``run.lock`` | locked while a process trains the run, and tells which; means nothing unlocked |

Every file but ``metrics.jsonl`` is replaced in one step, so a process killed at any moment leaves
the old or the new one. A line of ``metrics.jsonl`` may be cut off by a kill; a resumed run rewrites
the file from the history in its checkpoint.
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
# The folder of a directory of runs in which what trains them writes.
LOGS = "logs"
# Of TensorBoard's files, which lie among the run's.
EVENTS = "events.out.tfevents.*"
# The configuration goes last: while anything is left, the directory is still known for a run.
RUN_FILES = (ENV, METRICS, SUMMARY, CHECKPOINT, CONFIG)

# The states of a run that came to its own end, and those in which nothing is left to do for it: a
# tuning stops some early.
ENDED = ("finished", "diverged")
OVER = (*ENDED, "pruned")

# Writing a record or a report takes a second or so.
LOCK_TIMEOUT = 120.0


def kept_checkpoint(epoch: int) -> str:
    """Name the file of a checkpoint that is kept."""
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
        """Claim the run for this process, for as long as the context lasts.

        ``with run.claim():`` makes the directory where it is not there. Through one
        ``RunDirectory`` the claim may be entered again while it is held, as
        :func:`sgdph.lab.run.training.train_run` does; so claim first, look at what is there, create
        or clear the run, and train it within.

        Raises:
            Claimed: On entering, if another process is training the run: whoever looks for work
                goes on to the next one.
            LabError: On entering, if the directory cannot be locked.
        """
        return self._claim

    def clear(self) -> None:
        """Delete the run's files, no others; the lock stays.

        Raises:
            LabError: As :meth:`check_clearable`, or the run is being trained by another process;
                before anything is deleted.
        """
        with self.claim():
            super().clear()

    def leave(self) -> None:
        """Remove a claimed, cleared run's lock, and its directory where nothing else is in it."""
        remove_files(self.path, [LOCK])
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def names(self) -> tuple[str, ...]:
        """Name the files that may be there: the kept checkpoints are those of the configuration."""
        try:
            kept = self.read_config().keep_checkpoints or ()
        except LabError:
            kept = ()
        events = sorted(file.name for file in self.path.glob(EVENTS))
        return (*map(kept_checkpoint, kept), *events, *self.files)

    def recognise(self) -> None:
        """Raise LabError if what is there is not a run."""
        self.read_config()

    def read_config(self) -> RunConfig:
        """Read the configuration.

        Raises:
            LabError: If there is none, or it is not one of ours.
        """
        file = self.recorded(CONFIG)
        return from_yaml(file.read_text(encoding="utf-8"), file)

    def create(self, config: RunConfig) -> None:
        """Begin a run: make the directory and write the configuration.

        Raises:
            LabError: If a run is there already, or the path is no directory.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / CONFIG, to_yaml(config))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one epoch's line, on the disk when this returns."""
        append_line(self.path / METRICS, json.dumps(line, allow_nan=False))

    def replace_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write all epochs' lines anew."""
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_text(self.path / METRICS, text)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the finished epochs' lines; a last line cut off by a kill is left out.

        Raises:
            LabError: If another line is damaged.
        """
        return read_json_lines(self.path / METRICS)

    def check_no_metrics(self) -> None:
        """Raise LabError where epochs were recorded, and no checkpoint is there to go on from.

        A kill between the two leaves one epoch's line; more means that the checkpoint was lost.
        """
        if not (self.path / CHECKPOINT).exists() and len(self.read_metrics()) > 1:
            raise LabError(
                f"{self.path} has the metrics of {len(self.read_metrics())} epochs but no "
                f"{CHECKPOINT}; restore it or copy a kept checkpoint there, or start again with "
                "--overwrite"
            )

    def write_env(self, environment: Mapping[str, Any]) -> None:
        """Record the machine: at the top for a new run, under ``resumed`` for a later session."""
        first = self.read_env()
        if first:
            first.setdefault("resumed", []).append(dict(environment))
        write_json(self.path / ENV, first or environment)

    def read_env(self) -> dict[str, Any]:
        """Read the machine of the first session; empty where a kill came before it was written."""
        return read_json(self.path / ENV)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace the outcome."""
        write_json(self.path / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any]:
        """Read the outcome; empty where a kill came before the first was written."""
        return read_json(self.path / SUMMARY)

    def status(self) -> str | None:
        """Return the recorded status, or None where none was recorded yet."""
        return self.read_summary().get("status")


class DirectoryOfRuns(RecordDirectory):
    """A directory of a record that runs belong to, which are taken and cleared with it.

    Args:
        path: The directory; it need not exist yet.
    """

    def inner_runs(self) -> list[RunDirectory]:
        """List the runs that belong to the record; they need not exist."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Whether the record, or a part of one, is there."""
        return super().exists() or any(run.exists() for run in self.inner_runs())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing the record's own files, for as long as this lasts.

        Raises:
            LabError: If another process goes on writing for minutes.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / f"{self.what}.lock", timeout=LOCK_TIMEOUT):
                yield
        except Timeout as error:
            raise LabError(
                f"another process has been writing in {self.path} for {LOCK_TIMEOUT:.0f} s; wait "
                "for it or stop it, then run the same command again"
            ) from error

    def check_clearable(self) -> None:
        """Raise LabError if files of the record's names, or of its runs', are something else's."""
        super().check_clearable()
        for run in self.inner_runs():
            run.check_clearable()

    def clear(self) -> None:
        """Delete the record's files, its runs' and its logs, no others; emptied directories go too.

        Raises:
            LabError: As :meth:`check_clearable`, or one of its runs is being trained; before
                anything is deleted.
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
