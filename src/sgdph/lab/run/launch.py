"""A run that several processes share, started from a sweep with ``torchrun``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sgdph.lab.config.run_config import PLACE_FIELDS, RunConfig
from sgdph.lab.errors import INTERRUPTED, LabError
from sgdph.lab.output import utf8_environment
from sgdph.lab.run.directory import ENDED, RunDirectory

# How many characters of a log's end an error shows; they name the cause.
TAIL = 3000
# Seconds that an interrupted torchrun has to end before it is terminated, and then before it is
# killed. Both together are less than what a worker has (pool.GRACE).
PATIENCE = 20.0


def train_in_processes(config: RunConfig, run: RunDirectory, log: Path) -> None:
    """Train a run to its end in its own number of processes.

    The first of these processes claims the run, so the caller must not hold the claim.

    Args:
        config: The run's configuration, as it is already recorded in the directory.
        run: Its directory.
        log: The file that the processes' output is appended to.

    Raises:
        Claimed: If another process is training the run.
        LabError: If the processes fail; the message holds the end of their output.
        KeyboardInterrupt: If the processes were interrupted.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(config.processes)),
        *("-m", "sgdph.lab", "train", "--out", str(run.path), "--resume"),
        *place_flags(config),
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        # The processes must not read from this process's standard input.
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
    # Raises Claimed if another sweep was quicker and is training the run.
    with run.claim():
        pass
    if run.status() not in ENDED:
        said = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        raise LabError(f"torchrun ended with code {code} ({log}):\n{said}")


def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for torchrun to end. If interrupted, first give it time to stop its processes.

    Raises:
        KeyboardInterrupt: If interrupted; torchrun has ended by then.
    """
    try:
        return process.wait()
    except KeyboardInterrupt:
        # Ctrl-C reaches torchrun too, which then stops its processes after their current step.
        # If it were killed at once, as by subprocess.run, its processes would stay behind.
        for plea in (process.terminate, process.kill):
            try:
                process.wait(PATIENCE)
                break
            except subprocess.TimeoutExpired:
                plea()
        process.wait()
        raise


def place_flags(config: RunConfig) -> list[str]:
    """Return the flags of ``sgdph train`` that say where a run is computed."""
    given = {name: getattr(config, name) for name in sorted(PLACE_FIELDS)}
    return [
        word
        for name, value in given.items()
        if value is not None
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
