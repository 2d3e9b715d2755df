"""The files that every report of the laboratory has, and the list of all files in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sgdph.lab.errors import LabError
from sgdph.lab.files import foreign_files, remove_marked, write_text
from sgdph.lab.reports.page import Block, Section, to_html, to_markdown
from sgdph.lab.reports.table import Column, Table

PAGE, TEXT, TABLE = "report.html", "report.md", "table.csv"
PAGE_FILES = (PAGE, TEXT, TABLE)


def page_marks(generator: str, heading: str | None, header: str) -> dict[str, str | None]:
    """Return the marks by which a command's report is told from a stranger's files.

    Args:
        generator: The command.
        heading: How its text begins; ``None`` if that is free.
        header: How its table begins.
    """
    return {PAGE: generator_mark(generator), TEXT: heading, TABLE: header}


def generator_mark(generator: str) -> str:
    """Return the mark of a command's HTML pages."""
    return f'content="{generator}"'


def check_pages(directory: Path, marks: Mapping[str, str | None], writer: str) -> None:
    """Raise LabError if a report would replace files that are not a report of the same kind.

    Args:
        directory: Where the report goes.
        marks: Name to mark, as :func:`page_marks` returns them.
        writer: What would have written them.
    """
    foreign = foreign_files(directory, marks)
    if foreign:
        raise LabError(
            f"{directory} already contains {', '.join(foreign)}, which {writer} did not write; "
            "name another --out"
        )


@dataclass(frozen=True)
class Page:
    """What a report says.

    Attributes:
        title: What stands above it.
        blocks: What stands on it; the list of files is added.
        generator: The command that writes it.
    """

    title: str
    blocks: tuple[Block, ...]
    generator: str


def write_folder(
    directory: Path,
    page: Page,
    table: Table,
    holds: Mapping[str, str],
    coming: tuple[str, ...] = (),
    former: Mapping[str, str] | None = None,
) -> None:
    """Write a report: the page as HTML and as Markdown, and the table for programs.

    Args:
        directory: Where they go. The pictures on the page lie there already.
        page: What the report says.
        table: The figures in full.
        holds: The directory's other files, by name or glob, and what each holds. One that is not
            there is not listed.
        coming: Files that will be written right after, and are listed too.
        former: What earlier versions wrote in place of these files, name to mark; it is deleted
            where it bears the mark.
    """
    known = {
        PAGE: "this report as one page; it loads nothing, and can be sent as it is",
        TEXT: "this report as text, with the pictures beside it",
        TABLE: "the figures in full, for programs",
        **holds,
    }
    written = {*PAGE_FILES, *coming}
    found = [(each, text) for each, text in known.items() if _is_there(directory, each, written)]
    columns = (Column("file", "left"), Column("holds", "left"))
    blocks = [*page.blocks, Section("Files", [Table(columns, tuple(found))])]
    write_text(directory / TABLE, table.csv())
    write_text(directory / TEXT, to_markdown(page.title, blocks))
    write_text(directory / PAGE, to_html(page.title, blocks, page.generator))
    remove_marked(directory, former or {})


def _is_there(directory: Path, pattern: str, written: set[str]) -> bool:
    return pattern in written or any(directory.glob(pattern))
