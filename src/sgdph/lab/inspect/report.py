"""The page, table and pictures of an inspection, made of its directory alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sgdph.lab.files import write_text
from sgdph.lab.inspect.directory import (
    ERRORS,
    HEAT_MAPS,
    MULTIPLIERS,
    PAGE,
    SHARES,
    TABLE,
    InspectDirectory,
)
from sgdph.lab.inspect.figures import (
    ESTIMATE_FIELDS,
    CheckpointFigures,
    Inspection,
    counted,
)
from sgdph.lab.inspect.heatmaps import draw_blocks
from sgdph.lab.inspect.pictures import draw_errors, draw_multipliers, draw_shares
from sgdph.lab.inspect.tables import (
    COLUMNS,
    LABELS,
    number,
    rows,
    spread_over_layers,
    summary_rows,
    to_csv,
)
from sgdph.lab.reports.plots import embedded
from sgdph.lab.reports.template import render

TEMPLATE = Path(__file__).parent / "report.html.jinja"
MEANINGS = {
    SHARES: (
        "Off-diagonal shares",
        "Each mark is the share of a block's Frobenius norm that lies off its diagonal: 0 is a "
        "diagonal block, 1 one whose diagonal is zero. On the left it is taken of each batch's "
        "block and averaged, on the right of the mean block, where what batches differ in has "
        "partly cancelled.",
    ),
    ERRORS: (
        "Errors of the estimates",
        "The distance of each estimate from the reference diagonal, both rectified, as a share of "
        "the reference's norm: 0 is equal, and an estimate of all zeros has 1. The reference is "
        "itself a mean over B batches, and so noisy; all errors hold its noise, also those of the "
        "exact diagonal of other batches, which show what batches alone do. The "
        "one constant is told from the reference itself.",
    ),
    MULTIPLIERS: (
        "Newton multipliers",
        "How many times SGD's step each channel takes before weight decay: τ/(D̂+ε), at most τ/ε, "
        "except 1 by definition where a parameter was not visited yet (a hollow grey circle), and "
        "whatever a control of SGD-PH takes instead. A narrow distribution means that the layer is "
        "stepped as by one learning rate of its own.",
    ),
    HEAT_MAPS: (
        "Mean blocks",
        "The mean Hessian block of a few parameters, each divided by its largest magnitude; red is "
        "positive, blue negative. A diagonal block would be white but for its diagonal.",
    ),
}
DRAW = {
    SHARES: draw_shares,
    ERRORS: draw_errors,
    MULTIPLIERS: draw_multipliers,
    HEAT_MAPS: draw_blocks,
}
ENVIRONMENT = (
    *("command", "git_commit", "sgdph", "torch", "python", "cpu", "device", "device_name"),
    *("threads", "platform", "started"),
)


@dataclass(frozen=True)
class Picture:
    """A picture on the page, its bytes inside the page."""

    title: str
    meaning: str
    source: str


def write_report(directory: InspectDirectory) -> None:
    """Write page, table and pictures beside the figures that they are made of.

    Nothing is written before a checkpoint is finished.

    Raises:
        LabError: The directory cannot be read.
    """
    inspection = directory.read()
    if not inspection.checkpoints:
        return
    for name, draw in DRAW.items():
        draw(inspection, directory.path / name)
    write_text(directory.path / TABLE, to_csv(inspection.checkpoints))
    write_text(directory.path / PAGE, to_page(inspection, directory.path))


def describe_checkpoint(figures: CheckpointFigures) -> str:
    """Put a checkpoint's outcome into one line."""
    shares = [block.off_diagonal_share_batch or 0.0 for block in figures.blocks]
    row_sum = spread_over_layers(figures, "row_sum_one", "relative_error")
    error = "unknown" if row_sum is None else number(row_sum.median)
    return (
        f"{len(figures.blocks)} blocks in {figures.seconds:.1f} s, off-diagonal share "
        f"{min(shares):.2f} to {max(shares):.2f}, row sum's median error {error}"
    )


def notes(inspection: Inspection) -> list[str]:
    """Say how the table is to be read, as far as this one calls for it."""
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
        "noisy, and all errors hold its noise. The shares are of all batches.",
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
    """Say which Newton multipliers are not of an average that the optimizer holds."""
    optimizer, b = inspection.config.optimizer, inspection.settings.batches
    lines = []
    sources = {m.source for each in inspection.checkpoints for m in each.multipliers}
    if "row_sum_average" in sources:
        lines.append(
            f"{optimizer} has no Newton multipliers: shown are those that the row sums' average "
            f"over {counted(b, 'visit', 'visits')} would give at SGD-PH's default τ and ε."
        )
    if "control" in sources:
        lines.append(
            f"{optimizer} is a control of SGD-PH: its multipliers are its own, not τ/(D̂+ε)."
        )
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
    """Say how many blocks were not taken, and why."""
    assert inspection.plan is not None
    plan, settings = inspection.plan, inspection.settings
    if not plan.left_out:
        return "All Newton parameters were inspected."
    count = f"{len(plan.left_out)} of {len(plan.candidates)} Newton parameters"
    if settings.layers is not None:
        return f"Left out are {count}, not among --layers {settings.layers}."
    return f"Left out are {count}, to stay within --budget {settings.budget:g} s."


def to_page(inspection: Inspection, directory: Path) -> str:
    """Write the page; nothing in it is fetched from elsewhere."""
    assert inspection.plan is not None
    pictures = [
        Picture(*MEANINGS[name], embedded(directory / name))
        for name in (ERRORS, SHARES, HEAT_MAPS, MULTIPLIERS)
    ]
    return render(
        TEMPLATE,
        inspection=inspection,
        notes=notes(inspection),
        left_out=inspection.plan.left_out,
        pictures=pictures,
        columns=COLUMNS,
        rows=rows,
        summary=summary_rows(inspection),
        estimates=[(LABELS[name], meaning) for name, meaning in ESTIMATE_FIELDS.items()],
        machines=machines(inspection),
        config=settings_of_run(inspection),
    )


def machines(inspection: Inspection) -> list[list[tuple[str, str]]]:
    """List each session's machine and command once."""
    found: list[list[tuple[str, str]]] = []
    for each in inspection.checkpoints:
        known = [
            (key.replace("_", " "), str(each.environment[key]))
            for key in ENVIRONMENT
            if each.environment.get(key) is not None
        ]
        # Every checkpoint has its own moment; the first of a session tells enough.
        if not found or found[-1][:-1] != known[:-1]:
            found.append(known)
    return found


def settings_of_run(inspection: Inspection) -> list[tuple[str, str]]:
    """List the run's settings that it has."""
    return [
        (name.replace("_", " "), str(value))
        for name, value in vars(inspection.config).items()
        if value is not None
    ]
