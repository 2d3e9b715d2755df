"""A page of text, lists, tables and pictures: as Markdown, or as self-contained HTML."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined

from sgdph.lab.reports.escapes import markdown_text
from sgdph.lab.reports.table import Table

# The environment fields that a page lists, in this order.
MACHINE = (
    *("cpu", "device", "device_name", "threads", "platform", "python", "torch", "sgdph"),
    "git_commit",
)


@dataclass(frozen=True)
class Bullets:
    """A list of lines.

    Attributes:
        lines: The lines.
        code: Whether the lines are commands, which are shown as code.
    """

    lines: Sequence[str]
    code: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn.

    Attributes:
        path: Its PNG file. A Markdown page must be in the same directory.
        title: Its heading.
        meaning: What it shows.
    """

    path: Path
    title: str
    meaning: str = ""

    @property
    def source(self) -> str:
        """The picture as a data URL, for a page that loads no files."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Section:
    """A heading with the blocks under it.

    Attributes:
        heading: The heading. If it is empty, the blocks are shown without one.
        blocks: The content under the heading.
        level: Heading level; 2 is directly below the page title.
        folded: Whether an HTML page shows only the heading until it is clicked.
    """

    heading: str
    blocks: Sequence[Block]
    level: int = 2
    folded: bool = False


# A ``str`` is a paragraph. Text between backticks is code.
Block: TypeAlias = str | Bullets | Table | Picture | Section


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Render a Markdown page."""
    return "\n\n".join([f"# {markdown_text(title)}", *_markdown(blocks)]) + "\n"


def _markdown(blocks: Iterable[Block]) -> list[str]:
    """Render blocks as a list of paragraphs."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Section):
            parts += [f"{'#' * block.level} {block.heading}"] if block.heading else []
            parts += _markdown(block.blocks)
        elif isinstance(block, Bullets):
            texts = (f"`{x}`" if block.code else markdown_text(x) for x in block.lines)
            parts.append("\n".join(f"* {text}" for text in texts))
        elif isinstance(block, Picture):
            parts.append(f"![{block.title}]({block.path.name})")
            parts.append(f"{block.title}. {block.meaning}" if block.meaning else "")
        elif isinstance(block, Table):
            parts.append(f"{markdown_text(block.caption)}:" if block.caption else "")
            parts.append(block.markdown().rstrip())
        else:
            parts.append(block)
    return [part for part in parts if part]


def to_html(title: str, blocks: Sequence[Block], generator: str) -> str:
    """Render a self-contained HTML page, which loads no other files.

    Args:
        title: Title of the page.
        blocks: Content of the page.
        generator: The command that writes the page.
    """
    environment = Environment(
        loader=PackageLoader("sgdph.lab.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.jinja")
    return template.render(
        title=title, blocks=blocks, generator=generator, kind=lambda block: type(block).__name__
    )


def machine_section(environments: Iterable[Mapping[str, Any]]) -> Section:
    """Make the section that lists the machines and the commands of a measurement, each once."""
    environments = [each for each in environments if each]
    machines = dict.fromkeys(map(_machine, environments))
    commands = dict.fromkeys(str(each["command"]) for each in environments if "command" in each)
    return Section("Machine", [Bullets(tuple(machines)), Bullets(tuple(commands), code=True)])


def _machine(environment: Mapping[str, Any]) -> str:
    known = {key: environment.get(key) for key in MACHINE} | environment.get("optimizers", {})
    return "; ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in known.items() if value is not None
    )
