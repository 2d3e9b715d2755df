"""The checkpoints of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from sgdph.lab.errors import LabError
from sgdph.lab.run.directory import CHECKPOINT, RunDirectory


def find_checkpoints(run: RunDirectory) -> dict[int, Path]:
    """Find a run's kept checkpoints and its last one.

    Returns:
        Maps epochs to files, in the order of epochs.

    Raises:
        LabError: If the last checkpoint cannot be read.
    """
    found = {}
    last = run.path / CHECKPOINT
    if last.is_file():
        found[_epoch_of(last)] = last
    for name in run.found():
        match = re.fullmatch(r"epoch-(\d+)\.pt", name)
        if match:
            found[int(match[1])] = run.path / name
    return dict(sorted(found.items()))


def check_present(run: RunDirectory, found: Sequence[int], asked: Sequence[int]) -> None:
    """Raise LabError if the run has no checkpoint, or lacks a requested one."""
    if not found:
        raise LabError(
            f"{run.path} has no checkpoint yet; wait until sgdph train has finished an epoch, or "
            "start a run with --keep-checkpoints 0"
        )
    missing = [str(epoch) for epoch in asked if epoch not in found]
    if missing:
        raise LabError(
            f"{run.path} has no checkpoint of epoch {', '.join(missing)}; it has those of epoch "
            f"{', '.join(map(str, found))}. sgdph train keeps what --keep-checkpoints names"
        )


def reached(run: RunDirectory, found: Sequence[int], asked: Sequence[int]) -> tuple[int, ...]:
    """Return the requested checkpoints that a diverged run has.

    Raises:
        LabError: If it has none of them.
    """
    present = tuple(epoch for epoch in asked if epoch in found)
    if present:
        return present
    if found:
        has = f"it has those of epoch {', '.join(map(str, found))}"
        workaround = f"inspect them with --run {run.path} and another --out, or"
    else:
        has, workaround = (
            "it has none",
            "inspect its start with --checkpoints 0 and --overwrite, or",
        )
    raise LabError(
        f"the run in {run.path} diverged after epoch {len(run.read_metrics())}, before any "
        f"checkpoint that was asked for ({', '.join(map(str, asked))}); {has}. {workaround} train "
        "with a smaller --lr and --overwrite"
    )


def _epoch_of(path: Path) -> int:
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True)["epoch"])
    except Exception as error:
        raise LabError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); if the run is being "
            "written by another version of sgdph, use that one"
        ) from error
