"""Tables of an inspection: for the terminal, for a spreadsheet, and the rows of the page's."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from rich import box
from rich.table import Table

from sgdph.lab.inspect.choice import Plan
from sgdph.lab.inspect.figures import (
    BlockRecord,
    CheckpointFigures,
    Inspection,
    record_to_plain,
)
from sgdph.lab.inspect.sketch import ESTIMATES

LABELS = {
    "row_sum_one": "row sum (the paper's), one batch",
    "hutchinson_one": "one Hutchinson probe, one batch",
    "exact_one": "exact diagonal, one batch",
    "row_sum_average": "row sum, averaged",
    "hutchinson_average": "Hutchinson, averaged",
    "exact_average": "exact diagonal, averaged",
    "held": "what the optimizer holds",
    "constant": "one constant",
}
_ERRORS = ("row sum", "probe", "exact", "row sum\navg", "probe\navg", "exact\navg", "held", "const")
COLUMNS = ("parameter", "kind", "n", "off-diag", "off-diag\nmean", "neg", *_ERRORS, "newton\nmult.")
MULTIPLIER_FIELDS = ("source", "min", "p05", "p25", "median", "p75", "p95", "max", "mean")
NOTHING = "–"


@dataclass(frozen=True)
class Spread:
    """A figure over layers: median, lowest, highest, and how many."""

    median: float
    lowest: float
    highest: float
    count: int


def spread_over_layers(figures: CheckpointFigures, name: str, measure: str) -> Spread | None:
    """Summarise one estimate's error over a checkpoint's layers; ``None`` where it has none."""
    errors = [block.errors[f"{name}_{measure}"] for block in figures.blocks]
    values = [error for error in errors if error is not None]
    if not values:
        return None
    return Spread(median(values), min(values), max(values), len(values))


def rows(figures: CheckpointFigures) -> list[list[str]]:
    """Put a checkpoint's figures into cells, a row per block; see :data:`COLUMNS`."""
    multipliers = {each.name: each.median for each in figures.multipliers}
    return [
        [
            block.label,
            block.kind,
            str(block.size),
            number(block.off_diagonal_share_batch),
            number(block.off_diagonal_share_mean),
            number(block.negative_share_batch),
            *(number(block.errors[f"{name}_relative_error"]) for name in ESTIMATES),
            number(multipliers.get(block.name)),
        ]
        for block in figures.blocks
    ]


def number(value: float | None) -> str:
    """Write a figure with two decimals, or two digits where it is large."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if abs(value) < 99.995 else f"{value:.2g}"


def summary_rows(inspection: Inspection) -> list[list[str]]:
    """Put the errors' median and range over layers into cells: a row per estimate."""
    return [
        [LABELS[name], *(_over_layers(each, name) for each in inspection.checkpoints)]
        for name in ESTIMATES
    ]


def _over_layers(figures: CheckpointFigures, name: str) -> str:
    found = spread_over_layers(figures, name, "relative_error")
    if found is None:
        return NOTHING
    return f"{number(found.median)} ({number(found.lowest)} to {number(found.highest)})"


def _titled(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))


def to_rich(figures: CheckpointFigures) -> Table:
    """Make a checkpoint's table for the terminal."""
    title = f"Epoch {figures.epoch}, step {figures.step}"
    table = _titled(title)
    for i, column in enumerate(COLUMNS):
        # A long name is cut, a figure never is.
        least = max(map(len, column.split("\n"))) if i > 1 else None
        most = 28 if i == 0 else None
        side: Literal["left", "right"] = "left" if i < 2 else "right"
        table.add_column(column, justify=side, no_wrap=True, min_width=least, max_width=most)
    for row in rows(figures):
        table.add_row(*row)
    return table


def summary_to_rich(inspection: Inspection) -> Table:
    """Make the table of errors through training for the terminal."""
    title = "Relative error against |diagonal|: median over layers (lowest to highest)"
    table = _titled(title)
    table.min_width = len(title) + 2
    for column in ("estimate", *(f"epoch {each.epoch}" for each in inspection.checkpoints)):
        table.add_column(column)
    for row in summary_rows(inspection):
        table.add_row(*row)
    return table


def left_out_to_rich(plan: Plan) -> Table:
    """Make the table of the blocks that were not taken for the terminal."""
    title = "Left out, with estimated seconds"
    table = _titled(title)
    for i, column in enumerate(("parameter", "kind", "rows", "seconds")):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    for each in plan.left_out:
        table.add_row(each.label, each.kind, str(each.size), f"{each.estimated_seconds:.3g}")
    return table


def to_csv(checkpoints: Sequence[CheckpointFigures]) -> str:
    """Write all figures, a row per checkpoint and block."""
    lines = [_line(block, figures) for figures in checkpoints for block in figures.blocks]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(block: BlockRecord, figures: CheckpointFigures) -> dict[str, object]:
    line = record_to_plain(block)
    line["shape"] = "x".join(map(str, block.shape))
    multiplier = next((each for each in figures.multipliers if each.name == block.name), None)
    for name in MULTIPLIER_FIELDS:
        line[f"multiplier_{name}"] = None if multiplier is None else getattr(multiplier, name)
    return line
