"""What a person may ask of ``sgdph report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sgdph.lab.options.options import shown
from sgdph.lab.reports.layout import Layout, parse_fields, saved_layout
from sgdph.lab.reports.measures import parse_targets


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Make tables, curves and a page of finished runs, of their directories alone."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs, of comparisons or sweeps, or any that hold such, at any depth."""
    out: Annotated[Path | None, shown("the directory given; runs/report for several", "DIR")] = None
    """Directory for the report."""
    rows: Annotated[str | None, shown("system, or the sweep's", "TEXT")] = None
    """What makes the tables' rows: options like lr,weight_decay, or system (label or optimizer)."""
    columns: Annotated[str | None, shown("dataset,model, or the sweep's", "TEXT")] = None
    """What makes the tables' columns."""
    target: Annotated[str | None, shown("99% of the best of the column", "TEXT")] = None
    """Accuracies like 0.9,0.95: how long each took to reach them."""
    archive: bool = False
    """Write all runs into --out, as runs.csv (a line per epoch) and runs.jsonl: this command reads
    the two like the runs' directories."""
    title: Annotated[str | None, shown("the rows, or the sweep's", "TEXT")] = None
    """Title of the report."""

    @property
    def place(self) -> Path:
        """Where the report goes."""
        if self.out is not None:
            return self.out
        return self.runs[0] if len(self.runs) == 1 else Path("runs") / "report"

    def layout(self) -> Layout:
        """Return the layout that was asked for, filled up with that of a single sweep.

        Raises:
            LabError: A field is unknown, or the sweep's layout cannot be read.
        """
        asked = {
            name: parse_fields(text, f"--{name}")
            for name, text in (("rows", self.rows), ("columns", self.columns))
            if text is not None
        }
        # Where both are named, a sweep's own may be as broken as it likes.
        saved = saved_layout(self.runs[0]) if len(self.runs) == 1 and len(asked) < 2 else Layout()
        return Layout(
            rows=asked.get("rows", saved.rows),
            columns=asked.get("columns", saved.columns),
            title=self.title or saved.title,
            turned=saved.turned and not asked,
        )

    def targets(self) -> tuple[float, ...]:
        """Return the targets that were asked for; none where they are to be chosen.

        Raises:
            LabError: They cannot be read.
        """
        return () if self.target is None else parse_targets(self.target)
