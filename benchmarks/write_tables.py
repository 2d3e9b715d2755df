"""Write the tables of results into README, docs and results, between their marks.

    python benchmarks/write_tables.py            # make tables
    python benchmarks/write_tables.py --check    # say which are stale, and write nothing

On a page, a table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
``benchmarks/result_tables/`` makes the tables from the files in ``results``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from result_tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def pages(root: Path) -> list[Path]:
    """List the pages that may contain tables."""
    found = [*(root / "docs").rglob("*.md"), *(root / "results").rglob("*.md")]
    return [root / "README.md", *sorted(found)]


def filled(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return a page's text with its tables recreated.

    Raises:
        KeyError: If the page names a table that does not exist.
        ValueError: If the numbers of start and end marks differ.
    """
    if text.count("<!-- table:") != text.count("<!-- end of table -->"):
        raise ValueError("each '<!-- table: NAME -->' needs its '<!-- end of table -->'")
    return MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]()}\n{found[4]}", text)


def stale(root: Path, tables: Mapping[str, Callable[[], str]]) -> dict[Path, str]:
    """Return the pages whose tables do not match the results, each with its new text."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages(root)}
    new = {page: filled(text, tables) for page, text in texts.items()}
    return {page: text for page, text in new.items() if text != texts[page]}


def main() -> int:
    """Write the stale tables, or with ``--check`` only list their pages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if stale")
    given = parser.parse_args()
    found = stale(ROOT, TABLES)
    for page, text in found.items():
        print(f"{page.relative_to(ROOT)}: {'stale' if given.check else 'written'}")
        if not given.check:
            page.write_text(text, encoding="utf-8")
    return int(given.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
