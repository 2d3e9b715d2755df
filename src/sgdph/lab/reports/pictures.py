"""The pictures of a report, and what each shows."""

from __future__ import annotations

from pathlib import Path

from sgdph.lab.reports.curves import BEYOND, MOST, draw_curves
from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.page import Picture
from sgdph.lab.reports.sensitivity import find_sensitivity
from sgdph.lab.reports.sensitivity_pictures import draw_lines, draw_surfaces

EPOCHS, SECONDS, MAPS, LINES = (
    "comparison.png",
    "seconds.png",
    "sensitivity-maps.png",
    "sensitivity-lines.png",
)
_WHAT = {
    EPOCHS: "accuracy and training loss over epochs",
    SECONDS: "accuracy and training loss over seconds of training",
    MAPS: "final accuracy over two settings",
    LINES: "final accuracy over one setting",
}
# Suffix of the file names of pictures for held-out images, if a report covers both kinds of images.
VALIDATION = "-validation"


def named(name: str, suffix: str) -> str:
    """Insert a suffix before the extension of a file name."""
    return name.removesuffix(".png") + suffix + ".png"


# Every file that a report may draw, and what it shows.
PICTURE_MEANINGS = {
    **_WHAT,
    **{named(name, VALIDATION): f"{what}, held-out images" for name, what in _WHAT.items()},
}


def draw_pictures(grid: Grid, out: Path, suffix: str, task: str) -> list[Picture]:
    """Draw the pictures that a grid's runs have data for.

    Args:
        grid: The entries.
        out: The directory for the files.
        suffix: Suffix of the file names, before the extension.
        task: Data set, sizes and network, for the titles.
    """
    pictures = []
    split = grid.evaluated
    lines = "Line: mean over the finished seeds; band: from the lowest to the highest of them."
    if len(grid.rows) > MOST:
        lines += (
            f" Drawn are {MOST} of {len(grid.rows)} rows: SGDM, SGD-PH, and those with the highest "
            "final accuracy."
        )
    drawn = f"{task}; line: mean over seeds, band: lowest to highest"
    if any(group.finished and group.finished[0].metrics for group in grid.groups):
        path = out / named(EPOCHS, suffix)
        draw_curves(grid, "epochs", path, drawn)
        what = f"{split.capitalize()} accuracy and training loss over epochs"
        pictures.append(Picture(path, what, lines))
    if any(run.seconds for group in grid.groups for run in group.finished):
        path = out / named(SECONDS, suffix)
        draw_curves(grid, "seconds", path, drawn)
        what = f"{split.capitalize()} accuracy and training loss over seconds of training"
        meaning = (
            f"{lines} Between the ends of its epochs a run's curve is straight; after its end it "
            f"stays where it ended. The axis ends at {BEYOND} times the time that the systems took "
            "in the median. Seconds of runs that shared a machine, or had different ones, "
            "do not compare."
        )
        pictures.append(Picture(path, what, meaning))
    surfaces, settings = find_sensitivity(grid)
    what = f"Final {split} accuracy over"
    if surfaces:
        path = out / named(MAPS, suffix)
        draw_surfaces(surfaces, path, f"{what} two settings")
        meaning = (
            "Mean ± standard deviation over n finished seeds; the best mean is framed. The colours "
            "end below where few settings failed."
        )
        pictures.append(Picture(path, f"{what} two settings", meaning))
    if settings:
        path = out / named(LINES, suffix)
        draw_lines(settings, path, f"{what} one setting")
        meaning = "Mean over finished seeds, bars: sample standard deviation; ×: no run finished."
        pictures.append(Picture(path, f"{what} one setting", meaning))
    return pictures
