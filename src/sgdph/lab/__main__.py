"""Where the ``sgdph`` command begins: it exists also where the laboratory is not installed."""

from __future__ import annotations

import sys

import sgdph
from sgdph.lab.output import standard_streams


def main() -> int:
    """Run the command line, or say what it needs.

    Returns:
        The exit code.
    """
    if sys.argv[1:] == ["--version"]:
        with standard_streams():
            print(f"sgdph {sgdph.__version__}")
        return 0
    try:
        from sgdph.lab import cli
        from sgdph.lab.run.distributed import leave
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "sgdph":
            raise
        print(
            f"sgdph: error: the commands need the laboratory, of which {error.name} is missing; "
            "install it with: pip install 'sgdph[lab]'",
            file=sys.stderr,
        )
        return 2
    return leave(cli.main())


if __name__ == "__main__":
    sys.exit(main())
