"""Entry point of the ``sgdph`` command, which exists even if the laboratory is not installed."""

from __future__ import annotations

import sys

from sgdph.lab import cli
from sgdph.lab.run.processes import leave


def main() -> int:
    """Run the command line.

    Returns:
        The exit code.
    """
    return leave(cli.main())


if __name__ == "__main__":
    sys.exit(main())
