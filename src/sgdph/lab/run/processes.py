"""The number of processes that ``torchrun`` started, and this one's role; without torch."""

from __future__ import annotations

import os
import sys

from sgdph.lab.errors import LabError


class Agreed(LabError):  # noqa: N818 - somebody else's error
    """The failure of one of several processes, which only the first process prints."""


def processes() -> int:
    """Return the number of processes that ``torchrun`` (or what sets its variables) started."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def speaks(error: Exception) -> bool:
    """Return whether this process should print an error."""
    return not isinstance(error, Agreed) or int(os.environ.get("RANK", 0)) == 0


def leave(code: int) -> int:
    """End this process at once if it is one of several; otherwise return the exit code.

    One of gloo's threads may still hold the last message. If it releases the message while Python
    shuts down, the process aborts ("terminate called without an active exception"), and
    ``torchrun`` reports a finished run as a failure. So this function skips Python's shutdown.
    """
    if processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
