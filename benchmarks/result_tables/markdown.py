"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "results"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Render a table; the first ``texts`` columns are aligned left, the others right."""
    lines = [headings, ["---"] * texts + ["---:"] * (len(headings) - texts), *rows]
    assert all(len(line) == len(headings) for line in lines), lines
    written = [
        "|".join(["", *(f" {cell} " if cell else " " for cell in line), ""]) for line in lines
    ]
    written[1] = written[1].replace(" ", "")
    return "".join(f"{line}\n" for line in written)
