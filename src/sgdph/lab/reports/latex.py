"""Tables for LaTeX, with booktabs' rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sgdph.lab.table import LEVEL, Cell, TextTable

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
# Beyond this many columns a table is set smaller.
MANY = 5
HEAD = "% Made by sgdph report; needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}.\n"


def to_latex(tables: Sequence[TextTable], notes: Sequence[str]) -> str:
    """Write tables as LaTeX, each a float of its own, and the notes as comments before them."""
    comments = "".join(f"% {line}\n" for note in notes for line in note.splitlines())
    return HEAD + comments + "".join(f"\n{_table(table)}" for table in tables)


def latex_text(text: str) -> str:
    """Escape what LaTeX would take for its own."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _table(table: TextTable) -> str:
    size = "\\footnotesize" if len(table.columns) > MANY else "\\small"
    label = re.sub(r"[^a-z0-9-]", "-", table.name)
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex_text(table.caption)}.}}",
        f"\\label{{tab:{label}}}",
        size,
        f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        "\\toprule",
        *_headings(table),
        "\\midrule",
        *(_row([latex_text(name), *map(_cell, cells)]) for name, cells in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


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
    mark = latex_text(LEVEL) if cell.level else ""
    return text + mark + (f" {latex_text(cell.note)}" if cell.note else "")


def _row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"
