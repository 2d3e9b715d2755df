"""What a command line's help says of a value, beside its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

# The headings of a command's help, in their order.
OPTIMIZER = "optimizer"
DATA = "data and network"
TRAINING = "training"
MEASUREMENT = "measurement"
MACHINE = "machine"
OUTPUT = "output"
HEADINGS = (OPTIMIZER, DATA, TRAINING, MEASUREMENT, MACHINE, OUTPUT)


@dataclass(frozen=True)
class Option:
    """Marks a field that can be given on the command line, in its annotation.

    Attributes:
        help: What it is, in one or two sentences.
        heading: One of :data:`HEADINGS`.
        metavar: How its value is written; made of the type where it is empty.
        default: Its value where it is not given, of a field without a default of its own.
        shown: What the help calls the default, where that is not one value.
        nargs: Number of words, as ``argparse`` has it; made of the type where it is ``None``.
        positional: Whether it is given without its name.
    """

    help: str
    heading: str = MEASUREMENT
    metavar: str = ""
    default: Any = None
    shown: str = ""
    nargs: int | str | None = None
    positional: bool = False


@cache
def options_of(kind: type) -> Mapping[str, tuple[Any, Option]]:
    """Return a class's fields that are options, each by name with its type and option."""
    return {
        name: (hint, mark)
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if get_origin(hint) is Annotated
        for mark in get_args(hint)[1:]
        if isinstance(mark, Option)
    }
