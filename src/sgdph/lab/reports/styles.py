"""How all pictures look: colours, dashes and markers of systems, sizes, letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# The first seven: Okabe & Ito, "Color Universal Design" (2008), told apart with every kind of
# colour vision. The others, of Paul Tol's muted scheme and three darker or lighter ones, are drawn
# with hollow markers.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#332288", "#882255", "#999933", "#7A4B1E", "#8A8A8A", "#117733", "#AA4499"),
)
DASHES = ("solid", (0, (5, 2)), (0, (1, 1)), (0, (5, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# A line that figures are compared with, and marks of what was not measured.
REFERENCE = "#777777"
# Method and baseline look the same in every picture.
FIXED = ("sgdm", "sgdph")
# Inches. A page of 400 pixels shows ten points of it as nine pixels.
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
    """Return a line's colour, dashes and marker; 14 have no colour twice, 28 are all unlike."""
    colour = COLOURS[index % len(COLOURS)]
    hollow = index % len(COLOURS) >= len(MARKERS)
    return {
        "color": colour,
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": "white" if hollow else colour,
    }


def style_places(optimizers: Sequence[str]) -> list[int]:
    """Give each system of a picture its place among the styles.

    The first SGDM and the first SGD-PH have places of their own; the others follow in order. Of
    more than 12 others some take the places of SGDM and SGD-PH where these are not there, so that
    no colour repeats among 14.

    Args:
        optimizers: The optimizer of each system.
    """
    fixed = {optimizers.index(name): k for k, name in enumerate(FIXED) if name in optimizers}
    unused = [k for k in range(len(FIXED)) if k not in fixed.values()]
    more = range(len(COLOURS), len(COLOURS) + len(optimizers))
    others = iter([*range(len(FIXED), len(COLOURS)), *unused, *more])
    return [fixed[i] if i in fixed else next(others) for i in range(len(optimizers))]
