"""Parsing of a command's words into its options, with a parser made from the options class.

Each option is defined once, by the annotation of its field (:class:`Option`). Its name, type and
choices come from the field. The default that the help shows comes from the field, the data sets or
the registry of optimizers.
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
    """An argument parser that raises :class:`LabError` for invalid words."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # -1e-3 is also a number, not an option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.I)

    def error(self, message: str) -> NoReturn:
        """Raise the message that argparse would print before it exits."""
        raise LabError(f"{message.removeprefix('argument ')}; `{self.prog} --help` tells more")

    def parse(self, words: Sequence[str], elsewhere: Mapping[str, str]) -> dict[str, Any]:
        """Return the options that were given, by name.

        Args:
            words: The words.
            elsewhere: Flag that only other commands have, to a hint on what to write here.

        Raises:
            LabError: If a word is not an option or its value, or an option lacks its value.
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
        name: Name of its field.
        hint: The field's type.
        option: The field's :class:`Option`.
        default: What the help shows as its default.
        of_run: Whether it is a field of :class:`RunConfig`.
    """

    name: str
    hint: Any
    option: Option
    default: str
    of_run: bool

    @property
    def flag(self) -> str:
        """Its flag on the command line, like ``--data-dir``."""
        return "--" + self.name.replace("_", "-")

    @property
    def kind(self) -> Any:
        """Its type without ``None`` and bounds."""
        return bare(self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        """The accepted values, as the help lists them; empty if there is no such list."""
        if self.option.names or get_origin(self.kind) is not Literal:
            return self.option.names
        return get_args(self.kind)

    def add_to(self, group: argparse._ActionsContainer) -> None:
        """Add the option to a parser or to one of its groups."""
        # SUPPRESS: an option that was not given is absent from the result.
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
        """Number of words it takes, as in ``argparse``; ``None`` for one word, not in a list."""
        if self.option.nargs is not None:
            return None if self.option.nargs == 1 else self.option.nargs
        return len(get_args(self.kind)) if get_origin(self.kind) is tuple else None

    @property
    def metavar(self) -> str:
        """Placeholder for its value in the help."""
        if self.option.metavar:
            return self.option.metavar
        if self.choices:
            return "{" + ",".join(self.choices) + "}" if len(self.choices) <= FEW else "NAME"
        if get_origin(self.kind) is tuple:
            return _METAVARS.get(get_args(self.kind)[0], "TEXT")
        return _METAVARS.get(self.kind, "PATH")

    def help(self) -> str:
        """Return its text in the help: description, choices if there are many, and default."""
        many = f" One of {', '.join(self.choices)}." if len(self.choices) > FEW else ""
        default = f" (default: {self.default})" if self.default else ""
        return f"{self.option.help}{many}{default}".replace("%", "%%")

    def value(self, given: Any) -> Any:
        """Convert the given words to the option's value.

        Raises:
            LabError: If the words cannot be read, or the value is out of its bounds.
        """
        if isinstance(given, bool):
            return given
        if given == "":
            raise LabError(f"{self.flag} is empty; leave it out for its default ({self.default})")
        if self.of_run and self.name in READ:
            return READ[self.name](given)
        return parse_value(self.hint, given, self.flag)


def bare(hint: Any) -> Any:
    """Return a type without its bounds and without ``None``."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return bare(kinds[0]) if len(kinds) == 1 else hint
    return hint


def arguments_of(kind: type) -> list[Argument]:
    """List a command's options in the order of its help.

    Under each heading, the command's own options come first, then the run's fields in their order.
    An own option with the name of a field takes the place of that field, and one with ``before``
    precedes the field that it names.
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
    """Describe the default of an option; empty if there is nothing to show."""
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
    # Only listed in the help text: parse_options checks for -h and --help before it parses.
    parser.add_argument_group("help").add_argument(
        "-h", "--help", action="help", help="Show this help and exit."
    )
    return parser


def _elsewhere(kind: type) -> dict[str, str]:
    """Return hints on flags of other commands: flag to what to write here instead."""
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
        description: What the command does, for the help.

    Returns:
        The options, or ``None`` if help was requested. The help is then printed.

    Raises:
        LabError: If an option is unknown, or a value cannot be read or is out of its bounds.
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
