"""One list of blocks, and the two pages that are made from it."""

import re
from pathlib import Path

from sgdph.lab.reports.page import (
    Block,
    Bullets,
    Picture,
    Section,
    machine_section,
    to_html,
    to_markdown,
)
from sgdph.lab.reports.table import Cell, Column, Table


def blocks(path: Path) -> list[Block]:
    picture = path / "a.png"
    picture.write_bytes(b"\x89PNG")
    table = Table(
        (Column("name", "left"), Column("time", form=".1f")),
        (("<a>", 1.25), (Cell("b", bold=True, level=True, note="(n = 1)"), None)),
        "A caption",
    )
    return [
        "Of `x.y` & more.",
        Bullets(["a | b", "c"]),
        Bullets(["sgdph report"], code=True),
        Section("", ["Under no heading."]),
        Section("Outer", [Section("Inner", [table], level=3)]),
        Section(
            "Folded", [Table((Column("", "left"), Column("", "left")), (("k", "v"),))], folded=True
        ),
        Picture(picture, "A picture", "What it shows."),
    ]


def test_markdown(tmp_path: Path) -> None:
    assert to_markdown("A <title>", blocks(tmp_path)).split("\n\n") == [
        r"# A \<title>",
        "Of `x.y` & more.",
        "* a \\| b\n* c",
        "* `sgdph report`",
        "Under no heading.",
        "## Outer",
        "### Inner",
        "A caption:",
        "| name | time |\n| --- | ---: |\n| \\<a> | 1.2 |\n| **b** † (n = 1) | – |",
        "## Folded",
        "|  |  |\n| --- | --- |\n| k | v |",
        "![A picture](a.png)",
        "A picture. What it shows.\n",
    ]


def test_html_has_the_same_content(tmp_path: Path) -> None:
    page = to_html("A <title>", blocks(tmp_path), "sgdph test")
    assert '<meta name="generator" content="sgdph test">' in page
    said = re.sub(r"<style>.*</style>|<title>.*</title>", "", page, flags=re.DOTALL)
    words = " ".join(re.sub(r"<[^>]*>", " ", said).split())
    assert words == (
        "A &lt;title&gt; Of x.y &amp; more. a | b c sgdph report Under no heading. Outer Inner "
        "A caption name time &lt;a&gt; 1.2 b † (n = 1) – Folded k v A picture What it shows."
    )
    for part in (
        "<code>x.y</code>",
        "<li><code>sgdph report</code></li>",
        "<h3>Inner</h3>",
        "<summary>Folded</summary>",
        "<strong>b</strong>",
        '<img src="data:image/png;base64,iVBORw==" alt="A picture">',
    ):
        assert part in page
    # A table without headings has no header row.
    assert page.count("<thead>") == 1


def test_each_machine_and_command_is_listed_once() -> None:
    first = {"cpu": "a", "threads": 0, "git_commit": None, "command": "x"}
    second = {"cpu": "a", "threads": 0, "command": "y", "optimizers": {"timm": "1.0"}}
    section = machine_section([first, {}, first, second])
    assert section.blocks == [
        Bullets(("cpu a; threads 0", "cpu a; threads 0; timm 1.0")),
        Bullets(("x", "y"), code=True),
    ]
