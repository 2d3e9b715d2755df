import re

import pytest
from rich.console import Console

from sgdph.lab.reports.escapes import latex_text
from sgdph.lab.reports.table import LEVEL, WIDE, Cell, Column, Table, latex_file

HARD = r"a_b & 50% of $x$ {#1} ~ ^ \ <|>"
TABLE = Table(
    (
        Column("optimizer", "left"),
        Column(("CIFAR-10", "ResNet18")),
        Column(("CIFAR-10", "VGG11"), form=".1f"),
        Column(("CIFAR-100", "ResNet18")),
    ),
    (
        (HARD, Cell("1.0 ± 0.1", bold=True), None, Cell("2", level=True, note="(n = 1)")),
        ("a name that is far too long for one line of a table", 1, 2.25, ""),
    ),
    "Accuracy, %: mean ± std",
    "test-summary",
)


def test_latex_environments_are_balanced_and_rows_have_all_columns() -> None:
    text = latex_file([TABLE, TABLE], ["100% of it\nis true"])
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    plain = re.sub(r"\\.", "", re.sub(r"(?m)^%.*$", "", text))
    depth = 0
    for character in plain:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    first = next(line for line in body.splitlines() if line.startswith("a\\_b"))
    assert len(re.findall(r"(?<!\\)&", first)) == 3
    # Each line of the notes is a comment.
    assert "% 100% of it\n% is true\n" in text


def test_grouped_headings_span_their_columns() -> None:
    text = latex_file([TABLE], [])
    assert r" & \multicolumn{2}{c}{CIFAR-10} & CIFAR-100 \\" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert r"optimizer & ResNet18 & VGG11 & ResNet18 \\" in text
    assert TABLE.levels == [
        [("", 1), ("CIFAR-10", 2), ("CIFAR-100", 1)],
        [("optimizer", 1), ("ResNet18", 1), ("VGG11", 1), ("ResNet18", 1)],
    ]


def test_columns_with_a_single_heading_are_not_merged() -> None:
    headings = ("a", "b", ("X", "c"), ("X", "d"))
    assert Table(tuple(map(Column, headings)), ()).levels == [
        [("", 1), ("", 1), ("X", 2)],
        [("a", 1), ("b", 1), ("c", 1), ("d", 1)],
    ]


def test_latex_has_marks_notes_and_line_breaks() -> None:
    text = latex_file([TABLE], [])
    assert r"\textbf{1.0 $\pm$ 0.1}" in text
    assert r"2$^\dagger$ \\ {\scriptsize (n = 1)}" in text
    assert r"a name that is far too long for one \\ line of a table" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b", r"a\_b"),
        ("50%", r"50\%"),
        ("\\", r"\textbackslash{}"),
        ("{x}", r"\{x\}"),
        ("[1]", "{[}1]"),
        ("a ± b – c", r"a $\pm$ b -- c"),
    ],
)
def test_special_characters_are_escaped(text: str, escaped: str) -> None:
    assert latex_text(text) == escaped


def test_markdown_has_the_same_marks_and_keeps_its_columns() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "| optimizer | CIFAR-10, ResNet18 | CIFAR-10, VGG11 | CIFAR-100, ResNet18 |"
    assert f"| **1.0 ± 0.1** | – | 2 {LEVEL} (n = 1) |" in lines[2]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines)


def test_markdown_rounds_values_and_csv_has_them_in_full() -> None:
    name = "a name that is far too long for one line of a table"
    assert TABLE.markdown().splitlines()[1] == "|---|---:|---:|---:|".replace("|", " | ").strip()
    assert TABLE.markdown().splitlines()[-1] == f"| {name} | 1 | 2.2 |  |"
    # CSV is for programs: values are in full, and missing values are empty.
    assert TABLE.csv().splitlines()[0] == (
        'optimizer,"CIFAR-10, ResNet18","CIFAR-10, VGG11","CIFAR-100, ResNet18"'
    )
    assert TABLE.csv().splitlines()[1].endswith(f",1.0 ± 0.1,,2 {LEVEL} (n = 1)")
    assert TABLE.csv().splitlines()[-1] == f"{name},1,2.25,"


def test_records_become_rows_with_a_column_per_name_in_any_record() -> None:
    table = Table.of_records([{"a": 0.1, "b": None}, {"a": (("x", 1), "y"), "c": True}])
    assert table.csv() == "a,b,c\n0.1,,\nx=1 y,,True\n"
    assert Table.of_records([]).csv() == "\n"


def test_a_link_covers_the_whole_text_of_a_cell() -> None:
    table = Table((Column("run", "left"),), ((Cell("a|b", link="a%7Cb/"),),))
    assert table.markdown().splitlines()[-1] == r"| [a\|b](a%7Cb/) |"


@pytest.mark.parametrize("columns", [4, WIDE + 1])
def test_on_a_narrow_terminal_names_are_wrapped_and_numbers_are_not(columns: int) -> None:
    headings = (Column("name", "left"), *(Column(f"c{i}") for i in range(columns - 1)))
    table = Table(headings, (("long [name] " * 9, *range(100, 100 + columns - 1)),))
    console = Console(width=90, color_system=None)
    with console.capture() as capture:
        console.print(table.rich())
    for figure in range(100, 100 + columns - 1):
        assert str(figure) in capture.get()
    assert "[name]" in capture.get()
