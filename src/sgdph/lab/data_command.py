"""The command ``sgdph data``: which data sets are there or missing, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sgdph.lab.data.image_reader import pick_workers
from sgdph.lab.data.loading import source_of
from sgdph.lab.data.registry import DATASETS
from sgdph.lab.errors import INTERRUPTED, NOT_WELL, OK, LabError
from sgdph.lab.options.data import DataOptions
from sgdph.lab.progress import say


@dataclass(frozen=True)
class Finding:
    """The result of looking for a set.

    Attributes:
        state: ``there``, ``checked``, ``missing`` or ``damaged``.
        detail: What was found, or what is wrong.
    """

    state: str
    detail: str = ""

    @property
    def well(self) -> bool:
        """Whether the set can be trained on, as far as it was checked."""
        return self.state in ("there", "checked")


def data(options: DataOptions, console: Console) -> int:
    """List the sets, after the requested downloads and checks.

    Returns:
        The exit code: 1 if the named set is missing or any set is damaged, 130 when interrupted,
        else 0.

    Raises:
        LabError: If the options are invalid, or a download fails.
    """
    names: list[str] = [options.dataset] if options.dataset else list(DATASETS)
    if options.download:
        download(names, options)
    workers = pick_workers(options.data_workers)
    findings: dict[str, Finding] = {}
    try:
        for name in names:
            findings[name] = look(name, options, workers)
    except KeyboardInterrupt:
        say(console, "Interrupted; data sets that were not checked yet are left out.")
        console.print(table(findings))
        return INTERRUPTED
    console.print(table(findings))
    for name, finding in findings.items():
        if finding.detail:
            say(console, f"{name}: {finding.state}: {finding.detail}")
    if options.data_dir is None and options.dataset is None:
        say(console, "Data sets in files were not looked for, because --data-dir was not given.")
    damaged = any(finding.state == "damaged" for finding in findings.values())
    named_missing = options.dataset is not None and not findings[options.dataset].well
    return NOT_WELL if damaged or named_missing else OK


def look(name: str, options: DataOptions, workers: int) -> Finding:
    """Look for a set, and read all of it if ``--check`` was given."""
    source = source_of(name)
    missing = source.missing(options.data_dir)
    if missing is not None:
        return Finding("missing", missing)
    if not options.check:
        return Finding("there")
    try:
        return Finding("checked", source.check(options.data_dir, workers))
    except LabError as error:
        return Finding("damaged", str(error))


def download(names: list[str], options: DataOptions) -> None:
    """Download the missing sets that torchvision can download.

    Raises:
        LabError: If ``--data-dir`` is not given, torchvision cannot download the named set, or a
            download fails.
    """
    if options.data_dir is None:
        raise LabError("--download needs --data-dir DIR, the directory to put the files into")
    fetched = [name for name in names if DATASETS[name].can_download]
    if not fetched:
        raise LabError(
            f"--download: torchvision cannot fetch {options.dataset} "
            f"({DATASETS[names[0]].origin}); it can fetch "
            f"{', '.join(name for name, entry in DATASETS.items() if entry.can_download)}"
        )
    for name in fetched:
        source = source_of(name)
        if source.missing(options.data_dir) is not None:
            source.download(options.data_dir)


def table(findings: dict[str, Finding]) -> Table:
    """Make the table of the sets and their states."""
    rows = Table("set", "train + test", "classes")
    # Fold addresses, because a truncated one is useless.
    rows.add_column("from", overflow="fold")
    rows.add_column("terms")
    rows.add_column("state", no_wrap=True)
    for name, finding in findings.items():
        entry = DATASETS[name]
        style = "green" if finding.well else "red" if finding.state == "damaged" else "yellow"
        rows.add_row(
            name,
            entry.contents,
            str(entry.classes),
            entry.origin,
            entry.terms,
            f"[{style}]{finding.state}[/]",
        )
    return rows
