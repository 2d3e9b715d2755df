"""A lock on a directory: only one process at a time may work there.

The kernel keeps the lock (``flock``, or the equivalent on Windows). So the lock is released when
the process ends in any way, even by ``kill -9``. The lock file stays, without a meaning of its own:
deleting it while others wait for the lock would let two processes in.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from sgdph.lab.errors import LabError

LOCK = "run.lock"


class Claimed(LabError):  # noqa: N818 - a state of the run, which others wait out
    """Another process holds the claim."""


class Claim:
    """A claim on a directory: a context manager that can be entered again while it is held.

    Args:
        path: The directory; entering the context creates it if needed.

    Raises:
        Claimed: On entry, without waiting, if another process (or another claim in this process)
            holds the lock.
        LabError: On entry, if the directory cannot be locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(
            path / LOCK,
            timeout=0,
            thread_local=False,
            # On a file system without locks, the fallback is a plain file, which outlives a kill.
            fallback_to_soft=False,
        )

    @property
    def held(self) -> bool:
        """Whether this claim is held now."""
        return self._lock.is_locked

    def __enter__(self) -> None:
        first = not self.held
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise Claimed(
                f"{self.path} is being trained by another process ({self._holder()}); wait for it, "
                "stop it, or name another --out"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise LabError(
                f"{self.path / LOCK} cannot be locked ({error}). Without the lock two processes "
                "could train the same run; choose an --out that can be written to, on a file "
                "system with locks"
            ) from error
        if first:
            self._sign()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _sign(self) -> None:
        """Write the holder's host and process ID into the lock file, if that is possible."""
        holder = {"host": socket.gethostname(), "pid": os.getpid()}
        with contextlib.suppress(OSError):
            (self.path / LOCK).write_text(json.dumps(holder) + "\n", encoding="utf-8")

    def _holder(self) -> str:
        """Return who holds the lock according to its file, or ``"unknown"``."""
        try:
            holder = json.loads((self.path / LOCK).read_text(encoding="utf-8"))
            return f"host {holder['host']}, pid {holder['pid']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "unknown"
