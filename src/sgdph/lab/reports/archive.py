"""An archive of a report's runs: two files that replace the run directories."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from sgdph.lab.config.yaml import to_yaml, with_lists
from sgdph.lab.errors import LabError
from sgdph.lab.reports.layout import Layout
from sgdph.lab.reports.report import Report
from sgdph.lab.run.archive import EPOCHS, RUNS, ArchivedRun, read_archive, write_archive
from sgdph.lab.run.records import RunRecord, find_runs, read_runs


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


def check_earlier_archive(paths: Sequence[Path], out: Path) -> None:
    """Raise LabError if an archive in ``out`` does not hold exactly the runs that are reported.

    A report without ``--archive`` would leave it there, and the report's list of files would name
    it as the runs. An archive that is itself reported may stay.
    """
    names = [name for name in (EPOCHS, RUNS) if (out / name).is_file()]
    alone = {path.resolve() for path in paths} == {out.resolve()}
    if names and not alone and not _holds(out, read_runs(paths).records):
        raise LabError(
            f"{out} holds an archive of other runs ({', '.join(names)}), which would seem to be "
            "this report's; name another --out, or replace it by these runs with --archive"
        )


def _holds(directory: Path, records: Sequence[RunRecord]) -> bool:
    """Return whether a directory's archive can be read, and holds exactly these runs."""

    def content(run: RunRecord | ArchivedRun) -> str:
        return json.dumps([to_yaml(run.config), run.summary, run.metrics, run.env], sort_keys=True)

    try:
        archived = read_archive(directory)
    except LabError:
        return False
    return sorted(map(content, archived)) == sorted(map(content, records))


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
