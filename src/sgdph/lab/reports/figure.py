"""What all pictures have in common: style, colours, dashes, markers, titles, the file."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
# A line that figures are compared with, and marks of what was not measured.
REFERENCE = "#777777"
STYLE: Any = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.dpi": 150,
    "figure.titlesize": "large",
    "figure.titleweight": "bold",
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": "figure",
}


@contextmanager
def figure(path: Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """Make a figure in the common style, and write it into a PNG file when all is drawn.

    Args:
        path: The file; replaced in one step.
        width: Inches.
        height: Inches.
        title: What stands above it, on as many lines as the width asks for.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        made = new_figure(width, height, title)
        yield made
        write_atomically(path, lambda file: made.savefig(file, format="png"))


def new_figure(width: float, height: float, title: str) -> Figure:
    """Make a figure of so many inches, without a screen."""
    # Not pyplot: it would choose a screen and keep the figure for ever.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(wrapped(title, width))
    return made


def line_style(index: int) -> dict[str, Any]:
    """Return a line's colour, dashes and marker; 28 lines have no two of them alike in all."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def wrapped(text: str, width: float) -> str:
    """Break a text into lines of so many inches, besides the lines that it has."""
    # What fits of the largest writing there is, a title's; an axis takes some of a panel's width.
    letters = int(9 * width)
    return "\n".join(textwrap.fill(line, letters) for line in text.splitlines())


def make_panels(made: Figure, count: int, per_row: int, shared: bool = False) -> list[Axes]:
    """Lay out so many panels, so many in a row, with the same axes where they share them."""
    rows = math.ceil(count / per_row)
    grid = made.subplots(rows, per_row, squeeze=False, sharex=shared, sharey=shared)
    panels = grid.flatten()
    for axes in panels[count:]:
        axes.set_visible(False)
    return list(panels[:count])


def title_panel(axes: Axes, title: str, width: float) -> None:
    """Put a title above a panel of so many inches, on as many lines as that asks for."""
    axes.set_title(wrapped(title, width))


def legend_below(made: Figure, columns: int, order: Sequence[str] = ()) -> None:
    """Put one legend of all panels below them.

    Args:
        made: The figure.
        columns: Of the legend.
        order: Labels in their order; that of drawing where there is none.
    """
    found = {
        label: handle
        for axes in made.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    handles = {label: found[label] for label in order or found if label in found}
    if handles:
        made.legend(handles.values(), handles, loc="outside lower center", ncols=columns)
