"""Checks that the folder of every reporting command must pass."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

from sgdph.lab.reports.folder import PAGE, PAGE_FILES, TEXT


class Assets(HTMLParser):
    """Collects everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "iframe", "object", "embed"}, tag
        names = {"src", "srcset", "poster"} | ({"href"} if tag != "a" else set())
        self.loads += [value or "" for name, value in attributes if name in names]


def listed_files(text: str) -> list[str]:
    """Return the names and globs of a Markdown page's list of files."""
    _, _, section = text.partition("\n## Files\n")
    rows = re.findall(r"^\| (\S+) \| \S.* \|$", section, re.MULTILINE)
    assert rows[:1] == ["file"]
    return [name.replace("\\", "") for name in rows[1:] if name != "---"]


def check_folder(directory: Path) -> None:
    """Fail if a report's folder does not have the common format."""
    for name in PAGE_FILES:
        assert (directory / name).stat().st_size, name
    page, text = ((directory / name).read_text(encoding="utf-8") for name in (PAGE, TEXT))
    assets = Assets()
    assets.feed(page)
    assert all(each.startswith("data:image/png;base64,") for each in assets.loads), assets.loads
    assert not re.search(r"url\(|@import", page)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    # A table that is wider than the screen scrolls on its own.
    assert page.count("<table") == page.count('<div class="scroll"><table')
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text):
        assert (directory / picture).is_file(), picture
    listed = listed_files(text)
    for file in directory.iterdir():
        assert any(fnmatch(file.name, each) for each in listed), file.name
    for each in listed:
        assert any(directory.glob(each)), each
        assert f">{each}</th>" in page, each
    for wording in (text, page):
        assert "± –" not in wording
        assert not re.search(r"\b1 (seeds|rounds|threads|epochs|visits|batches)\b", wording)
