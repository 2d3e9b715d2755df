"""What ``--dry-run`` says: the runs, and how long they would take here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from sgdph.lab.progress import say
from sgdph.lab.reports.table import Column, Table
from sgdph.lab.sweep.estimate import Estimate
from sgdph.lab.sweep.plan import Plan, PlannedRun
from sgdph.lab.sweep.shapes import shape_of
from sgdph.lab.sweep.state import state_of

COLUMNS = (
    Column("cell", "left"),
    *map(Column, ("runs", "done", "epochs")),
    Column("images", form=","),
    *map(Column, ("a step", "a run", "left")),
)


def dry_run(
    plan: Plan, runs: Sequence[PlannedRun], out: Path, jobs: int | None, console: Console
) -> None:
    """Say what would be run and how long it would take here, and leave no file behind."""
    ended = set(state_of(out, runs).ended)
    left = [planned for planned in runs if planned.name not in ended]
    estimate = Estimate(left, partial(say, console))
    console.print(estimate_table(plan, runs, ended, estimate).rich())
    total = estimate.total([planned.config for planned in left])
    say(
        console,
        f"Estimated: {total} for the {len(left)} runs left, one after another on this machine, "
        "from a few steps on noise; reading image files is not in it.",
    )
    if jobs is not None and jobs > 1:
        say(
            console,
            f"--jobs {jobs} divides that by at most {jobs}, where each has a GPU, or a core, of "
            "its own.",
        )
    state = "not there yet" if not out.exists() else f"{len(ended)} of {len(runs)} runs ended"
    say(console, f"The runs lie, or would lie, in {out.resolve()} ({state}).")


def estimate_table(
    plan: Plan, runs: Sequence[PlannedRun], ended: set[str], estimate: Estimate
) -> Table:
    """Lay out cells, their runs, what is done, and the time that is left."""
    rows = []
    for name, config in plan.cells.items():
        own = [planned for planned in runs if planned.name.rpartition("-seed")[0] == name]
        if not own:
            continue
        done = sum(planned.name in ended for planned in own)
        times: tuple[object, ...] = ("", "", "")
        if done < len(own):
            run = estimate.run(config)
            times = (estimate.step(config), run, run * (len(own) - done))
        rows.append((name, len(own), done, config.epochs, shape_of(config).train, *times))
    return Table(COLUMNS, tuple(rows))
