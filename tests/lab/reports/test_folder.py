"""The format of every report's folder. A folder that breaks it fails the check."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lab.folders import check_folder
from sgdph.lab.reports.folder import PAGE, TABLE, TEXT, Page, write_folder
from sgdph.lab.reports.page import Block, Picture
from sgdph.lab.reports.table import Column
from sgdph.lab.reports.table import Table as Figures

FIGURES = Figures((Column("a"), Column("b")), ((1, 2.5),))


def write(directory: Path) -> None:
    (directory / "a.png").write_bytes(b"\x89PNG")
    (directory / "run-seed0").mkdir()
    blocks: tuple[Block, ...] = ("Of 1 seed.", FIGURES, Picture(directory / "a.png", "A picture"))
    holds = {"a.png": "a picture", "*-seed*": "the runs", "absent.txt": "nothing", "b.csv": "more"}
    write_folder(directory, Page("A report", blocks, "sgdph test"), FIGURES, holds, ("b.csv",))
    (directory / "b.csv").write_text("c\n")


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        text = (directory / name).read_text(encoding="utf-8")
        assert old in text
        (directory / name).write_text(text.replace(old, new), encoding="utf-8")

    return change


def test_a_folder_holds_page_text_and_table_and_lists_its_files(tmp_path: Path) -> None:
    write(tmp_path)
    check_folder(tmp_path)
    text = (tmp_path / TEXT).read_text(encoding="utf-8")
    assert "absent.txt" not in text
    assert r"| \*-seed\* | the runs |" in text
    assert (tmp_path / TABLE).read_text() == "a,b\n1,2.5\n"


@pytest.mark.parametrize(
    "broken",
    [
        lambda directory: (directory / PAGE).unlink(),
        lambda directory: (directory / TEXT).unlink(),
        lambda directory: (directory / TABLE).write_text(""),
        lambda directory: (directory / "unknown.txt").write_text("not listed"),
        lambda directory: (directory / "b.csv").unlink(),
        lambda directory: (directory / "a.png").unlink(),
        replaced(PAGE, "data:image/png;base64,", "https://example.org/"),
        replaced(PAGE, "</style>", '</style><link rel="stylesheet" href="a.css">'),
        replaced(PAGE, "</style>", "body { background: url(a.png); }</style>"),
        replaced(PAGE, "</style>", "</style><script></script>"),
        replaced(PAGE, '<div class="scroll">', "<div>"),
        replaced(PAGE, "prefers-color-scheme", "prefers-nothing"),
        replaced(PAGE, ">b.csv<", "><"),
        replaced(TEXT, "Of 1 seed.", "Of 1 seeds."),
        replaced(TEXT, "Of 1 seed.", "90.00 ± –"),
    ],
)
def test_a_folder_that_breaks_the_format_fails_the_check(
    tmp_path: Path, broken: Callable[[Path], object]
) -> None:
    write(tmp_path)
    broken(tmp_path)
    with pytest.raises((AssertionError, FileNotFoundError)):
        check_folder(tmp_path)
