"""A run that several processes share, started from a sweep with ``torchrun``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sgdph.lab.config.run_config import PLACE_FIELDS, RunConfig
from sgdph.lab.errors import INTERRUPTED, LabError
from sgdph.lab.output import utf8_environment
from sgdph.lab.run.directory import ENDED, RunDirectory

# A failure's cause stands in its last lines.
TAIL = 3000
# How long torchrun may take to end, in seconds, before it is told so again, and then until it is
# killed: both together less than a worker itself has (pool.GRACE).
PATIENCE = 20.0


def train_in_processes(config: RunConfig, run: RunDirectory, log: Path) -> None:
    """Train a run in its number of processes, to its end.

    The first of them claims the run, so it must not be claimed here.

    Args:
        config: What the run is; its directory holds the same already.
        run: Its directory.
        log: Where what they say is added.

    Raises:
        Claimed: If another process is training the run.
        LabError: If they fail; the message holds the end of what they said.
        KeyboardInterrupt: If they were interrupted.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(config.processes)),
        *("-m", "sgdph.lab", "train", "--out", str(run.path), "--resume"),
        *place_flags(config),
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        # Standard input is the pipe of a worker's parent.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=utf8_environment(),
        )
    code = wait(process)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    # Another sweep may have been quicker.
    with run.claim():
        pass
    if run.status() not in ENDED:
        said = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        raise LabError(f"torchrun ended with code {code} ({log}):\n{said}")


def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for torchrun to end; when interrupted, until it has let its processes end.

    Raises:
        KeyboardInterrupt: When interrupted; it has ended by then.
    """
    try:
        return process.wait()
    except KeyboardInterrupt:
        # Ctrl-C reaches torchrun too, which has its processes stop after the step they are at.
        # Killed at once, as by subprocess.run, it would leave them behind.
        for plea in (process.terminate, process.kill):
            try:
                process.wait(PATIENCE)
                break
            except subprocess.TimeoutExpired:
                plea()
        process.wait()
        raise


def place_flags(config: RunConfig) -> list[str]:
    """Write where a run is computed as flags of ``sgdph train``."""
    given = {name: getattr(config, name) for name in sorted(PLACE_FIELDS)}
    return [
        word
        for name, value in given.items()
        if value is not None
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
