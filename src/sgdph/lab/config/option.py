"""What a command line's help says of a field: beside its type, and out of the text below it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
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
        heading: One of :data:`HEADINGS`.
        shown: What the help calls the default, where that is not the field's own.
        metavar: How its value is written; made of the type where it is empty.
        default: Its value where it is not given, of a field that has to have one in a file.
        nargs: Number of words, as ``argparse`` has it; made of the type where it is ``None``.
        positional: Whether it is given without its name.
        names: What it takes, where the type does not say so, or not shortly.
        before: The field of a run that the help has it in front of.
        alone: What it is where no word follows its name; nothing where one has to.
        help: What it is: the text below the field.
    """

    heading: str
    shown: str = ""
    metavar: str = ""
    default: Any = None
    nargs: int | str | None = None
    positional: bool = False
    names: tuple[str, ...] = ()
    before: str = ""
    alone: str = ""
    help: str = ""


@cache
def options_of(kind: type) -> Mapping[str, tuple[Any, Option]]:
    """Return a class's fields that are options, each by name with its type and option."""
    texts = {name: text for each in reversed(kind.__mro__[:-1]) for name, text in _texts(each)}
    return {
        name: (hint, dataclasses.replace(mark, help=texts[name]))
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if get_origin(hint) is Annotated
        for mark in get_args(hint)[1:]
        if isinstance(mark, Option)
    }


@cache
def _texts(kind: type) -> list[tuple[str, str]]:
    """Read the texts below a class's fields, which Python itself does not keep."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    return [
        (field.target.id, inspect.cleandoc(text.value.value).replace("\n", " "))
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    ]
