"""One process that works on a tuning: takes trials and trains them until there is none to take.

``sgdph tune`` does so itself, or has several processes of :mod:`sgdph.lab.sweep.crew` do it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import FAILED, INTERRUPTED, OK, LabError
from sgdph.lab.progress import reporter_for, say, screen
from sgdph.lab.run.start import load_data
from sgdph.lab.sweep.crew import read_order, watch_parent
from sgdph.lab.tune.record import TuneDirectory, Tuning
from sgdph.lab.tune.study import Studies
from sgdph.lab.tune.trial import run_trial


def data_of(tuning: Tuning, place: Mapping[str, Any], *, download: bool = False) -> Dataset:
    """Load the images that a tuning's trials are trained on, and those that judge them."""
    return load_data(tuning.config(tuning.optimizers[0], place=place), download=download)


def work(
    directory: TuneDirectory, place: Mapping[str, Any], data: Dataset, console: Console
) -> None:
    """Take trials and train them until there is none to take."""
    studies = Studies(directory)
    tuning = directory.read()
    left = tuning.trials * len(tuning.optimizers)
    with reporter_for(console, left) as reporter:
        while True:
            with studies.take() as hand:
                if hand is None:
                    break
                config = directory.read().config(hand.optimizer, hand.settings, place)
                run_trial(hand, config, data, reporter)
    running = studies.running()
    if running:
        say(console, f"{running} trials are in the hands of other processes, which go on.")


def main() -> int:
    """Work on the tuning that the parent names.

    Returns:
        The exit code: 0 when there is nothing left to take, 1 when it failed, 130 when interrupted.
    """
    order = read_order()
    directory, place = TuneDirectory(Path(order["directory"])), order["place"]
    try:
        watch_parent()
        data = data_of(directory.read(), place)
        work(directory, place, data, screen(140))
    except LabError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return OK


if __name__ == "__main__":
    sys.exit(main())
