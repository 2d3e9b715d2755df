"""An archive of a report's runs: two files that replace the run directories."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from sgdph.lab.config.yaml import with_lists
from sgdph.lab.errors import LabError
from sgdph.lab.reports.layout import Layout
from sgdph.lab.reports.report import Report
from sgdph.lab.run.archive import ArchivedRun, write_archive
from sgdph.lab.run.records import find_runs


def check_archive(paths: Sequence[Path], out: Path) -> None:
    """Raise LabError if ``out`` is one of the run directories, or contains some of them.

    Otherwise these runs would be there twice. A run that is deleted later would still be reported.
    """
    within = [
        run for run in find_runs(paths) if out.resolve() in (run.resolve(), *run.resolve().parents)
    ]
    if within:
        raise LabError(
            f"--archive must not write into a directory that contains the runs: {out} contains "
            f"{within[0]}; name another --out"
        )


def archive_report(made: Report, out: Path, layout: Layout) -> None:
    """Write the runs of a report to two files in its directory.

    Duplicates, which the report leaves out, are not written.
    """
    records = made.runs.records
    # Some paths may have been given as relative, and others as absolute.
    places = [run.path.absolute() for run in records]
    above = Path(os.path.commonpath([place.parent for place in places]))
    runs = [
        ArchivedRun(
            place.relative_to(above).as_posix(), run.config, run.summary, run.metrics, run.env
        )
        for place, run in zip(places, records, strict=True)
    ]
    write_archive(out, runs, with_lists(dataclasses.asdict(layout)))
