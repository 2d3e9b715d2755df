"""The page, tables and pictures of an inspection, made from its directory alone."""

from __future__ import annotations

from dataclasses import replace

from sgdph.lab.inspect.directory import (
    ERRORS,
    GENERATOR,
    HEAT_MAPS,
    HOLDS,
    MULTIPLIERS,
    SHARES,
    TITLE,
    InspectDirectory,
)
from sgdph.lab.inspect.figures import ESTIMATE_FIELDS, CheckpointFigures, Inspection
from sgdph.lab.inspect.pictures import draw_blocks, draw_errors, draw_multipliers, draw_shares
from sgdph.lab.inspect.tables import (
    LABELS,
    blocks_table,
    figures_table,
    left_out_table,
    spread_over_layers,
    summary_table,
)
from sgdph.lab.reports.folder import Page, write_folder
from sgdph.lab.reports.numbers import counted, two_decimals
from sgdph.lab.reports.page import Block, Bullets, Picture, Section, machine_section
from sgdph.lab.reports.table import Column, Table

# Explanation of the short headings in the table of layers.
HEADINGS = (
    "Of one batch: “off-diag”, the share of the Frobenius norm off the diagonal, “neg”, the share "
    "of negative diagonal entries, and the relative errors of “row sum”, one Hutchinson “probe” "
    "and the “exact” diagonal. “mean” is of the mean block, “avg” the error of the average over "
    "visits, “held” that of the optimizer's own, “const” that of one constant; last the median of "
    "the Newton multipliers."
)
SECONDS = (
    "Seconds are estimates of dense blocks on all batches of all checkpoints, from timed products "
    "or one block."
)
MEANINGS = {
    SHARES: (
        "Off-diagonal shares",
        "Each mark is the share of a block's Frobenius norm that lies off its diagonal: 0 is a "
        "diagonal block, 1 a block whose diagonal is zero. On the left it is the mean over the "
        "blocks of single batches. On the right it is that of the mean block, in which the "
        "differences between batches partly cancel.",
    ),
    ERRORS: (
        "Errors of the estimates",
        "The distance of each estimate from the reference diagonal, both rectified, as a share of "
        "the reference's norm: 0 is equal, and an estimate of all zeros has 1. The reference is a "
        "mean over B batches, so it is noisy, and its noise is in all errors. The error of the "
        "exact diagonal of other batches shows the noise alone. The one constant is computed from "
        "the reference itself.",
    ),
    MULTIPLIERS: (
        "Newton multipliers",
        "How many times SGD's step each channel takes before weight decay: τ/(D̂+ε), at most τ/ε, "
        "except 1 by definition for a parameter that was not visited yet (a hollow grey circle). "
        "Controls of SGD-PH have multipliers of their own. A narrow distribution means that the "
        "layer trains as with one learning rate of its own.",
    ),
    HEAT_MAPS: (
        "Mean blocks",
        "The mean Hessian block of a few parameters, each divided by its largest magnitude; red is "
        "positive, blue negative. A diagonal block would be white except for its diagonal.",
    ),
}
# The pictures, in the order of the page.
DRAW = {
    ERRORS: draw_errors,
    SHARES: draw_shares,
    HEAT_MAPS: draw_blocks,
    MULTIPLIERS: draw_multipliers,
}


def write_report(directory: InspectDirectory) -> None:
    """Write page, table and pictures into the inspection's directory.

    Nothing is written if no checkpoint is finished yet.

    Raises:
        LabError: If the directory cannot be read.
    """
    inspection = directory.read()
    if not inspection.checkpoints:
        return
    for name, draw in DRAW.items():
        draw(inspection, directory.path / name)
    pictures = [Picture(directory.path / name, *MEANINGS[name]) for name in DRAW]
    blocks = tuple(page_blocks(inspection, pictures))
    page = Page(TITLE, blocks, GENERATOR)
    write_folder(directory.path, page, figures_table(inspection.checkpoints), HOLDS)


def page_blocks(inspection: Inspection, pictures: list[Picture]) -> list[Block]:
    """Return the content of the page."""
    assert inspection.plan is not None
    plan, last = inspection.plan, inspection.checkpoints[-1]
    layers = [
        Section(table.caption, [replace(table, caption="")], folded=each is not last)
        for each, table in ((each, blocks_table(each)) for each in inspection.checkpoints)
    ]
    left_out: list[Block] = ["Nothing: all Newton parameters were inspected."]
    if plan.left_out:
        left_out = [SECONDS, replace(left_out_table(plan), caption="")]
    estimates = [(LABELS[name], meaning) for name, meaning in ESTIMATE_FIELDS.items()]
    of_run = f", run `{inspection.run}`" if inspection.run else ""
    return [
        f"{inspection.task}{of_run}.",
        Bullets(notes(inspection)),
        Section("Errors of the estimates", [summary_table(inspection)]),
        *pictures,
        Section("All layers", [HEADINGS, *layers]),
        Section("Left out", left_out),
        Section("What the estimates are", [words_table(estimates)]),
        machine_section(each.environment for each in inspection.checkpoints),
        Section("The run's settings", [words_table(settings_of_run(inspection))], folded=True),
    ]


def words_table(pairs: list[tuple[str, str]]) -> Table:
    """Make a table of names and their meanings or values."""
    return Table((Column("", "left"), Column("", "left")), tuple(pairs))


def describe_checkpoint(figures: CheckpointFigures) -> str:
    """Summarise a checkpoint's results in one line."""
    shares = [block.off_diagonal_share_batch or 0.0 for block in figures.blocks]
    row_sum = spread_over_layers(figures, "row_sum_one")
    error = "unknown" if row_sum is None else two_decimals(row_sum.median)
    return (
        f"{len(figures.blocks)} blocks in {figures.seconds:.1f} s, off-diagonal share "
        f"{min(shares):.2f} to {max(shares):.2f}, row sum's median error {error}"
    )


def notes(inspection: Inspection) -> list[str]:
    """Explain how to read the tables, with the notes that apply to this inspection."""
    first = inspection.checkpoints[0].blocks[0]
    b = first.batches
    halves = (
        "one makes the estimates, the other the reference"
        if b == 1
        else f"{b} batches make the estimates, the other {b} the reference"
    )
    lines = [
        *inspection.warnings,
        f"Dense blocks on {2 * b} training batches of {first.batch_size}, the model in training "
        f"mode: {halves}. The reference is the diagonal of its mean block; so few batches make it "
        "noisy, and its noise is in all errors. The shares are of all batches.",
        "Errors are ‖|h| - |d|‖ / ‖d‖. The row sum is what the paper takes; it is not the "
        "diagonal.",
        f"Averages are of {counted(b, 'visit', 'visits')}, each on a fresh batch, with the "
        "optimizer's β₂ and bias correction. What the optimizer holds comes from its own "
        "visits on the way to the checkpoint.",
    ]
    if all(block.refreshes is None for each in inspection.checkpoints for block in each.blocks):
        lines.append("No average was held by the optimizer at these checkpoints.")
    return [*lines, *multiplier_notes(inspection), left_out_note(inspection)]


def multiplier_notes(inspection: Inspection) -> list[str]:
    """Describe the Newton multipliers that are not from an average held by the optimizer."""
    optimizer, b = inspection.config.optimizer, inspection.settings.batches
    lines = []
    sources = {m.source for each in inspection.checkpoints for m in each.multipliers}
    if "row_sum_average" in sources:
        lines.append(
            f"{optimizer} has no Newton multipliers: shown are those that the row sums' average "
            f"over {counted(b, 'visit', 'visits')} would give at SGD-PH's default τ and ε."
        )
    if "control" in sources:
        lines.append(f"{optimizer} is a control: its multipliers are its own, not τ/(D̂+ε).")
    for each in inspection.checkpoints:
        unvisited = sum(m.source == "unvisited" for m in each.multipliers)
        if unvisited:
            lines.append(
                f"At epoch {each.epoch}, {unvisited} of "
                f"{counted(len(each.multipliers), 'Newton parameter', 'Newton parameters')} had no "
                "visit yet: the multiplier is 1 there by definition."
            )
    return lines


def left_out_note(inspection: Inspection) -> str:
    """Describe how many blocks were left out, and why."""
    assert inspection.plan is not None
    plan, settings = inspection.plan, inspection.settings
    if not plan.left_out:
        return "All Newton parameters were inspected."
    count = f"{len(plan.left_out)} of {len(plan.candidates)} Newton parameters"
    if settings.layers is not None:
        return f"Left out are {count}, not among --layers {settings.layers}."
    return f"Left out are {count}, to stay within --budget {settings.budget:g} s."


def settings_of_run(inspection: Inspection) -> list[tuple[str, str]]:
    """List the run's settings that are set, and the start of the inspection if it is known."""
    settings = {**vars(inspection.config), **inspection.checkpoints[0].environment}
    names = [*vars(inspection.config), "started"]
    return [
        (name.replace("_", " "), str(settings[name]))
        for name in names
        if settings.get(name) is not None
    ]
