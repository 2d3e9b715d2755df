"""A table of values, and its forms: for the terminal, Markdown, LaTeX and programs (CSV)."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from sgdph.lab.reports.escapes import latex_text, markdown_text
from sgdph.lab.reports.numbers import NOTHING, exact

# Beside the best mean and those that do not differ significantly from it.
LEVEL = "†"
# From this number of columns a terminal's table has no lines between them, and cuts long names.
WIDE = 10
NAME_WIDTH = 28
# A name in LaTeX is broken into lines of this many characters.
LATEX_LINE = 36
LATEX_HEAD = (
    "% Made by sgdph report; needs \\usepackage{booktabs}, \\usepackage{graphicx} and\n"
    "% \\usepackage[T1]{fontenc}.\n"
)
# A table wider than the page is made smaller, no other.
LATEX_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


@dataclass(frozen=True)
class Cell:
    """A text with what must be known of it.

    Attributes:
        text: What it says.
        bold: Whether it is the best of its column, and differs significantly from all others.
        level: Whether it is the best or does not differ significantly from it, where there is more
            than one such.
        note: What must be known of it, like how many of its runs diverged.
        link: Where it leads, as an address.
    """

    text: str
    bold: bool = False
    level: bool = False
    note: str = ""
    link: str = ""

    def __str__(self) -> str:
        """Write text, mark and note."""
        return " ".join(filter(None, (self.text, LEVEL if self.level else "", self.note)))


@dataclass(frozen=True)
class Column:
    """What stands above the values of a column, and how they are written.

    Attributes:
        heading: The heading, or several of them, the widest term first: ``("CIFAR-10", "VGG11")``.
        align: The side that values stand at; figures stand right, words left.
        form: How a value is written for people: as ``format`` has it (``".2f"``), or a function.
    """

    heading: str | tuple[str, ...]
    align: Literal["left", "right"] = "right"
    form: str | Callable[[Any], str] = ""

    @property
    def terms(self) -> tuple[str, ...]:
        """The headings, the widest term first."""
        return (self.heading,) if isinstance(self.heading, str) else self.heading

    @property
    def title(self) -> str:
        """The headings in one piece."""
        return ", ".join(self.terms)

    def cell(self, value: Any) -> Cell:
        """Write a value for people; ``None`` becomes a dash."""
        if isinstance(value, Cell):
            return value
        if value is None:
            return Cell(NOTHING)
        return Cell(self.form(value) if callable(self.form) else format(value, self.form))


@dataclass(frozen=True)
class Table:
    """Values in rows and columns.

    Attributes:
        columns: The columns; the first one names the rows.
        rows: Per row a value for each column: a :class:`Cell`, a text, a number, or ``None`` where
            there is none.
        caption: What it shows.
        name: One word for it.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""
    name: str = ""

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]]) -> Table:
        """Make a table of mappings: a column for every name that any of them has."""
        names = list(dict.fromkeys(name for record in records for name in record))
        rows = tuple(tuple(record.get(name) for name in names) for record in records)
        return cls(tuple(map(Column, names)), rows)

    @property
    def headings(self) -> list[str]:
        """Each column's heading in one piece."""
        return [column.title for column in self.columns]

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, written for people."""
        return [
            [column.cell(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    @property
    def levels(self) -> list[list[tuple[str, int]]]:
        """The headings line by line: each text with the number of columns that it stands over."""
        depth = max((len(column.terms) for column in self.columns), default=0)
        padded = [("",) * (depth - len(each.terms)) + each.terms for each in self.columns]
        lines = []
        for level in range(depth):
            line: list[tuple[str, int]] = []
            for j, terms in enumerate(padded):
                same = j > 0 and terms[: level + 1] == padded[j - 1][: level + 1]
                if same and terms[level] and level < depth - 1:
                    line[-1] = (terms[level], line[-1][1] + 1)
                else:
                    line.append((terms[level], 1))
            lines.append(line)
        return lines

    def rich(self) -> RichTable:
        """Make the table for a terminal."""
        wide = len(self.columns) > WIDE
        style: dict[str, Any] = {"box": box.SIMPLE, "padding": (0, 1, 0, 0)} if wide else {}
        table = RichTable(title=escape(self.caption), title_justify="left", **style)
        for j, column in enumerate(self.columns):
            options: dict[str, Any] = {"overflow": "fold"} if j == 0 else {}
            if column.align == "right":
                # A figure is never cut.
                texts = [column.title, *(str(row[j]) for row in self.cells)]
                options = {
                    "min_width": max(
                        (len(word) for text in texts for word in text.split()), default=1
                    )
                }
            elif wide:
                options = {"no_wrap": True, "max_width": NAME_WIDTH}
            table.add_column(escape(column.title), justify=column.align, **options)
        for row in self.cells:
            texts = [escape(str(cell)) for cell in row]
            table.add_row(
                *(f"[bold]{t}[/bold]" if c.bold else t for c, t in zip(row, texts, strict=True))
            )
        return table

    def markdown(self) -> str:
        """Write the table for a Markdown page."""
        sides = {"left": "---", "right": "---:"}
        lines = [
            [markdown_text(heading) for heading in self.headings],
            [sides[column.align] for column in self.columns],
            *([_markdown_cell(cell) for cell in row] for row in self.cells),
        ]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def csv(self) -> str:
        """Write the table for programs: figures in full, empty where there is none."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows(
            [["" if value is None else exact(value) for value in row] for row in self.rows]
        )
        return stream.getvalue()

    def latex(self) -> str:
        """Write the table as a LaTeX float with booktabs' rules."""
        label = re.sub(r"[^a-z0-9-]", "-", self.name)
        sides = "".join(column.align[0] for column in self.columns)
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{latex_text(self.caption)}.}}",
            f"\\label{{tab:{label}}}",
            "\\small",
            LATEX_FIT,
            f"\\begin{{tabular}}{{{sides}}}",
            "\\toprule",
            *_latex_headings(self.levels),
            "\\midrule",
            *(_latex_row([_latex_name(n.text), *map(_latex_cell, row)]) for n, *row in self.cells),
            "\\bottomrule",
            "\\end{tabular}}",
            "\\end{table}",
        ]
        return "\n".join(lines) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    text = f"[{text}]({cell.link})" if cell.link else text
    marked = f"**{text}**" if cell.bold else text
    return marked + markdown_text(str(cell).removeprefix(cell.text))


def latex_file(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Write a file of tables, the notes as comments before them."""
    comments = "".join(f"% {line}\n" for note in notes for line in note.splitlines())
    return LATEX_HEAD + comments + "".join(f"\n{table.latex()}" for table in tables)


def _latex_headings(levels: Sequence[Sequence[tuple[str, int]]]) -> list[str]:
    """Write the heading lines; a term over several columns has a rule under it."""
    lines = []
    for level in levels:
        texts, rules, column = [], "", 1
        for text, span in level:
            shown = latex_text(text)
            texts.append(shown if span == 1 else f"\\multicolumn{{{span}}}{{c}}{{{shown}}}")
            if span > 1:
                rules += f"\\cmidrule(lr){{{column}-{column + span - 1}}}"
            column += span
        lines.append(_latex_row(texts))
        lines += [rules] if rules else []
    return lines


def _latex_name(text: str) -> str:
    """Write a row's name, a long one in several lines."""
    lines = [latex_text(line) for line in textwrap.wrap(text, LATEX_LINE)]
    if len(lines) < 2:
        return "".join(lines)
    return r"\begin{tabular}[t]{@{}l@{}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    text = f"\\textbf{{{text}}}" if cell.bold else text
    text += latex_text(LEVEL) if cell.level else ""
    if not cell.note:
        return text
    note = rf"{{\scriptsize {latex_text(cell.note)}}}"
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{text} \\ {note}\end{{tabular}}"


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"
