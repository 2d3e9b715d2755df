"""One process at a time: a lock that a process holds on a directory while it works there.

The kernel keeps the lock (``flock``, or Windows' own), so it goes with the process however that
ends, ``kill -9`` included. The lock file stays behind, which means nothing: deleting it while
others wait for it would let two in.
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
    """A claim on a directory: a context manager, which may be entered again while it is held.

    Args:
        path: The directory; entering makes it where it is not there.

    Raises:
        Claimed: On entering, without waiting, if another process (or another claim of this one)
            holds it.
        LabError: On entering, if the directory cannot be locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(
            path / LOCK,
            timeout=0,
            thread_local=False,
            # Where there are no locks it would take a mere file, which outlives a kill.
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
        """Say in the lock file who holds it, where that can be written."""
        holder = {"host": socket.gethostname(), "pid": os.getpid()}
        with contextlib.suppress(OSError):
            (self.path / LOCK).write_text(json.dumps(holder) + "\n", encoding="utf-8")

    def _holder(self) -> str:
        """Name who holds the lock, as far as its file tells."""
        try:
            holder = json.loads((self.path / LOCK).read_text(encoding="utf-8"))
            return f"host {holder['host']}, pid {holder['pid']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "unknown"
