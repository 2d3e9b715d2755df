"""A table of values, and its output formats: terminal, Markdown, LaTeX and CSV."""

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

# Marks the best mean and those that do not differ significantly from it.
LEVEL = "†"
# With more columns than this, a table on the terminal has no vertical lines and cuts long texts.
WIDE = 10
NAME_WIDTH = 28
# In LaTeX, row names are wrapped at this many characters.
LATEX_LINE = 36
LATEX_HEAD = (
    "% Made by sgdph report; needs \\usepackage{booktabs}, \\usepackage{graphicx} and\n"
    "% \\usepackage[T1]{fontenc}.\n"
)
# Shrinks a table if it is wider than the page.
LATEX_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


@dataclass(frozen=True)
class Cell:
    """A text with its marks, note and link.

    Attributes:
        text: The text.
        bold: Whether it is the best of its column and differs significantly from all others.
        level: Whether it is the best, or does not differ significantly from the best. Only used if
            there is at least one that does not differ from the best.
        note: A note, such as how many of its runs diverged.
        link: Target of the link, as a URL; empty for no link.
    """

    text: str
    bold: bool = False
    level: bool = False
    note: str = ""
    link: str = ""

    def __str__(self) -> str:
        """Return text, mark and note, separated by spaces."""
        return " ".join(filter(None, (self.text, LEVEL if self.level else "", self.note)))


@dataclass(frozen=True)
class Column:
    """The heading of a column, and the format of its values.

    Attributes:
        heading: The heading, or several levels of it, the broadest term first: ``("CIFAR-10",
            "VGG11")``.
        align: Alignment of the values: right for numbers, left for text.
        form: Format of a value for display: a format specification (``".2f"``) or a function.
    """

    heading: str | tuple[str, ...]
    align: Literal["left", "right"] = "right"
    form: str | Callable[[Any], str] = ""

    @property
    def terms(self) -> tuple[str, ...]:
        """The levels of the heading, the broadest term first."""
        return (self.heading,) if isinstance(self.heading, str) else self.heading

    @property
    def title(self) -> str:
        """The levels of the heading, joined with commas."""
        return ", ".join(self.terms)

    def cell(self, value: Any) -> Cell:
        """Format a value for display; ``None`` becomes a dash."""
        if isinstance(value, Cell):
            return value
        if value is None:
            return Cell(NOTHING)
        return Cell(self.form(value) if callable(self.form) else format(value, self.form))


@dataclass(frozen=True)
class Table:
    """Values in rows and columns.

    Attributes:
        columns: The columns. The first one names the rows.
        rows: For each row, one value per column: a :class:`Cell`, a text, a number, or ``None`` for
            a missing value.
        caption: What the table shows.
        name: Short identifier, used for the label in LaTeX.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""
    name: str = ""

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]]) -> Table:
        """Make a table from mappings, with a column for every name that occurs in them."""
        names = list(dict.fromkeys(name for record in records for name in record))
        rows = tuple(tuple(record.get(name) for name in names) for record in records)
        return cls(tuple(map(Column, names)), rows)

    @property
    def headings(self) -> list[str]:
        """Each column's heading as one text."""
        return [column.title for column in self.columns]

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, formatted for display."""
        return [
            [column.cell(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    @property
    def levels(self) -> list[list[tuple[str, int]]]:
        """The heading lines from top to bottom: each text with the number of columns it spans."""
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
                # Numbers are never cut.
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
        """Render the table as Markdown."""
        sides = {"left": "---", "right": "---:"}
        lines = [
            [markdown_text(heading) for heading in self.headings],
            [sides[column.align] for column in self.columns],
            *([_markdown_cell(cell) for cell in row] for row in self.cells),
        ]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def csv(self) -> str:
        """Render the table as CSV: values in full precision, missing values empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows(
            [["" if value is None else exact(value) for value in row] for row in self.rows]
        )
        return stream.getvalue()

    def latex(self) -> str:
        """Render the table as a LaTeX float with the rules of booktabs."""
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
    """Render tables as a LaTeX file, with the notes as comments before them."""
    comments = "".join(f"% {line}\n" for note in notes for line in note.splitlines())
    return LATEX_HEAD + comments + "".join(f"\n{table.latex()}" for table in tables)


def _latex_headings(levels: Sequence[Sequence[tuple[str, int]]]) -> list[str]:
    """Render the heading lines, with a rule below each term that spans several columns."""
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
    """Render a row's name; a long name is wrapped."""
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
