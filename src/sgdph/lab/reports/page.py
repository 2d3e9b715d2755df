"""A report's pages: markdown, and HTML with everything inside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.pictures import Picture
from sgdph.lab.reports.plots import embedded
from sgdph.lab.reports.table import TextTable, markdown_text, to_markdown
from sgdph.lab.reports.template import render
from sgdph.lab.reports.words import describe_machines, describe_settings
from sgdph.lab.run.records import Runs

TEMPLATE = Path(__file__).parent / "page.html.jinja"


@dataclass(frozen=True)
class Section:
    """What is reported of the runs that were evaluated on one kind of images."""

    grid: Grid
    task: str
    tables: tuple[TextTable, ...]
    verdicts: tuple[str, ...]
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]

    @property
    def heading(self) -> str:
        """What the runs were evaluated on."""
        return {
            "test": "Evaluated on the test images",
            "validation": "Evaluated on held-out training images (validation)",
        }[self.grid.evaluated]


@dataclass(frozen=True)
class RunLine:
    """One run in the list of them.

    Attributes:
        name: Its directory, seen from the report's.
        link: The same as an address; empty where the run was archived, and has no directory.
        cells: Seed, status, final accuracy, best one with its epoch.
    """

    name: str
    link: str
    cells: tuple[str, ...]


RUN_HEADINGS = ("seed", "status", "final accuracy, %", "best (epoch)")


def run_lines(grid: Grid, out: Path) -> list[RunLine]:
    """List a grid's runs by their directories."""
    lines = []
    runs = [run for group in grid.groups for run in group.runs]
    for run in sorted(runs, key=lambda each: each.path):
        final, best = run.figure("final"), run.figure("best")
        name = Path(os.path.relpath(run.path, out)).as_posix()
        cells = (
            str(run.config.seed),
            run.status,
            "–" if final is None else f"{final * 100:.2f}",
            "–" if best is None else f"{best * 100:.2f} ({run.summary.get('best_epoch', '–')})",
        )
        link = quote(os.fsencode(name)) + "/" if run.path.is_dir() else ""
        lines.append(RunLine(name, link, cells))
    return lines


def problems(runs: Runs, out: Path) -> list[str]:
    """Say what was left out, and why."""

    def seen(path: Path) -> str:
        return Path(os.path.relpath(path, out)).as_posix()

    return [
        *(f"Unreadable, left out: {seen(each.path)}: {each.reason}" for each in runs.unreadable),
        *(
            f"The same configuration and seed as {seen(kept.path)}, left out: {seen(run.path)}"
            for run, kept in runs.duplicates
        ),
    ]


def to_markdown_page(title: str, sections: Sequence[Section], runs: Runs, out: Path) -> str:
    """Write the markdown page."""
    parts = [f"# {markdown_text(title)}"]
    for section in sections:
        if len(sections) > 1 or section.grid.evaluated != "test":
            parts.append(f"## {section.heading}")
        parts.append(f"{section.task}.")
        first, *others = section.tables
        parts += [_titled(first), _bullets(section.verdicts)]
        parts += map(_titled, others)
        parts.append(_bullets(section.notes))
        for picture in section.pictures:
            parts.append(f"![{picture.title}]({picture.path.name})")
            parts.append(f"{picture.title}. {picture.meaning}")
    left_out = problems(runs, out)
    if left_out:
        parts += ["## Left out", _bullets(left_out)]
    parts.append("## Settings")
    for section in sections:
        lines = [f"{name}: {text}" for name, text in describe_settings(section.grid)]
        parts.append(_bullets(lines))
    parts.append("## Runs")
    parts += [_run_table(section.grid, out) for section in sections]
    machines, commands = describe_machines(runs.records)
    parts += ["## Machine", _bullets(machines)]
    parts += ["\n".join(f"* `{command}`" for command in commands)] if commands else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _titled(table: TextTable) -> str:
    return f"{markdown_text(table.caption)}:\n\n{to_markdown(table)}".rstrip()


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {markdown_text(line)}" for line in lines)


def _run_table(grid: Grid, out: Path) -> str:
    head = [f"| run | {' | '.join(RUN_HEADINGS)} |", "|---|---:|---|---:|---:|"]
    head[0] = head[0].replace("final accuracy", f"final {grid.evaluated} accuracy")
    return "\n".join(
        head + [f"| {_linked(line)} | {' | '.join(line.cells)} |" for line in run_lines(grid, out)]
    )


def _linked(line: RunLine) -> str:
    name = markdown_text(line.name)
    return f"[{name}]({line.link})" if line.link else name


def to_html_page(title: str, sections: Sequence[Section], runs: Runs, out: Path) -> str:
    """Write the HTML page; nothing in it is fetched from elsewhere."""
    machines, commands = describe_machines(runs.records)
    return render(
        TEMPLATE,
        title=title,
        sections=sections,
        problems=problems(runs, out),
        settings=describe_settings,
        run_headings=RUN_HEADINGS,
        runs=lambda grid: run_lines(grid, out),
        embedded=embedded,
        machines=machines,
        commands=commands,
    )
