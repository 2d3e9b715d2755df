"""Command-line options as annotations of a class's fields; the text below a field is its help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin, get_type_hints

# The headings of a command's help, in order.
OPTIMIZER = "optimizer"
DATA = "data and network"
TRAINING = "training"
MEASUREMENT = "measurement"
MACHINE = "machine"
OUTPUT = "output"
HEADINGS = (OPTIMIZER, DATA, TRAINING, MEASUREMENT, MACHINE, OUTPUT)


@dataclass(frozen=True)
class Option:
    """An annotation that makes a field an option of the command line.

    Attributes:
        heading: One of :data:`HEADINGS`.
        shown: What the help shows as the default, if not the field's own default.
        metavar: Placeholder for its value in the help; derived from the type if empty.
        default: Its value if it is not given on the command line, for a field that has no default
            of its own. A file must contain such a field.
        nargs: Number of words, as in ``argparse``, except that 1 means no list; derived from the
            type if ``None``.
        positional: Whether it is given without its name.
        names: Accepted values, if the type does not list them, or lists too many to show.
        before: The :class:`RunConfig` field that it precedes in the help.
        alone: Its value if no word follows its name; empty if a word is required.
        help: Its description: the text below the field.
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
    """Return a class's fields that are options: name to type and option."""
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
    """Read the texts below a class's fields from the source, because Python does not keep them."""
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
