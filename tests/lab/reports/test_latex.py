import re

import pytest

from sgdph.lab.reports.latex import latex_text, to_latex
from sgdph.lab.reports.table import LEVEL, Cell, TextTable, to_markdown

HARD = r"a_b & 50% of $x$ {#1} ~ ^ \ <|>"
TABLE = TextTable(
    "test-summary",
    "Accuracy, %: mean ± std",
    "optimizer",
    (("CIFAR-10", "ResNet18"), ("CIFAR-10", "VGG11"), ("CIFAR-100", "ResNet18")),
    (
        (HARD, (Cell("1.0 ± 0.1", bold=True), Cell("–"), Cell("2", level=True, note="(n = 1)"))),
        ("a name that is far too long for one line of a table", (Cell("1"), Cell("2"), Cell(""))),
    ),
)


def test_environments_are_balanced_and_rows_have_all_columns() -> None:
    text = to_latex([TABLE, TABLE], ["100% of it\nis true"])
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
    # The notes are comments, line by line.
    assert "% 100% of it\n% is true\n" in text


def test_headings_stand_over_their_columns() -> None:
    text = to_latex([TABLE], [])
    assert r" & \multicolumn{2}{c}{CIFAR-10} & CIFAR-100 \\" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert r"optimizer & ResNet18 & VGG11 & ResNet18 \\" in text
    assert TABLE.levels == [
        [("CIFAR-10", 2), ("CIFAR-100", 1)],
        [("ResNet18", 1), ("VGG11", 1), ("ResNet18", 1)],
    ]


def test_marks_and_notes() -> None:
    text = to_latex([TABLE], [])
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
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "| optimizer | CIFAR-10, ResNet18 | CIFAR-10, VGG11 | CIFAR-100, ResNet18 |"
    assert f"| **1.0 ± 0.1** | – | 2 {LEVEL} (n = 1) |" in lines[2]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines)
