"""A page of text, lists, tables and pictures: as Markdown, or as HTML with everything inside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined

from sgdph.lab.reports.escapes import markdown_text
from sgdph.lab.reports.table import Table

# What is told of a machine, in this order.
MACHINE = (
    *("cpu", "device", "device_name", "threads", "platform", "python", "torch", "sgdph"),
    "git_commit",
)


@dataclass(frozen=True)
class Bullets:
    """A list of lines.

    Attributes:
        lines: The lines.
        code: Whether they are commands.
    """

    lines: Sequence[str]
    code: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn.

    Attributes:
        path: Its PNG file; a Markdown page lies beside it.
        title: Its heading.
        meaning: What it shows.
    """

    path: Path
    title: str
    meaning: str = ""

    @property
    def source(self) -> str:
        """The picture as a data address, for a page that loads nothing."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it.

    Attributes:
        heading: The heading; without one its blocks stand there as they are.
        blocks: What stands under it.
        level: 2 for the headings right under the title.
        folded: Whether an HTML page shows the heading alone until it is clicked.
    """

    heading: str
    blocks: Sequence[Block]
    level: int = 2
    folded: bool = False


# In a text, what stands between backticks is code.
Block: TypeAlias = str | Bullets | Table | Picture | Section


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Write a Markdown page."""
    return "\n\n".join([f"# {markdown_text(title)}", *_markdown(blocks)]) + "\n"


def _markdown(blocks: Iterable[Block]) -> list[str]:
    """Write blocks as paragraphs."""
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
    """Write an HTML page; nothing in it is fetched from elsewhere.

    Args:
        title: What stands above it.
        blocks: What stands on it.
        generator: The command that writes it.
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
    """Say where figures were measured, and by which commands: each once."""
    environments = [each for each in environments if each]
    machines = dict.fromkeys(map(_machine, environments))
    commands = dict.fromkeys(str(each["command"]) for each in environments if "command" in each)
    return Section("Machine", [Bullets(tuple(machines)), Bullets(tuple(commands), code=True)])


def _machine(environment: Mapping[str, Any]) -> str:
    known = {key: environment.get(key) for key in MACHINE} | environment.get("optimizers", {})
    return "; ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in known.items() if value is not None
    )
