"""Tables for LaTeX, with booktabs' rules."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from sgdph.lab.reports.table import LEVEL, Cell, TextTable

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # After the end of a row these would be its arguments.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
    "τ": r"$\tau$",
    "β": r"$\beta$",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
    LEVEL: r"$^\dagger$",
    "\n": " ",
}
# A row's name is broken into lines of this many characters.
LINE = 36
HEAD = (
    "% Made by sgdph report; needs \\usepackage{booktabs}, \\usepackage{graphicx} and\n"
    "% \\usepackage[T1]{fontenc}.\n"
)
# A table wider than the page is made smaller, no other.
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def to_latex(tables: Sequence[TextTable], notes: Sequence[str]) -> str:
    """Write tables as LaTeX, each a float of its own, and the notes as comments before them."""
    comments = "".join(f"% {line}\n" for note in notes for line in note.splitlines())
    return HEAD + comments + "".join(f"\n{_table(table)}" for table in tables)


def latex_text(text: str) -> str:
    """Escape what LaTeX would take for its own."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _table(table: TextTable) -> str:
    label = re.sub(r"[^a-z0-9-]", "-", table.name)
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex_text(table.caption)}.}}",
        f"\\label{{tab:{label}}}",
        "\\small",
        FIT,
        f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        "\\toprule",
        *_headings(table),
        "\\midrule",
        *(_row([_name(name), *map(_cell, cells)]) for name, cells in table.rows),
        "\\bottomrule",
        "\\end{tabular}}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _name(text: str) -> str:
    """Write a row's name, a long one in several lines."""
    lines = [latex_text(line) for line in textwrap.wrap(text, LINE)]
    if len(lines) < 2:
        return "".join(lines)
    return r"\begin{tabular}[t]{@{}l@{}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _headings(table: TextTable) -> list[str]:
    """Write the heading lines; a term over several columns has a rule under it."""
    lines = []
    levels = table.levels
    for depth, level in enumerate(levels, 1):
        corner = table.corner if depth == len(levels) else ""
        texts, rules, column = [latex_text(corner)], "", 2
        for text, span in level:
            shown = latex_text(text)
            texts.append(shown if span == 1 else f"\\multicolumn{{{span}}}{{c}}{{{shown}}}")
            if span > 1:
                rules += f"\\cmidrule(lr){{{column}-{column + span - 1}}}"
            column += span
        lines.append(_row(texts))
        lines += [rules] if rules else []
    return lines


def _cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    text = f"\\textbf{{{text}}}" if cell.bold else text
    text += latex_text(LEVEL) if cell.level else ""
    if not cell.note:
        return text
    note = rf"{{\scriptsize {latex_text(cell.note)}}}"
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{text} \\ {note}\end{{tabular}}"


def _row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"
