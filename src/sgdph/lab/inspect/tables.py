"""The tables of an inspection."""

from __future__ import annotations

from collections.abc import Sequence

from sgdph.lab.inspect.figures import (
    BlockRecord,
    CheckpointFigures,
    Inspection,
    Plan,
    record_to_plain,
)
from sgdph.lab.inspect.sketch import ESTIMATES
from sgdph.lab.reports.numbers import two_decimals
from sgdph.lab.reports.statistics import Range
from sgdph.lab.reports.table import Column, Table

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
COLUMNS = (
    Column("parameter", "left"),
    Column("kind", "left"),
    Column("n"),
    *(
        Column(heading, form=two_decimals)
        for heading in ("off-diag", "off-diag\nmean", "neg", *_ERRORS, "newton\nmult.")
    ),
)
MULTIPLIER_FIELDS = ("source", "min", "p05", "p25", "median", "p75", "p95", "max", "mean")


def spread_over_layers(figures: CheckpointFigures, name: str) -> Range | None:
    """Summarise an estimate's relative error over layers; ``None`` if no layer has one."""
    errors = [block.errors[f"{name}_relative_error"] for block in figures.blocks]
    values = [error for error in errors if error is not None]
    return Range.of(values) if values else None


def blocks_table(figures: CheckpointFigures) -> Table:
    """Make a checkpoint's table, with one row per block."""
    multipliers = {each.name: each.median for each in figures.multipliers}
    rows = tuple(
        (
            block.label,
            block.kind,
            block.size,
            block.off_diagonal_share_batch,
            block.off_diagonal_share_mean,
            block.negative_share_batch,
            *(block.errors[f"{name}_relative_error"] for name in ESTIMATES),
            multipliers.get(block.name),
        )
        for block in figures.blocks
    )
    return Table(COLUMNS, rows, f"Epoch {figures.epoch}, step {figures.step}")


def summary_table(inspection: Inspection) -> Table:
    """Make the table of errors over training, as median and range over layers."""
    epochs = tuple(Column(f"epoch {each.epoch}") for each in inspection.checkpoints)
    rows = tuple(
        (LABELS[name], *(_over_layers(each, name) for each in inspection.checkpoints))
        for name in ESTIMATES
    )
    caption = "Relative error against |diagonal|: median over layers (lowest to highest)"
    return Table((Column("estimate", "left"), *epochs), rows, caption)


def _over_layers(figures: CheckpointFigures, name: str) -> str | None:
    found = spread_over_layers(figures, name)
    if found is None:
        return None
    return found.show(two_decimals)


def left_out_table(plan: Plan) -> Table:
    """Make the table of the blocks that were left out."""
    columns = (
        Column("parameter", "left"),
        Column("kind", "left"),
        Column("rows"),
        Column("seconds", form=".3g"),
    )
    rows = tuple(
        (each.label, each.kind, each.size, each.estimated_seconds) for each in plan.left_out
    )
    return Table(columns, rows, "Left out, with estimated seconds")


def figures_table(checkpoints: Sequence[CheckpointFigures]) -> Table:
    """Make the machine-readable table: one row per checkpoint and block, with all values."""
    return Table.of_records(
        [_line(block, figures) for figures in checkpoints for block in figures.blocks]
    )


def _line(block: BlockRecord, figures: CheckpointFigures) -> dict[str, object]:
    line = record_to_plain(block)
    line["shape"] = "x".join(map(str, block.shape))
    multiplier = next((each for each in figures.multipliers if each.name == block.name), None)
    for name in MULTIPLIER_FIELDS:
        line[f"multiplier_{name}"] = None if multiplier is None else getattr(multiplier, name)
    return line
