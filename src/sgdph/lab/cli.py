"""The ``sgdph`` command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union

import tyro
from rich.console import Console

from sgdph.lab import commands
from sgdph.lab.cost.command import cost
from sgdph.lab.cost.options import CostOptions
from sgdph.lab.data_command import data
from sgdph.lab.errors import WRONG_USAGE, LabError
from sgdph.lab.inspect.command import inspect
from sgdph.lab.inspect.options import InspectOptions
from sgdph.lab.options.data import DataOptions
from sgdph.lab.options.options import CompareOptions, TrainOptions
from sgdph.lab.output import standard_streams
from sgdph.lab.progress import screen
from sgdph.lab.reports.command import report
from sgdph.lab.reports.options import ReportOptions
from sgdph.lab.run.distributed import processes, speaks
from sgdph.lab.sweep.compare import compare
from sgdph.lab.sweep.reproduce import reproduce
from sgdph.lab.sweep.reproduce_options import ReproduceOptions
from sgdph.lab.tune.command import tune
from sgdph.lab.tune.options import TuneOptions

DESCRIPTION = (
    "Train small networks with SGD-PH and other optimizers, tune and compare them, run the paper's "
    "experiments, measure what a step costs, look at the Hessian blocks, and report on finished "
    "runs. "
    "sgdph --version prints the version."
)

COMMANDS: Mapping[str, tuple[type, Callable[[Any, Console], int]]] = {
    "train": (TrainOptions, commands.train),
    "compare": (CompareOptions, compare),
    "reproduce": (ReproduceOptions, reproduce),
    "tune": (TuneOptions, tune),
    "report": (ReportOptions, report),
    "cost": (CostOptions, cost),
    "inspect": (InspectOptions, inspect),
    "data": (DataOptions, data),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; the process's own where ``None``.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with standard_streams():
        return _run(words)


def _run(words: Sequence[str]) -> int:
    # Where the width is not known, a table is better too wide than broken.
    console = screen(None if sys.stdout.isatty() else 140)
    try:
        options = parse(words)
        run = next(run for kind, run in COMMANDS.values() if type(options) is kind)
        if processes() > 1 and not isinstance(options, TrainOptions):
            raise LabError(
                "torchrun shares one training among processes, so it goes with train alone; start "
                "this command without it"
            )
        return run(options, console)
    except LabError as error:
        if speaks(error):
            print(f"sgdph: error: {error}", file=sys.stderr)
        return WRONG_USAGE


def parse(words: Sequence[str]) -> Any:
    """Read a command and its options, or say what is wrong with them and exit."""
    kinds = [Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in COMMANDS.items()]
    any_of_them: Any = Union[tuple(kinds)]  # noqa: UP007 - made of a table
    return tyro.cli(
        any_of_them,
        prog="sgdph",
        description=DESCRIPTION,
        args=words,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )


if __name__ == "__main__":
    sys.exit(main())
