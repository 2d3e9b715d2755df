"""The common style of all pictures: colours, dashes and markers of systems, sizes and fonts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# The first seven are from Okabe & Ito, "Color Universal Design" (2008), and can be distinguished
# with every kind of colour vision. The others are from Paul Tol's muted scheme, plus three darker
# or lighter ones. They are drawn with hollow markers.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#332288", "#882255", "#999933", "#7A4B1E", "#8A8A8A", "#117733", "#AA4499"),
)
DASHES = ("solid", (0, (5, 2)), (0, (1, 1)), (0, (5, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Colour of reference lines, and of marks for values that were not measured.
REFERENCE = "#777777"
# These optimizers, baseline and method, look the same in every picture.
FIXED = ("sgdm", "sgdph")
# Width of a picture in inches. On a page 400 pixels wide, 10 points of it are 9 pixels.
WIDTH = 6.0
SMALL = 8.5
STYLE: Any = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.dpi": 180,
    "figure.titlesize": "medium",
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": "figure",
}


def line_style(index: int) -> dict[str, Any]:
    """Return a line's colour, dashes and marker: 14 distinct colours, 28 distinct styles."""
    colour = COLOURS[index % len(COLOURS)]
    hollow = index % len(COLOURS) >= len(MARKERS)
    return {
        "color": colour,
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": "white" if hollow else colour,
    }


def style_places(optimizers: Sequence[str]) -> list[int]:
    """Return the style index of each system in a picture.

    The first SGDM and the first SGD-PH have reserved indices. The others follow in order. If there
    are more than 12 others, they also use a reserved index that is free, so that no colour repeats
    among 14 systems.

    Args:
        optimizers: The optimizer of each system.
    """
    fixed = {optimizers.index(name): k for k, name in enumerate(FIXED) if name in optimizers}
    unused = [k for k in range(len(FIXED)) if k not in fixed.values()]
    more = range(len(COLOURS), len(COLOURS) + len(optimizers))
    others = iter([*range(len(FIXED), len(COLOURS)), *unused, *more])
    return [fixed[i] if i in fixed else next(others) for i in range(len(optimizers))]
