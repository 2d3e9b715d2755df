"""How many processes ``torchrun`` has started, and which of them this one is; without torch."""

from __future__ import annotations

import os
import sys

from sgdph.lab.errors import LabError


class Agreed(LabError):  # noqa: N818 - somebody else's error
    """What went wrong in another process; that one, or the first, tells it."""


def processes() -> int:
    """Tell how many processes ``torchrun``, or whatever sets the same variables, has started."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def speaks(error: Exception) -> bool:
    """Whether this process is the one to print an error."""
    return not isinstance(error, Agreed) or int(os.environ.get("RANK", 0)) == 0


def leave(code: int) -> int:
    """End this process at once where it is one of several; hand the exit code back otherwise.

    One of gloo's threads may still hold the last message. If it lets go of it while Python is
    taking itself apart, the process aborts ("terminate called without an active exception"), and
    ``torchrun`` calls a finished run a failure. So Python is not given the time to.
    """
    if processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
