"""The ``sgdph`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

import sgdph
from sgdph.lab import commands
from sgdph.lab.config import LabError
from sgdph.lab.cost.command import cost
from sgdph.lab.cost.options import CostOptions
from sgdph.lab.data.command import data
from sgdph.lab.data.options import DataOptions
from sgdph.lab.distributed import processes, speaks
from sgdph.lab.inspect.command import inspect
from sgdph.lab.inspect.options import InspectOptions
from sgdph.lab.options import CompareOptions, TrainOptions
from sgdph.lab.reports.command import report
from sgdph.lab.reports.options import ReportOptions
from sgdph.lab.reproduce import reproduce
from sgdph.lab.reproduce_options import ReproduceOptions
from sgdph.lab.tune.command import tune
from sgdph.lab.tune.options import TuneOptions

DESCRIPTION = (
    "Train small networks with SGD-PH and other optimizers, tune and compare them, run the paper's "
    "experiments, measure what a step costs, look at the Hessian blocks, and report on finished "
    "runs. "
    "sgdph --version prints the version."
)
WRONG_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; the process's own where ``None``.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Where the width is not known, a table is better too wide than broken.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    if words == ["--version"]:
        print(f"sgdph {sgdph.__version__}")
        return commands.OK
    try:
        options = tyro.cli(
            Annotated[TrainOptions, tyro.conf.subcommand("train")]
            | Annotated[CompareOptions, tyro.conf.subcommand("compare")]
            | Annotated[CostOptions, tyro.conf.subcommand("cost")]
            | Annotated[InspectOptions, tyro.conf.subcommand("inspect")]
            | Annotated[ReproduceOptions, tyro.conf.subcommand("reproduce")]
            | Annotated[ReportOptions, tyro.conf.subcommand("report")]
            | Annotated[DataOptions, tyro.conf.subcommand("data")]
            | Annotated[TuneOptions, tyro.conf.subcommand("tune")],
            prog="sgdph",
            description=DESCRIPTION,
            args=words,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
        if isinstance(options, TrainOptions):
            return commands.train(options, console)
        if processes() > 1:
            raise LabError(
                "torchrun shares one training among processes, so it goes with train alone; start "
                "this command without it"
            )
        if isinstance(options, CostOptions):
            return cost(options, console)
        if isinstance(options, InspectOptions):
            return inspect(options, console)
        if isinstance(options, ReproduceOptions):
            return reproduce(options, console)
        if isinstance(options, ReportOptions):
            return report(options, console)
        if isinstance(options, DataOptions):
            return data(options, console)
        if isinstance(options, TuneOptions):
            return tune(options, console)
        return commands.compare(options, console)
    except LabError as error:
        if speaks(error):
            print(f"sgdph: error: {error}", file=sys.stderr)
        return WRONG_USAGE


if __name__ == "__main__":
    sys.exit(main())
