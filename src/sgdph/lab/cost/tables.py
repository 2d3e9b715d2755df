"""The tables of a measurement: for the terminal, as markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from sgdph.lab.cost.figures import CellFigures
from sgdph.lab.cost.summary import Ratio, Row, summarise

HEADINGS = (
    "SGDM = 1.00",
    "time",
    "lowest to highest",
    "time of a refresh",
    "mean peak memory",
    "worst peak",
    "FLOPs",
    "floor",
)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def cells_of(row: Row) -> list[str]:
    """Lay a row out as texts, one per heading."""
    return [
        row.label,
        _shown(row.time.median),
        f"{row.time.lowest:.2f} to {row.time.highest:.2f}",
        _shown(row.refresh),
        _shown(row.mean_peak),
        _shown(row.worst_peak),
        _shown(row.flops),
        _shown(row.floor),
    ]


def to_rich(cell: CellFigures) -> Table:
    """Make the table for the terminal."""
    table = Table(title=cell.name, title_justify="left")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in summarise(cell):
        table.add_row(*(text.replace("[", r"\[") for text in cells_of(row)))
    return table


def to_markdown(cell: CellFigures) -> str:
    """Make the table for a page."""
    lines = [list(HEADINGS), ["---", *("---:" for _ in HEADINGS[1:])]]
    lines += [cells_of(row) for row in summarise(cell)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(cells: Sequence[CellFigures]) -> str:
    """Make the table of all cells as CSV: ratios in full, empty where there is no figure."""
    clocks = [
        f"{c}_{part}" for c in ("process", "wall") for part in ("median", "lowest", "highest")
    ]
    peaks = [f"{part}_{peak}" for peak in ("peak", "total_peak") for part in ("mean", "worst")]
    others = ("refresh", *peaks, "flops", "floor")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "batch_size", "system", "label", "seconds", *clocks, *others])
    for cell in cells:
        for system, row in zip(cell.systems, summarise(cell), strict=True):
            values = [
                *_parts(row.process),
                *_parts(row.wall),
                *(getattr(row, name) for name in others),
            ]
            writer.writerow(
                [cell.model, cell.batch_size, system.name, row.label, repr(row.seconds)]
                + ["" if value is None else repr(value) for value in values]
            )
    return stream.getvalue()


def _parts(ratio: Ratio | None) -> tuple[float | None, ...]:
    return (None, None, None) if ratio is None else (ratio.median, ratio.lowest, ratio.highest)
