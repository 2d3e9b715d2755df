"""Shared code of all pictures: how they are created, titled, laid out and written."""

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

# Maximum number of columns of a legend, and widths in characters at which its labels are wrapped:
# the first width at which the legend fits is used.
COLUMNS = 4
LABELS = (66, 48, 32, 20)


@contextmanager
def figure(path: Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """Create a figure in the common style, and write it to a PNG file at the end of the context.

    Args:
        path: The file. It is replaced atomically.
        width: Width in inches.
        height: Height in inches, without title and legend.
        title: Title above the figure, wrapped to its width.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        made = new_figure(width, height, title)
        yield made
        write_atomically(path, lambda file: made.savefig(file, format="png"))


def new_figure(width: float, height: float, title: str) -> Figure:
    """Create a figure for files, in inches; the title's height is added to ``height``."""
    # Not pyplot: it would choose an interactive backend and keep a reference to the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text = wrapped(title, width)
    lines = text.count("\n") + 1 if text else 0
    made = Figure(figsize=(width, height + 0.22 * lines), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(text)
    return made


def wrapped(text: str, width: float) -> str:
    """Wrap a text to a width in inches; existing line breaks are kept."""
    # Sized for the largest font, that of a title. An axis takes some of a panel's width.
    letters = int(9.5 * width)
    return without_maths("\n".join(_balanced(line, letters) for line in text.splitlines()))


def without_maths(text: str) -> str:
    """Escape dollar signs, between which matplotlib would read formulas.

    Its setting ``text.parse_math`` would also change the labels of logarithmic axes.
    """
    return text.replace("$", r"\$")


def _balanced(line: str, letters: int) -> str:
    """Wrap a line into as few lines as possible, of similar lengths."""
    count = max(1, len(textwrap.wrap(line, letters)))
    widths = range(max(1, len(line) // count), letters + 1)
    fits = (each for each in widths if len(textwrap.wrap(line, each)) <= count)
    return textwrap.fill(line, next(fits, letters))


def make_panels(made: Figure, count: int, per_row: int, shared: bool = False) -> list[Axes]:
    """Lay out ``count`` panels, ``per_row`` in a row; if ``shared``, with common axes."""
    rows = math.ceil(count / per_row)
    grid = made.subplots(rows, per_row, squeeze=False, sharex=shared, sharey=shared)
    panels = grid.flatten()
    for axes in panels[count:]:
        axes.set_visible(False)
    return list(panels[:count])


def title_panel(axes: Axes, title: str, width: float) -> None:
    """Put a title above a panel, wrapped to its width in inches."""
    axes.set_title(wrapped(title, width))


def legend_below(
    made: Figure, order: Sequence[str] = (), handles: Mapping[str, Any] | None = None
) -> None:
    """Put one legend for all panels below them, and make the figure higher to fit it.

    Args:
        made: The figure.
        order: Labels in their order. If empty, the order of drawing.
        handles: Maps labels to handles. If given, it replaces the handles of the panels.
    """
    found = handles or {
        label: handle
        for axes in made.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    shown = {label: found[label] for label in order or found if label in found}
    if not shown:
        return
    # As many columns as fit. If not even one column fits, the labels are wrapped more narrowly.
    for letters in LABELS:
        labels = [without_maths(textwrap.fill(label, letters)) for label in shown]
        for columns in range(min(COLUMNS, len(shown)), 0, -1):
            legend = made.legend(shown.values(), labels, loc="outside lower center", ncols=columns)
            box = legend.get_window_extent()
            if box.width <= made.bbox.width or (columns, letters) == (1, LABELS[-1]):
                made.set_figheight(made.get_figheight() + box.height / made.dpi)
                return
            legend.remove()
