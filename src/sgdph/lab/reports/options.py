"""The options of ``sgdph report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sgdph.lab.config.option import MEASUREMENT, OUTPUT, Option
from sgdph.lab.reports.layout import Layout, parse_fields, saved_layout


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The options of ``sgdph report``."""

    runs: Annotated[tuple[Path, ...], Option(OUTPUT, metavar="DIR", positional=True)] = ()
    """Directories of runs, comparisons or sweeps; they are searched to any depth."""
    rows: Annotated[str | None, Option(MEASUREMENT, "system, or the sweep's", metavar="FIELDS")] = (
        None
    )
    """Options whose values make the rows, like lr,weight_decay (system: the label or optimizer)."""
    columns: Annotated[
        str | None, Option(MEASUREMENT, "dataset,model, or the sweep's", metavar="FIELDS")
    ] = None
    """Options whose values make the columns."""
    target: Annotated[
        str | None, Option(MEASUREMENT, "99% of the best of the column", metavar="X,...")
    ] = None
    """Accuracies like 0.9,0.95; the report says how long each run took to reach them."""
    archive: Annotated[bool, Option(OUTPUT)] = False
    """Also write all runs to --out as runs.csv (a line per epoch) and runs.jsonl. This command
    reads these files like run directories."""
    title: Annotated[str | None, Option(OUTPUT, "the rows, or the sweep's")] = None
    """Title of the report."""
    out: Annotated[
        Path | None, Option(OUTPUT, "the directory given; runs/report for several", metavar="DIR")
    ] = None
    """Directory for the report."""

    @property
    def place(self) -> Path:
        """The directory for the report."""
        if self.out is not None:
            return self.out
        return self.runs[0] if len(self.runs) == 1 else Path("runs") / "report"

    def layout(self) -> Layout:
        """Return the requested layout; what was not requested comes from a single sweep's layout.

        Raises:
            LabError: If a field is unknown, or the sweep's layout cannot be read.
        """
        asked = {
            name: parse_fields(text, f"--{name}")
            for name, text in (("rows", self.rows), ("columns", self.columns))
            if text is not None
        }
        # If both are given, the sweep's own layout is not read, so it may be broken.
        saved = saved_layout(self.runs[0]) if len(self.runs) == 1 and len(asked) < 2 else Layout()
        return Layout(
            rows=asked.get("rows", saved.rows),
            columns=asked.get("columns", saved.columns),
            title=self.title or saved.title,
            turned=saved.turned and not asked,
        )

    def targets(self) -> tuple[float, ...]:
        """Return the requested targets; empty if they are to be chosen automatically.

        Raises:
            LabError: If they cannot be parsed.
        """
        if self.target is None:
            return ()
        # Imported here because it needs numpy, and --help should not.
        from sgdph.lab.reports.measures import parse_targets

        return parse_targets(self.target)
