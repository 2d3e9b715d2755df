"""Escaping of characters that are special in Markdown and LaTeX."""

from __future__ import annotations

import re

_LATEX = {
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
    # After the end of a row, LaTeX would read these as arguments of ``\\``.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
    "τ": r"$\tau$",
    "β": r"$\beta$",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
    "†": r"$^\dagger$",
    "\n": " ",
}


def markdown_text(text: str) -> str:
    """Escape the special characters of Markdown."""
    return re.sub(r"([\\`*|<\[\]])", r"\\\1", text.replace("\n", " "))


def latex_text(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)
