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
    """Return the marks that identify the files of a command's report.

    Args:
        generator: The command.
        heading: Beginning of the Markdown file; ``None`` if it has no fixed beginning.
        header: Beginning of the CSV table.

    Returns:
        Maps file names to marks.
    """
    return {PAGE: generator_mark(generator), TEXT: heading, TABLE: header}


def generator_mark(generator: str) -> str:
    """Return the mark of a command's HTML pages."""
    return f'content="{generator}"'


def check_pages(directory: Path, marks: Mapping[str, str | None], writer: str) -> None:
    """Raise LabError if a report would replace files that are not a report of the same kind.

    Args:
        directory: Where the report goes.
        marks: Maps file names to marks, as returned by :func:`page_marks`.
        writer: The command that writes such files, for the error message.
    """
    foreign = foreign_files(directory, marks)
    if foreign:
        raise LabError(
            f"{directory} already contains {', '.join(foreign)}, which {writer} did not write; "
            "name another --out"
        )


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        title: Title of the page.
        blocks: Content of the page. The list of files is added when it is written.
        generator: The command that writes the page.
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
    """Write a report: the page as HTML and as Markdown, and the machine-readable table.

    Args:
        directory: Directory for the files. The pictures on the page must already be there.
        page: The content of the report.
        table: The values in full precision.
        holds: Maps other files, by name or glob, to a description. Those that exist are listed.
        coming: Files that the caller writes right afterwards. They are listed too.
        former: Maps files that earlier versions wrote in place of these to their marks. A file
            with its mark is deleted.
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
