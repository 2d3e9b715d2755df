"""The ``sgdph`` command.

Only the standard library is imported before the command is known, and torch only when the command
runs. This makes help and error messages fast.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sgdph
from sgdph.lab.errors import INTERRUPTED, OK, WRONG_USAGE, LabError, unknown_name
from sgdph.lab.output import standard_streams
from sgdph.lab.run.processes import processes, speaks


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        summary: What it does, in one sentence.
        options: Location of its options class: ``"module:name"`` below ``sgdph.lab``.
        run: Location of the function that takes the options and a console, and returns the exit
            code.
        more: Further text for its help.
    """

    summary: str
    options: str
    run: str
    more: str = ""


COMMANDS: Mapping[str, Command] = {
    "train": Command(
        "Train one network and record the run.", "options.options:TrainOptions", "commands:train"
    ),
    "compare": Command(
        "Train several optimizers over several seeds; end with a table and a picture.",
        "options.options:CompareOptions",
        "sweep.compare:compare",
    ),
    "reproduce": Command(
        "Run one of the paper's tables or figures: all its runs, and the table at the end.",
        "sweep.reproduce_options:ReproduceOptions",
        "sweep.reproduce:reproduce",
        "Run the same command again to continue: finished runs are skipped and unfinished ones "
        "resumed. Other machines that share --out join by running it too.",
    ),
    "tune": Command(
        "Search lr, weight decay and more for each optimizer, with equal budgets, on held-out "
        "images.",
        "tune.options:TuneOptions",
        "tune.command:tune",
        "Run the same command again to continue the tuning in --out, or to join it while it is "
        "running. The test images are never used.",
    ),
    "report": Command(
        "Make tables, curves and a page from the directories of finished runs.",
        "reports.options:ReportOptions",
        "reports.command:report",
    ),
    "cost": Command(
        "Measure what a training step costs: time, memory and FLOPs as ratios to SGDM's.",
        "cost.options:CostOptions",
        "cost.command:cost",
    ),
    "inspect": Command(
        "Look at the Hessian blocks of a run's channel-wise parameters, through its training.",
        "inspect.options:InspectOptions",
        "inspect.command:inspect",
        "Inspects the run that --run names, or trains one first, with the options of sgdph train.",
    ),
    "data": Command(
        "List the data sets: what each is, where it comes from, and whether it is there.",
        "options.data:DataOptions",
        "data_command:data",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; ``None`` for those of the process (``sys.argv``).

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with standard_streams():
        if words == ["--version"]:
            print(f"sgdph {sgdph.__version__}")
            return OK
        if not words or words[0] in ("-h", "--help"):
            print(overview())
            return OK if words else WRONG_USAGE
        try:
            return _run(words[0], words[1:])
        except LabError as error:
            if speaks(error):
                print(f"sgdph: error: {error}", file=sys.stderr)
            return WRONG_USAGE
        except KeyboardInterrupt:
            # Commands that can be continued catch it themselves and say how.
            print("sgdph: interrupted", file=sys.stderr)
            return INTERRUPTED


def overview() -> str:
    """Return the text that lists the commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sgdph COMMAND [OPTION ...]",
            "",
            "Train networks with SGD-PH and other optimizers, and report the results.",
            "",
            *lines,
            "",
            "sgdph COMMAND --help lists the options of a command; sgdph --version prints the "
            "version.",
        ]
    )


def _run(name: str, words: Sequence[str]) -> int:
    try:
        options = parse(name, words)
        if options is None:
            return OK
        if processes() > 1 and name != "train":
            raise LabError(
                "torchrun is for sgdph train only, because it shares one training among "
                "processes; start this command without torchrun"
            )
        run: Callable[[Any, Any], int] = _find(COMMANDS[name].run)
        screen = _find("progress:Screen")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "sgdph":
            raise
        raise LabError(
            f"the commands need the laboratory's packages, and {error.name} is not installed; "
            "install them with: pip install '.[lab]' in a checkout of sgdph"
        ) from error
    # If the width is not known, a table that is too wide is better than a broken one.
    return run(options, screen(width=None if sys.stdout.isatty() else 140))


def parse(name: str, words: Sequence[str]) -> Any:
    """Read a command's options.

    Args:
        name: The command.
        words: The words that follow it.

    Returns:
        The options, or ``None`` if help was requested. The help is then printed.

    Raises:
        LabError: If the command or an option is unknown, or a value cannot be read.
    """
    if name not in COMMANDS:
        known = tuple(COMMANDS)
        raise LabError(unknown_name("command", name, known, "`sgdph --help` lists them"))
    command = COMMANDS[name]
    description = f"{command.summary} {command.more}".strip()
    parse_options = _find("options.parser:parse_options")
    return parse_options(_find(command.options), words, f"sgdph {name}", description)


def _find(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"sgdph.lab.{module}"), name)


if __name__ == "__main__":
    sys.exit(main())
