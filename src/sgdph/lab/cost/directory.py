"""The directory of a measurement.

| file | content |
|---|---|
| ``cost.json`` | settings, and the results and machine of every finished cell |
| ``report.html``, ``report.md``, ``table.csv`` | the report |
| ``cost.png`` | a bar chart: time and memory of each system |
| ``cost-sweep.png`` | the ratios over the cells, if there are several |
"""

from __future__ import annotations

from collections.abc import Sequence

from sgdph.lab.cost.figures import (
    CellFigures,
    CostSettings,
    cell_from_plain,
    settings_from_plain,
    to_plain,
)
from sgdph.lab.errors import LabError
from sgdph.lab.files import make_directory, write_json
from sgdph.lab.reports.folder import PAGE_FILES, page_marks
from sgdph.lab.run.record_directory import RecordDirectory

FORMAT = "sgdph-cost-1"
FIGURES, BARS, SWEEP = "cost.json", "cost.png", "cost-sweep.png"
HOLDS = {
    BARS: "a bar chart: time and memory of each system",
    SWEEP: "time and memory over the networks or batch sizes",
    FIGURES: "settings, and every round's figures; --resume reads it",
}
GENERATOR, TITLE, HEADER = (
    "sgdph cost",
    "What a training step costs",
    "model,batch_size,system,label,",
)
# Files that earlier versions wrote.
FORMER = {"cost.md": f"# {TITLE}\n", "cost.csv": HEADER}
# The results are deleted last, so that a partly deleted directory is still recognised.
COST_FILES = (*PAGE_FILES, BARS, SWEEP, FIGURES)


class CostDirectory(RecordDirectory):
    """The files of one measurement.

    Args:
        path: The directory. It need not exist yet.
    """

    what, files, former = "measurement", COST_FILES, FORMER
    marks = page_marks(GENERATOR, f"# {TITLE}\n", HEADER)

    def recognise(self) -> None:
        """Raise LabError if the directory contains no readable measurement."""
        self.read_record(FIGURES, FORMAT)

    def write(self, settings: CostSettings, cells: Sequence[CellFigures]) -> None:
        """Replace settings and results."""
        make_directory(self.path)
        content = {
            "format": FORMAT,
            "settings": to_plain(settings),
            "cells": [to_plain(cell) for cell in cells],
        }
        write_json(self.path / FIGURES, content)

    def read(self) -> tuple[CostSettings, list[CellFigures]]:
        """Read settings and results.

        Raises:
            LabError: If there are none, or the file is not a measurement that can be read.
        """
        content = self.read_record(FIGURES, FORMAT)
        try:
            cells = [cell_from_plain(cell) for cell in content["cells"]]
            return settings_from_plain(content["settings"]), cells
        except (KeyError, TypeError, ValueError) as error:
            raise LabError(
                f"{self.path / FIGURES} was written by another version of sgdph and cannot be read "
                f"({error!r}); name another --out, or measure anew with --overwrite"
            ) from error
