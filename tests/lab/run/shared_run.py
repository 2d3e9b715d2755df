"""A program for ``torchrun``: trains the runs of a folder and saves each process's final state.

Arguments: the folder; the name of the run in which process 1 is killed, or ``none``; optionally,
arguments with which ``sgdph`` is called first.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sgdph.lab import cli
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.errors import LabError
from sgdph.lab.progress import LineReporter
from sgdph.lab.run import epoch, training
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.distributed import Team, joined
from sgdph.lab.run.processes import leave
from sgdph.lab.run.start import prepare

KILLED_AT = 3


def killed_at(number: int, step: Callable[..., None]) -> Callable[..., None]:
    """Return an optimizer step that kills its process in the call with the given number."""
    left = [number]

    def counted(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        step(*arguments)

    return counted


def refused(team: Team, rank: int) -> str:
    """Return the error that this process gets if the process ``rank`` raises a ``LabError``."""
    try:
        with team.agreement():
            if team.rank == rank:
                raise LabError("no room")
    except LabError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path, doomed: str) -> None:
    with joined() as team:
        heard = [refused(team, rank) for rank in (0, 1)]
        (folder.parent / f"heard-{team.rank}").write_text(", ".join(heard))
        for path in sorted(folder.iterdir()):
            if path.name == doomed and team.rank == 1:
                epoch.optimization_step = killed_at(KILLED_AT, epoch.optimization_step)
            run = RunDirectory(path)
            config = run.read_config()
            data = load_dataset(config.dataset, train_size=config.train_size)
            prepared = prepare(config, data, team)
            # Only the first process may use the run's directory; the others get a different path.
            here = run if team.first else RunDirectory(folder.parent / "nowhere")
            training.train_run(prepared, here, LineReporter(Console(quiet=True)))
            end = {"model": prepared.state.model.state_dict(), "history": prepared.state.history}
            torch.save(end, folder.parent / f"{path.name}-{team.rank}.end")


if __name__ == "__main__":
    if sys.argv[3:]:
        assert cli.main(sys.argv[3:]) == 0
    main(Path(sys.argv[1]), sys.argv[2])
    leave(0)
