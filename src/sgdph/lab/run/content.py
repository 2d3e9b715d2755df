"""Checks of what a run's files contain, before a report uses them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError
from sgdph.lab.run.directory import METRICS, SUMMARY


def check_content(
    config: RunConfig, summary: object, metrics: Sequence[object], env: object
) -> None:
    """Raise LabError if a run's files lack what a report needs, or contradict each other."""
    if not isinstance(summary, Mapping) or not isinstance(env, Mapping):
        raise LabError(f"{SUMMARY} or env.json holds no mapping of names to values")
    accuracy = f"{config.evaluated}_accuracy"
    last = None
    for number, line in enumerate(metrics, 1):
        names = ("epoch", "train_loss", accuracy)
        if not isinstance(line, Mapping) or not all(is_number(line.get(name)) for name in names):
            raise LabError(f"line {number} of {METRICS} lacks epoch, train_loss or {accuracy}")
        last = line[accuracy]
    if summary.get("status") != "finished":
        return
    needed = (f"final_{accuracy}", f"best_{accuracy}", "final_train_loss", "seconds", "epochs")
    lacking = [name for name in needed if not is_number(summary.get(name))]
    if lacking:
        raise LabError(f"{SUMMARY} says finished, but has no number for {', '.join(lacking)}")
    remedy = "restore the run's files from a copy, or train it again"
    if len(metrics) != summary["epochs"]:
        raise LabError(
            f"{SUMMARY} says finished after {summary['epochs']} epochs, so {METRICS} must have "
            f"{summary['epochs']} lines, but {len(metrics)} can be read; {remedy}"
        )
    if last != summary[f"final_{accuracy}"]:
        raise LabError(
            f"{SUMMARY} has the final_{accuracy} {summary[f'final_{accuracy}']}, so the last line "
            f"of {METRICS} must have it, but has {last}; {remedy}"
        )


def is_number(value: object) -> bool:
    """Return whether a value from a file is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)
