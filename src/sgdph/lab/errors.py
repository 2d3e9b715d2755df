"""What a command refuses, and what it tells the shell."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# Up to so many names are listed in an error; more stand in the help or on a page.
FEW = 5


class LabError(ValueError):
    """What was asked for cannot be done as asked; the message says what to do instead."""


def unknown_name(
    what: str, name: object, known: Sequence[str], listed: str = "`sgdph train --help` lists them"
) -> str:
    """Say that a name is unknown, which one may be meant, and where all are listed.

    Args:
        what: What it should be the name of: ``"optimizer"``, ``"--optimizer"``.
        name: The name.
        known: All that there are. A few are named in the message itself.
        listed: Where they are listed.
    """
    near = difflib.get_close_matches(str(name), known, n=1)
    meant = f" did you mean {near[0]}?" if near else ""
    known_names = f"expected one of {', '.join(known)}" if len(known) <= FEW else listed
    return f"unknown {what} {str(name)!r};{meant} {known_names}"


# Exit codes.
OK = 0
# A run diverged, one failed, or something that was asked for is not as it should be.
DIVERGED = FAILED = NOT_WELL = 1
WRONG_USAGE = 2
# 128 and the number of SIGINT.
INTERRUPTED = 130
# 128 and the number of SIGPIPE: as of a program that the signal ends.
OUTPUT_CLOSED = 141
