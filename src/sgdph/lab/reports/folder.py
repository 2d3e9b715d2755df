"""The files that every report of the laboratory has, and the list of all files in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sgdph.lab.files import write_text
from sgdph.lab.reports.page import Block, Section, to_html, to_markdown
from sgdph.lab.reports.table import Column, Table

PAGE, TEXT, TABLE = "report.html", "report.md", "table.csv"
PAGE_FILES = (PAGE, TEXT, TABLE)


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
) -> None:
    """Write a report: the page as HTML and as Markdown, and the table for programs.

    Args:
        directory: Where they go. The pictures on the page lie there already.
        page: What the report says.
        table: The figures in full.
        holds: The directory's other files, by name or glob, and what each holds. One that is not
            there is not listed.
        coming: Files that will be written right after, and are listed too.
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


def _is_there(directory: Path, pattern: str, written: set[str]) -> bool:
    return pattern in written or any(directory.glob(pattern))
