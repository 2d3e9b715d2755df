"""A table of texts, and its forms for the terminal and for a markdown page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

# Beside the best mean and those that a test does not tell from it.
LEVEL = "†"


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        text: What it says.
        bold: Whether it is the best of its column, told from every other entry.
        level: Whether it is the best or not told from the best, where there is more than one such.
        note: What must be known of it, like how many of its runs diverged.
    """

    text: str
    bold: bool = False
    level: bool = False
    note: str = ""

    @property
    def plain(self) -> str:
        """Text, mark and note."""
        return " ".join(filter(None, (self.text, LEVEL if self.level else "", self.note)))


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
        name: One word for it.
        caption: What it shows.
        corner: What its rows are.
        columns: Per column its heading, the widest term first: ``("CIFAR-10", "ResNet18")``.
        rows: Per row its name and its cells.
    """

    name: str
    caption: str
    corner: str
    columns: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @property
    def headings(self) -> list[str]:
        """Each column's heading in one piece."""
        return [", ".join(parts) for parts in self.columns]

    @property
    def levels(self) -> list[list[tuple[str, int]]]:
        """The headings line by line: each text with the number of columns that it stands over."""
        if not self.columns:
            return []
        lines = []
        depth = len(self.columns[0])
        for level in range(depth):
            line: list[tuple[str, int]] = []
            for j, parts in enumerate(self.columns):
                same = j > 0 and parts[: level + 1] == self.columns[j - 1][: level + 1]
                if same and level < depth - 1:
                    line[-1] = (parts[level], line[-1][1] + 1)
                else:
                    line.append((parts[level], 1))
            lines.append(line)
        return lines


def to_rich(shown: TextTable) -> Table:
    """Make a table for the terminal."""
    table = Table(title=escape(shown.caption), title_justify="left")
    table.add_column(escape(shown.corner), justify="left", overflow="fold")
    for heading in shown.headings:
        table.add_column(escape(heading), justify="right")
    for name, cells in shown.rows:
        texts = (escape(cell.plain) for cell in cells)
        table.add_row(
            escape(name),
            *(
                f"[bold]{text}[/bold]" if cell.bold else text
                for cell, text in zip(cells, texts, strict=True)
            ),
        )
    return table


def to_markdown(table: TextTable) -> str:
    """Make a table for a markdown page."""
    lines = [
        [markdown_text(text) for text in (table.corner, *table.headings)],
        ["---", *("---:" for _ in table.columns)],
        *([markdown_text(name), *map(_markdown_cell, cells)] for name, cells in table.rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    marked = f"**{text}**" if cell.bold else text
    return marked + markdown_text(cell.plain.removeprefix(cell.text))


def markdown_text(text: str) -> str:
    """Escape what markdown would take for its own."""
    return re.sub(r"([\\`*|<\[\]])", r"\\\1", text.replace("\n", " "))
