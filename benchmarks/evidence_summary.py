"""Draw the picture of a comparison of ``evidence.py``: final accuracies and times of each system.

    python benchmarks/evidence_summary.py mnist5k

The picture shows every seed's final test accuracy, and the time per epoch. The runs are read from
``results/evidence/TASK/table``. The picture is written to ``results/evidence/TASK/systems.png``.
``make tables`` writes a table of the same values. If there is a directory ``TASK-carried``, the
README's setting is drawn too: SGD-PH as in the snippet, with the lr and weight decay of SGDM.
"""

from __future__ import annotations

import argparse
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from comparison import BASELINE, Row, by_system, compare
from evidence import TASKS

from sgdph.lab.errors import LabError
from sgdph.lab.reports.figure import figure
from sgdph.lab.reports.styles import COLOURS, SMALL, WIDTH
from sgdph.lab.run.records import RunRecord

RESULTS = Path("results/evidence")
BLUE, ORANGE, _, _, _, _, BLACK, *_ = COLOURS
# The setting that README recommends: the label of its runs, and its name in the picture.
CHEAP = "SGD-PH, Hutchinson, interval 10"
RECOMMENDED = "SGD-PH as in README: Hutchinson, interval 10, SGDM's settings"


def colour(label: str) -> str:
    """Return the colour for SGD-PH, for controls without curvature, or for other systems."""
    if label.startswith("control"):
        return BLACK
    return ORANGE if label.startswith("SGD-PH") else BLUE


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation, which is 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def draw(systems: Mapping[str, Row], title: str, path: Path) -> None:
    """Draw the picture into a file."""
    with figure(path, WIDTH, 0.8 + 0.42 * len(systems), title) as made:
        left, right = made.subplots(1, 2, sharey=True, width_ratios=(5, 3))
        for i, (label, row) in enumerate(systems.items()):
            finals = [100 * each for each in row.final]
            for axes, values in ((left, finals), (right, row.times)):
                if not values:
                    axes.text(1.0, i, " not measured", va="center", fontsize=SMALL)
                    continue
                axes.plot(values, [i] * len(values), "o", color=colour(label), alpha=0.35, ms=4)
                mean, spread = mean_and_spread(values)
                axes.errorbar(mean, i, xerr=spread, fmt="D", color=colour(label), capsize=3)
            if label == BASELINE:
                mean, spread = mean_and_spread(finals)
                left.axvspan(mean - spread, mean + spread, color=BLUE, alpha=0.12, lw=0)
                right.axvline(1.0, color=BLUE, alpha=0.3)
        names = [textwrap.fill(f"{x} ({len(row.final)})", 26) for x, row in systems.items()]
        left.set_yticks(range(len(systems)), names, fontsize=SMALL)
        for label, tick in zip(systems, left.get_yticklabels(), strict=True):
            tick.set_fontweight("bold" if label == RECOMMENDED else "normal")
        left.invert_yaxis()
        left.set_xlabel("final test accuracy (%)")
        right.set_xlabel(f"time per epoch\n/ {BASELINE}'s")
        right.set_xscale("log")
        right.set_xticks([1, 2, 4], ["1", "2", "4"])
        right.minorticks_off()
        for axes in (left, right):
            axes.grid(False, axis="y")


def recommended(folder: Path) -> list[RunRecord]:
    """Read the runs of README's setting; empty if there are none."""
    return by_system(folder, [CHEAP]).get(CHEAP, []) if folder.is_dir() else []


def with_recommended(
    systems: Mapping[str, list[RunRecord]], runs: list[RunRecord]
) -> dict[str, list[RunRecord]]:
    """Insert README's setting before the first SGD-PH."""
    found: dict[str, list[RunRecord]] = {}
    for label, group in systems.items():
        if label.startswith("SGD-PH"):
            found.setdefault(RECOMMENDED, runs)
        found[label] = group
    return found


def main() -> None:
    """Draw the picture of one task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS}/TASK")
    given = parser.parse_args()
    task, out = TASKS[given.task], given.out or RESULTS / given.task
    try:
        systems = by_system(out / "table", list(task.systems))
    except LabError as error:
        parser.error(f"{error}; `python benchmarks/evidence.py {given.task}` trains them")
    if BASELINE not in systems:
        parser.error(f"no finished run of {BASELINE} in {out / 'table'}, to compare with")
    carried = recommended(out.with_name(f"{out.name}-carried") / "table")
    if carried:
        systems = with_recommended(systems, carried)
    path = out / "systems.png"
    # The README's setting is not tuned: it uses SGDM's settings, as its name says.
    named = (
        task.title.removesuffix(", every system tuned") if RECOMMENDED in systems else task.title
    )
    title = f"{named}\n(number of seeds), diamond: mean ± std, band: {BASELINE}'s"
    draw(compare(systems, {*task.untimed, RECOMMENDED}), title, path)
    print(path)


if __name__ == "__main__":
    main()
