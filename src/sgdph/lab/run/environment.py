"""Where a run was computed: versions, machine, command line."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import sgdph
from sgdph.lab.output import shell_command


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Gather what is needed to tell where a figure came from.

    Args:
        device: The device that the run computes on.

    Returns:
        JSON-ready values: versions, git commit of this package's sources (None outside a checkout),
        platform, CPU, its count, the instructions that torch chooses kernels by, threads, device,
        command line, UTC time.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sgdph": sgdph.__version__,
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        # Machines of one name differ in it, and then in the last bits of every sum.
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "command": shell_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout this package lies in, ``-dirty`` where it was changed."""
    file = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(file.parents[2]), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout: ask for this very file.
        git("ls-files", "--error-unmatch", str(file))
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--", ".") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    """Return the processor's marketing name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
