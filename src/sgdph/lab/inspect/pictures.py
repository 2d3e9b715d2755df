"""Pictures of an inspection's results: shares, errors, multipliers, blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sgdph.lab.inspect.figures import CheckpointFigures, Inspection, MultiplierRecord
from sgdph.lab.inspect.sketch import AVERAGES, ONE_BATCH
from sgdph.lab.inspect.tables import LABELS, spread_over_layers
from sgdph.lab.reports.figure import figure, legend_below, make_panels
from sgdph.lab.reports.numbers import counted
from sgdph.lab.reports.styles import COLOURS, REFERENCE, SMALL, WIDTH, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

# Below this share of a block's largest magnitude, the colour scale is linear.
LINEAR = 0.1
# From red over white to blue, which all usual kinds of colour vision can distinguish.
COLOUR_MAP = "RdBu_r"
# Colour and marker of each estimate. The constant is drawn in both panels.
STYLES = {
    "row_sum_one": (COLOURS[1], "s"),
    "row_sum_average": (COLOURS[1], "s"),
    "hutchinson_one": (COLOURS[0], "o"),
    "hutchinson_average": (COLOURS[0], "o"),
    "exact_one": (COLOURS[2], "^"),
    "exact_average": (COLOURS[2], "^"),
    "held": (COLOURS[3], "D"),
    "constant": (COLOURS[6], "x"),
}


def draw_shares(inspection: Inspection, path: Path) -> None:
    """Draw the off-diagonal shares into a PNG file: a row per layer, a mark per checkpoint."""
    checkpoints = inspection.checkpoints
    labels = [f"{block.label}  ({block.size})" for block in checkpoints[0].blocks]
    titles = ("one batch's block\n(mean over batches)", "the mean block\nover batches")
    fields = ("off_diagonal_share_batch", "off_diagonal_share_mean")
    title = f"How far from diagonal the blocks are\n{inspection.task}"
    with figure(path, WIDTH, 1.2 + 0.23 * len(labels), title) as made:
        panels = made.subplots(1, 2, sharey=True)
        for axes, panel_title, field in zip(panels, titles, fields, strict=True):
            for i, each in enumerate(checkpoints):
                values = [getattr(block, field) for block in each.blocks]
                axes.plot(values, range(len(values)), **mark(i), label=f"epoch {each.epoch}")
            axes.set_title(panel_title)
            axes.set_xlim(-0.02, 1.02)
            axes.set_xticks([0, 0.5, 1])
            axes.set_xlabel("share of the Frobenius\nnorm off the diagonal")
            name_layers(axes, labels)
        legend_below(made)


def draw_errors(inspection: Inspection, path: Path) -> None:
    """Draw each estimate's error over training, as median and range over layers, as PNG."""
    checkpoints = inspection.checkpoints
    b = checkpoints[0].blocks[0].batches
    visits = counted(b, "visit")
    groups = (
        (
            f"estimates from one batch, mean over {counted(b, 'batch', 'batches')}",
            (*ONE_BATCH, "constant"),
        ),
        (f"running averages over {visits} (what it holds: its own)", (*AVERAGES, "constant")),
    )
    title = "Errors through training: median over layers, bar from the lowest to the highest"
    with figure(path, WIDTH, 8.4, f"{title}\n{inspection.task}") as made:
        panels = made.subplots(2, 1, sharey=True)
        for axes, (panel_title, names) in zip(panels, groups, strict=True):
            for i, name in enumerate(names):
                draw_error_line(axes, checkpoints, name, (i - (len(names) - 1) / 2) * 0.13)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            epochs = [f"epoch {each.epoch}" for each in checkpoints]
            axes.set_xticks(range(len(checkpoints)), epochs)
            axes.set_xlim(-0.5, len(checkpoints) - 0.5)
            axes.set_title(panel_title)
            axes.axhline(1.0, color=REFERENCE, linewidth=0.8, zorder=1)
            axes.grid(False, axis="x")
            # Below the panel, because the error bars fill it.
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
            axes.set_ylabel("relative error against\n|diagonal| (log scale)")


def draw_error_line(
    axes: Axes, checkpoints: list[CheckpointFigures], name: str, shift: float
) -> None:
    """Draw one estimate's medians and ranges into a panel, shifted sideways by ``shift``."""
    spreads = [(i, spread_over_layers(c, name)) for i, c in enumerate(checkpoints)]
    found = [(i + shift, spread) for i, spread in spreads if spread is not None]
    if not found:
        return
    colour, marker = STYLES[name]
    reach = [
        [spread.median - spread.lowest for _, spread in found],
        [spread.highest - spread.median for _, spread in found],
    ]
    axes.errorbar(
        [place for place, _ in found],
        [spread.median for _, spread in found],
        yerr=reach,
        color=colour,
        marker=marker,
        markersize=5.5,
        linewidth=1.0,
        elinewidth=1.0,
        capsize=2.5,
        label=LABELS[name].removesuffix(", one batch").removesuffix(", averaged"),
    )


def draw_multipliers(inspection: Inspection, path: Path) -> None:
    """Draw the distribution of Newton multipliers in each layer, a panel per checkpoint, as PNG."""
    checkpoints = [each for each in inspection.checkpoints if each.multipliers]
    labels = [each.label for each in checkpoints[0].multipliers]
    sources = {m.source for each in checkpoints for m in each.multipliers}
    key = "tick: median, box: quarters, line: 5 to 95%,\ndots: extremes, dashed: SGD's step"
    if "unvisited" in sources:
        key += "\nhollow grey circle: not visited yet, 1 by definition"
    wide = min(2, len(checkpoints))
    deep = -(-len(checkpoints) // wide)
    title = f"{multipliers_title(inspection, sources)}\n{inspection.task}"
    with figure(path, WIDTH, 0.9 + deep * (0.5 + 0.21 * len(labels)), title) as made:
        panels = make_panels(made, len(checkpoints), wide, shared=True)
        for axes, each in zip(panels, checkpoints, strict=True):
            for y, m in enumerate(each.multipliers):
                draw_multiplier(axes, m, y)
            axes.axvline(1.0, color=COLOURS[1], linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
            axes.set_xscale("log")
            axes.set_title(f"epoch {each.epoch}")
            name_layers(axes, labels)
        made.supxlabel(f"Newton multiplier (log scale)\n{key}", fontsize="medium")


def draw_multiplier(axes: Axes, m: MultiplierRecord, y: float) -> None:
    """Draw one parameter's multipliers into a row; a hollow mark if it was not visited yet."""
    if m.source == "unvisited":
        axes.plot([m.median], [y], "o", color=REFERENCE, fillstyle="none", markersize=5.5)
        return
    axes.plot([m.p05, m.p95], [y, y], color=COLOURS[0], linewidth=1.0)
    axes.plot([m.p25, m.p75], [y, y], color=COLOURS[5], linewidth=6, solid_capstyle="butt")
    axes.plot([m.min, m.max], [y, y], ".", color=COLOURS[0], markersize=2.5)
    axes.plot([m.median], [y], "|", color=COLOURS[6], markersize=8, markeredgewidth=1.8)


def multipliers_title(inspection: Inspection, sources: set[str]) -> str:
    """Return a title that says what the multipliers are."""
    if "control" in sources:
        return f"Multipliers of the control {inspection.config.optimizer} (not τ/(D̂+ε))"
    held = "row_sum_average" not in sources
    source = "the optimizer's own average" if held else "row sums averaged, SGD-PH's defaults"
    return f"Multipliers τ/(D̂+ε), D̂: {source}"


def name_layers(axes: Axes, labels: list[str]) -> None:
    """Label the y axis with layers, the first at the top."""
    axes.set_yticks(range(len(labels)), labels, fontsize=SMALL)
    axes.set_ylim(len(labels) - 0.5, -0.5)


def mark(index: int) -> dict[str, Any]:
    """Return the style of a checkpoint's marks."""
    return {**line_style(index), "linestyle": "none", "markersize": 5.5, "alpha": 0.85}


def draw_blocks(inspection: Inspection, path: Path) -> None:
    """Draw the mean blocks, a row per parameter and a column per checkpoint, into a PNG file.

    Each block is divided by its largest magnitude. The colour scale is symmetric about zero, and
    logarithmic beyond :data:`LINEAR`.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import SymLogNorm

    checkpoints = inspection.checkpoints
    names = list(checkpoints[0].pictures)
    blocks = {block.name: block for block in checkpoints[0].blocks}
    norm = SymLogNorm(LINEAR, vmin=-1, vmax=1, base=10)
    size = max(WIDTH, 1.0 + 1.2 * len(checkpoints)), 1.0 + 1.6 * len(names)
    with figure(path, *size, f"Mean Hessian blocks over batches\n{inspection.task}") as made:
        panels = made.subplots(len(names), len(checkpoints), squeeze=False)
        for row, name in zip(panels, names, strict=True):
            for axes, each in zip(row, checkpoints, strict=True):
                draw_block(axes, each.pictures[name], each.epoch, norm)
            known = blocks[name]
            row[0].set_ylabel(f"{known.label}\n{known.kind}, {known.size} rows", fontsize=SMALL)
        scale = ScalarMappable(norm, COLOUR_MAP)
        bar = made.colorbar(scale, ax=panels, location="bottom", shrink=0.8, aspect=40)
        ticks = [-1, -0.3, -0.1, 0, 0.1, 0.3, 1]
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        bar.minorticks_off()
        bar.set_label("entry / largest magnitude in its block")


def draw_block(axes: Axes, block: Tensor, epoch: int, norm: Normalize) -> None:
    """Draw one block, divided by its largest magnitude, into a panel."""
    largest = block.abs().max().item()
    image = block / largest if largest > 0 else block
    axes.imshow(image.numpy(), cmap=COLOUR_MAP, norm=norm)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.set_title(f"epoch {epoch}\nlargest {largest:.2g}", fontsize=SMALL)
