"""Pictures of a comparison, made of its run directories alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdph.lab.files import write_atomically
from sgdph.lab.records import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design" (2008): told apart with every kind of colour vision. The
# dashes tell the lines apart in grey too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1)), (0, (5, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D")


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of so many inches."""
    # Not pyplot: it would choose a screen and keep the figure for ever.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure into a PNG file."""
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def draw_comparison(groups: Sequence[Group], path: Path, title: str) -> None:
    """Draw test accuracy and training loss over epochs, a line per group, into a PNG file.

    A line is the mean over a group's finished runs, its band reaches from the lowest to the highest
    of them.

    Args:
        groups: What to draw; a group without a finished run is left out.
        path: The file.
        title: What was trained on what.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(11, 4.6)
    accuracy, loss = figure.subplots(1, 2)
    for index, group in enumerate(groups):
        if group.finished:
            draw_band(accuracy, group, "test_accuracy", 100.0, index)
            draw_band(loss, group, "train_loss", 1.0, index)
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)", title="Test accuracy")
    loss.set(
        xlabel="epoch",
        ylabel="cross-entropy (nats, log scale)",
        title="Training loss",
        yscale="log",
    )
    # One, two and five of each decade, in plain figures: a run may not reach a power of ten at all.
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, loss):
        axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.title.set_fontsize("medium")
    if accuracy.get_legend_handles_labels()[0]:
        accuracy.legend(frameon=False, loc="lower right")
        loss.legend(frameon=False, loc="best")
    figure.suptitle(title, fontsize="large", fontweight="bold")
    save_figure(figure, path)


def draw_band(axes: Axes, group: Group, key: str, scale: float, index: int) -> None:
    """Draw one group's mean line and min-max band of one metric into a panel.

    Args:
        axes: The panel.
        group: A group with at least one finished run; all its runs have equally many epochs.
        key: The metric's name in the metrics lines.
        scale: What the metric is multiplied by.
        index: The group's place, which decides colour, dashes and marker.
    """
    curves = [[line[key] * scale for line in run.metrics] for run in group.finished]
    epochs = [line["epoch"] for line in group.finished[0].metrics]
    at_epoch = list(zip(*curves, strict=True))
    colour = COLOURS[index % len(COLOURS)]
    style: dict[str, Any] = {
        "color": colour,
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.8,
    }
    axes.plot(
        epochs, [sum(values) / len(values) for values in at_epoch], label=legend(group), **style
    )
    axes.fill_between(
        epochs,
        [min(v) for v in at_epoch],
        [max(v) for v in at_epoch],
        color=colour,
        alpha=0.18,
        linewidth=0,
    )


def legend(group: Group) -> str:
    """Name a group, with its number of finished seeds and of diverged ones."""
    diverged = group.count("diverged")
    return f"{group.label}, n = {len(group.finished)}" + (
        f" ({diverged} diverged)" if diverged else ""
    )
