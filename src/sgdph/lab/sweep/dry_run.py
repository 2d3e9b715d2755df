"""What ``--dry-run`` prints: the runs, and how long they would take on this machine."""

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
    plan: Plan,
    runs: Sequence[PlannedRun],
    out: Path,
    jobs: int | None,
    console: Console,
    *,
    overwrite: bool,
) -> None:
    """Print what would be trained and how long it would take here, without writing a file."""
    found = state_of(out, runs).ended
    ended = set() if overwrite else set(found)
    left = [planned for planned in runs if planned.name not in ended]
    estimate = Estimate(left, partial(say, console))
    console.print(estimate_table(plan, runs, ended, estimate).rich())
    total = estimate.total([planned.config for planned in left])
    runs_left = f"{len(left)} {'run' if len(left) == 1 else 'runs'}"
    say(
        console,
        f"Estimated: {total} for the {runs_left} left, trained one after another on this machine. "
        "Measured on a few steps of noise. The time for reading image files is not included.",
    )
    if jobs is not None and jobs > 1:
        say(
            console,
            f"With --jobs {jobs} it takes at least 1/{jobs} of that: 1/{jobs} if each run has a "
            "core or a GPU of its own.",
        )
    if out.exists():
        deletes = "; --overwrite deletes them" if overwrite and found else ""
        state = f"{len(found)} of {len(runs)} runs have ended{deletes}"
    else:
        state = "which does not exist yet"
    say(console, f"Directory of the runs: {out.resolve()} ({state}).")


def estimate_table(
    plan: Plan, runs: Sequence[PlannedRun], ended: set[str], estimate: Estimate
) -> Table:
    """Return a table of the cells, their runs, how many are done, and the time that is left."""
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
