"""Texts in other languages: what Markdown and LaTeX would take for their own is escaped."""

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
    "†": r"$^\dagger$",
    "\n": " ",
}


def markdown_text(text: str) -> str:
    """Escape what Markdown would take for its own."""
    return re.sub(r"([\\`*|<\[\]])", r"\\\1", text.replace("\n", " "))


def latex_text(text: str) -> str:
    """Escape what LaTeX would take for its own."""
    return "".join(_LATEX.get(character, character) for character in text)
