"""From words to a command's options: a parser made of the class that holds them.

Every option is defined once, by the annotation of its field (:class:`Option`). Its name, type and
choices come from the field, what the help says of its default from the field, the data sets or the
registry of optimizers.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from sgdph.lab.config.check import parse_value
from sgdph.lab.config.option import HEADINGS, Option, options_of
from sgdph.lab.config.run_config import PLACE_FIELDS, RunConfig
from sgdph.lab.errors import FEW, LabError, unknown_name
from sgdph.lab.options.defaults import default_text
from sgdph.lab.options.options import READ, RunOptions, TrainOptions

T = TypeVar("T")
_METAVARS = {int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """Raises a :class:`LabError` where the words are wrong."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # -1e-3 is a number too, and no option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.I)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit with."""
        raise LabError(f"{message.removeprefix('argument ')}; `{self.prog} --help` tells more")

    def parse(self, words: Sequence[str], elsewhere: Mapping[str, str]) -> dict[str, Any]:
        """Return the options that were given, by name.

        Args:
            words: The words.
            elsewhere: Flag that this command lacks and others have, to what to write here.

        Raises:
            LabError: A word is not an option's, or an option lacks its value.
        """
        found, rest = self.parse_known_intermixed_args(words)
        for word in rest:
            if word.startswith("-"):
                flags = [*self._option_string_actions]
                name = word.partition("=")[0]
                listed = f"`{self.prog} --help` lists them"
                if name in elsewhere:
                    raise LabError(f"unknown option {name!r}; {elsewhere[name]}; {listed}")
                raise LabError(unknown_name("option", name, flags, listed))
            raise LabError(f"unexpected word {word!r}; `{self.prog} --help` tells more")
        return vars(found)


@dataclasses.dataclass(frozen=True)
class Argument:
    """An option of a command.

    Attributes:
        name: Of its field.
        hint: The field's type.
        option: What the help says of it.
        default: What the help says of its default.
        of_run: Whether it is a field of :class:`RunConfig`.
    """

    name: str
    hint: Any
    option: Option
    default: str
    of_run: bool

    @property
    def flag(self) -> str:
        """How it is written: ``--data-dir``."""
        return "--" + self.name.replace("_", "-")

    @property
    def kind(self) -> Any:
        """Its type without ``None`` and bounds."""
        return bare(self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that it takes, where it takes no others."""
        if self.option.names or get_origin(self.kind) is not Literal:
            return self.option.names
        return get_args(self.kind)

    def add_to(self, group: argparse._ActionsContainer) -> None:
        """Add it to a parser or to one of its groups."""
        # SUPPRESS: what was not given is not there.
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": self.help()}
        if self.option.positional:
            many = get_origin(self.kind) is tuple
            settings.update(metavar=self.metavar, nargs="*" if many else "?")
            group.add_argument(self.name, **settings)
            return
        if self.kind is bool:
            lone = get_args(self.hint)[0] is bool and not self.of_run
            settings["action"] = "store_true" if lone else argparse.BooleanOptionalAction
        else:
            settings.update(metavar=self.metavar, nargs=self.nargs)
            if self.option.alone:
                settings.update(nargs="?", const=self.option.alone)
        group.add_argument(self.flag, dest=self.name, **settings)

    @property
    def nargs(self) -> int | str | None:
        """How many words it takes; ``None`` for one that is not in a list."""
        if self.option.nargs is not None:
            return None if self.option.nargs == 1 else self.option.nargs
        return len(get_args(self.kind)) if get_origin(self.kind) is tuple else None

    @property
    def metavar(self) -> str:
        """What the help shows in place of its value."""
        if self.option.metavar:
            return self.option.metavar
        if self.choices:
            return "{" + ",".join(self.choices) + "}" if len(self.choices) <= FEW else "NAME"
        if get_origin(self.kind) is tuple:
            return _METAVARS.get(get_args(self.kind)[0], "TEXT")
        return _METAVARS.get(self.kind, "PATH")

    def help(self) -> str:
        """What the help says: what it is, its choices where they are many, its default."""
        many = f" One of {', '.join(self.choices)}." if len(self.choices) > FEW else ""
        default = f" (default: {self.default})" if self.default else ""
        return f"{self.option.help}{many}{default}".replace("%", "%%")

    def value(self, given: Any) -> Any:
        """Make a value of what was given.

        Raises:
            LabError: It cannot be read, or is out of its bounds.
        """
        if isinstance(given, bool):
            return given
        if given == "":
            raise LabError(f"{self.flag} is empty; leave it out for its default ({self.default})")
        if self.of_run and self.name in READ:
            return READ[self.name](given)
        return parse_value(self.hint, given, self.flag)


def bare(hint: Any) -> Any:
    """Return a type without its bounds, and without the ``None`` beside it."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return bare(kinds[0]) if len(kinds) == 1 else hint
    return hint


def arguments_of(kind: type) -> list[Argument]:
    """List a command's options in the order of its help.

    Under a heading stand the command's own first, then a run's in the order of its fields; but for
    those that have their place before one of these.
    """
    of_run = options_of(RunConfig)
    own = options_of(kind)
    taken = kind.TAKES - own.keys() if issubclass(kind, RunOptions) else frozenset()
    arguments = [
        Argument(name, hint, option, _default_of(kind, name, option), of_run=False)
        for name, (hint, option) in own.items()
    ]
    arguments += [
        Argument(name, *of_run[name], _default_of(kind, name, of_run[name][1]), of_run=True)
        for name in taken
    ]
    order = [*of_run]

    def place(each: Argument) -> tuple[int, int]:
        name = each.option.before or each.name
        return HEADINGS.index(each.option.heading), order.index(name) if name in order else -1

    return sorted(arguments, key=place)


def _default_of(kind: type, name: str, option: Option) -> str:
    """Say what an option is where it is not given."""
    if issubclass(kind, RunOptions) and name in options_of(RunConfig):
        return kind.SHOWN if kind.SHOWN and name not in PLACE_FIELDS else default_text(name)
    own = getattr(kind, name, None)
    return option.shown or ("" if own in (None, False, ()) else str(own))


def build_parser(arguments: Iterable[Argument], prog: str, description: str) -> Parser:
    """Make the parser of a command."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [OPTION ...]",
        description=description,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for argument in arguments:
        heading = "arguments" if argument.option.positional else argument.option.heading
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        argument.add_to(groups[heading])
    # Only for the help's sake: whether it was asked for is looked at before.
    parser.add_argument_group("help").add_argument(
        "-h", "--help", action="help", help="Show this help and exit."
    )
    return parser


def _elsewhere(kind: type) -> dict[str, str]:
    """Say what to write for the options that a command has not, and ``sgdph train`` has."""
    if not issubclass(kind, RunOptions):
        return {}
    flags = {argument.flag for argument in arguments_of(TrainOptions)}
    return {**dict.fromkeys(flags, "it belongs to sgdph train"), **kind.INSTEAD}


def parse_options(kind: type[T], words: Sequence[str], prog: str, description: str) -> T | None:
    """Read a command's options.

    Args:
        kind: The class of the options.
        words: The words after the command's name.
        prog: The command, for the help.
        description: What it does, for the help.

    Returns:
        The options; ``None`` where the help was asked for, and printed.

    Raises:
        LabError: A word is not an option's, or a value cannot be read or is out of its bounds.
    """
    arguments = {argument.name: argument for argument in arguments_of(kind)}
    parser = build_parser(arguments.values(), prog, description)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return None
    found = parser.parse(words, _elsewhere(kind))
    given = {name: arguments[name].value(each) for name, each in found.items()}
    own = {name: value for name, value in given.items() if not arguments[name].of_run}
    of_run = {name: value for name, value in given.items() if arguments[name].of_run}
    return kind(**own, run_fields=of_run) if issubclass(kind, RunOptions) else kind(**own)
