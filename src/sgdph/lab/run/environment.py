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
    """Describe the software, the machine and the command that produce a run's figures.

    Args:
        device: The device that the run computes on.

    Returns:
        JSON-compatible values: versions; git commit of this package's sources (None outside a
        checkout); platform; CPU name and count; the instruction set that torch chooses kernels for;
        threads; device; command line; UTC time.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sgdph": sgdph.__version__,
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        # CPUs of the same name may differ in it, and then in the last bits of every sum.
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "command": shell_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """Return the commit of this package's checkout, ``-dirty`` if changed; None without one."""
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
        # An installed copy may be inside another project's checkout, so ask about this file.
        git("ls-files", "--error-unmatch", str(file))
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--", ".") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    """Return the processor's marketing name, or what the platform reports instead."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
