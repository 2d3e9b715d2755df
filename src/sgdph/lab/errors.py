"""The error of the commands, and their exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# An error lists at most this many names. Longer lists are in the help or the documentation.
FEW = 5


class LabError(ValueError):
    """The request cannot be carried out; the message says what to do instead."""


def unknown_name(
    what: str, name: object, known: Sequence[str], listed: str = "`sgdph train --help` lists them"
) -> str:
    """Return a message for an unknown name: the closest known name, and where all are listed.

    Args:
        what: What it should be the name of: ``"optimizer"``, ``"--optimizer"``.
        name: The name.
        known: All known names. If there are only a few, the message lists them.
        listed: Where they are listed otherwise.
    """
    near = difflib.get_close_matches(str(name), known, n=1)
    meant = f" did you mean {near[0]}?" if near else ""
    known_names = f"expected one of {', '.join(known)}" if len(known) <= FEW else listed
    return f"unknown {what} {str(name)!r};{meant} {known_names}"


# Exit codes.
OK = 0
# A run diverged, a run failed, or a requested check found a problem.
DIVERGED = FAILED = NOT_WELL = 1
WRONG_USAGE = 2
# 128 + the number of SIGINT.
INTERRUPTED = 130
# 128 + the number of SIGPIPE, as for a program that this signal ends.
OUTPUT_CLOSED = 141
