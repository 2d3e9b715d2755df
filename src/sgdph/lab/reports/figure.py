"""What all pictures have in common: how they are made, titled, laid out and written."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdph.lab.files import write_atomically
from sgdph.lab.reports.styles import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A legend has up to so many columns. Its labels are broken after so many letters, or fewer.
COLUMNS = 4
LABELS = (66, 48, 32, 20)


@contextmanager
def figure(path: Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """Make a figure in the common style, and write it into a PNG file when all is drawn.

    Args:
        path: The file; replaced in one step.
        width: Inches.
        height: Inches, without title and legend.
        title: What stands above it, on as many lines as the width asks for.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        made = new_figure(width, height, title)
        yield made
        write_atomically(path, lambda file: made.savefig(file, format="png"))


def new_figure(width: float, height: float, title: str) -> Figure:
    """Make a figure of so many inches, without a screen, and higher by its title."""
    # Not pyplot: it would choose a screen and keep the figure for ever.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text = wrapped(title, width)
    lines = text.count("\n") + 1 if text else 0
    made = Figure(figsize=(width, height + 0.22 * lines), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(text)
    return made


def wrapped(text: str, width: float) -> str:
    """Break a text into lines of so many inches, besides the lines that it has."""
    # What fits of the largest writing there is, a title's; an axis takes some of a panel's width.
    letters = int(9.5 * width)
    return "\n".join(_balanced(line, letters) for line in text.splitlines())


def _balanced(line: str, letters: int) -> str:
    """Break a line into as few lines as fit, none much shorter than the others."""
    count = max(1, len(textwrap.wrap(line, letters)))
    widths = range(max(1, len(line) // count), letters + 1)
    fits = (each for each in widths if len(textwrap.wrap(line, each)) <= count)
    return textwrap.fill(line, next(fits, letters))


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


def legend_below(
    made: Figure, order: Sequence[str] = (), handles: Mapping[str, Any] | None = None
) -> None:
    """Put one legend of all panels below them, and make the figure higher by it.

    Args:
        made: The figure.
        order: Labels in their order; that of drawing where there is none.
        handles: Label to handle, in place of those of the panels.
    """
    found = handles or {
        label: handle
        for axes in made.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    shown = {label: found[label] for label in order or found if label in found}
    if not shown:
        return
    # As many columns as fit; where not even one does, the labels are broken.
    for letters in LABELS:
        labels = [textwrap.fill(label, letters) for label in shown]
        for columns in range(min(COLUMNS, len(shown)), 0, -1):
            legend = made.legend(shown.values(), labels, loc="outside lower center", ncols=columns)
            box = legend.get_window_extent()
            if box.width <= made.bbox.width or (columns, letters) == (1, LABELS[-1]):
                made.set_figheight(made.get_figheight() + box.height / made.dpi)
                return
            legend.remove()
