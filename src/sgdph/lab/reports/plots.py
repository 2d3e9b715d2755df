"""What all pictures have in common: colours, dashes, markers, figures without a screen."""

from __future__ import annotations

import base64
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdph.lab.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design" (2008): told apart with every kind of colour vision. The
# dashes tell the lines apart in grey too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1)), (0, (5, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D")


def line_style(index: int) -> dict[str, Any]:
    """Return a line's colour, dashes and marker; 28 lines have no two of them alike in all."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of so many inches."""
    # Not pyplot: it would choose a screen and keep the figure for ever.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def wrapped(text: str, width: float) -> str:
    """Break a text into lines of so many inches, besides the lines that it has."""
    # What fits of the largest writing there is, a title's; an axis takes some of a panel's width.
    letters = int(9 * width)
    return "\n".join(textwrap.fill(line, letters) for line in text.splitlines())


def title_figure(figure: Figure, title: str) -> None:
    """Put a title above a figure, on as many lines as its width asks for."""
    lines = wrapped(title, figure.get_figwidth())
    figure.suptitle(lines, fontsize="large", fontweight="bold")


def title_panel(axes: Axes, title: str, width: float) -> None:
    """Put a title above a panel of so many inches, on as many lines as that asks for."""
    axes.set_title(wrapped(title, width), fontsize="medium")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure into a PNG file."""
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def embedded(path: Path) -> str:
    """Return a PNG file's picture as a data address, for a page that loads nothing."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
