"""Heat maps of mean blocks."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sgdph.lab.inspect.figures import Inspection
from sgdph.lab.reports.plots import new_figure, save_figure, title_figure

# Entries below this share of the largest are drawn on a linear scale.
LINEAR = 0.1


def draw_blocks(inspection: Inspection, path: Path) -> None:
    """Draw the mean blocks, a row per parameter and a column per checkpoint, into a PNG file.

    Each block is divided by its largest magnitude; the colours are symmetric about zero and
    logarithmic beyond a tenth.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import SymLogNorm

    checkpoints = inspection.checkpoints
    names = list(checkpoints[0].pictures)
    blocks = {block.name: block for block in checkpoints[0].blocks}
    figure = new_figure(2.4 + 2.35 * len(checkpoints), 1.3 + 2.55 * len(names))
    panels = figure.subplots(len(names), len(checkpoints), squeeze=False)
    # Red and blue with white between: told apart with every usual kind of colour vision.
    colours = ScalarMappable(SymLogNorm(LINEAR, vmin=-1, vmax=1, base=10), "RdBu_r")
    for row, name in zip(panels, names, strict=True):
        for axes, each in zip(row, checkpoints, strict=True):
            block = each.pictures[name]
            largest = largest_magnitude(block)
            image = block / largest if largest > 0 else block
            axes.imshow(image.numpy(), cmap=colours.get_cmap(), norm=colours.norm)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"epoch {each.epoch}, largest {largest:.2g}", fontsize="small")
        known = blocks[name]
        row[0].set_ylabel(f"{known.label}\n{known.kind}, {known.size} rows", fontsize="small")
    bar = figure.colorbar(colours, ax=panels, shrink=0.8, aspect=30)
    ticks = [-1, -0.3, -0.1, 0, 0.1, 0.3, 1]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.minorticks_off()
    bar.set_label("entry / largest magnitude in its block")
    title_figure(figure, f"Mean Hessian blocks over batches\n{inspection.task}")
    save_figure(figure, path)


def largest_magnitude(block: Tensor) -> float:
    """Return the largest magnitude in a block."""
    return block.abs().max().item()
