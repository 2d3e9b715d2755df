"""A comparison of ``evidence.py``, each system beside SGDM: a table and a picture.

    python benchmarks/evidence_summary.py mnist5k

Read from the runs in ``results/evidence/TASK/table``. ``systems.md`` has the final test accuracy,
its distance to SGDM's with Welch's test (corrected by Holm's method for their number), the mean
over all epochs and the time per epoch; ``systems.png`` every seed's accuracy and the time.
"""

from __future__ import annotations

import argparse
import statistics
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from evidence import OUT, TASKS

from sgdph.lab.errors import LabError
from sgdph.lab.files import write_text
from sgdph.lab.reports.figure import COLOURS, figure
from sgdph.lab.reports.statistics import Spread, holm, welch
from sgdph.lab.run.records import RunRecord, read_runs

BLUE, ORANGE, _, _, _, _, BLACK = COLOURS


def by_system(folder: Path, labels: Sequence[str]) -> dict[str, list[RunRecord]]:
    """Read the finished runs of each system, in the task's order."""
    runs = [run for run in read_runs([folder]).records if run.status == "finished"]
    found = {label: [run for run in runs if run.config.label == label] for label in labels}
    return {label: group for label, group in found.items() if group}


def colour(label: str) -> str:
    """Tell SGD-PH, controls without curvature, and everybody else apart."""
    if label.startswith("control"):
        return BLACK
    return ORANGE if label.startswith("SGD-PH") else BLUE


def seconds(run: RunRecord) -> float:
    """Return the seconds of training per epoch."""
    return run.seconds[-1] / len(run.seconds)


def against_sgdm(
    systems: Mapping[str, Sequence[RunRecord]], untimed: Collection[str]
) -> dict[str, list[float]]:
    """Return the seconds per epoch of every run, as ratios to the mean of SGDM's."""
    plain = statistics.mean(seconds(run) for run in systems["SGDM"])
    timed = [label for label in systems if label not in untimed]
    return {label: [seconds(run) / plain for run in systems[label]] for label in timed}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation, 0 where one value has none."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def draw(
    systems: Mapping[str, Sequence[RunRecord]],
    ratios: Mapping[str, Sequence[float]],
    title: str,
    path: Path,
) -> None:
    """Draw the picture."""
    with figure(path, 10, 1.6 + 0.36 * len(systems), title) as made:
        left, right = made.subplots(1, 2, sharey=True, width_ratios=(7, 4))
        for row, (label, runs) in enumerate(systems.items()):
            finals = [100 * (run.figure("final") or 0.0) for run in runs]
            for axes, values in ((left, finals), (right, ratios.get(label))):
                if values is None:
                    axes.text(1.0, row, "  not measured", va="center", fontsize="small")
                    continue
                axes.plot(values, [row] * len(values), "o", color=colour(label), alpha=0.35, ms=4)
                mean, spread = mean_and_spread(values)
                axes.errorbar(mean, row, xerr=spread, fmt="D", color=colour(label), capsize=3)
            if label == "SGDM":
                mean, spread = mean_and_spread(finals)
                left.axvspan(mean - spread, mean + spread, color=BLUE, alpha=0.12, lw=0)
                right.axvline(1.0, color=BLUE, alpha=0.3)
        names = [textwrap.fill(f"{x} ({len(runs)})", 36) for x, runs in systems.items()]
        left.set_yticks(range(len(systems)), names, fontsize="small")
        left.invert_yaxis()
        left.set_xlabel("final test accuracy (%)")
        right.set_xlabel("time per epoch / SGDM's")
        right.set_xscale("log")
        right.set_xticks([1, 2, 4], ["1", "2", "4"])
        right.minorticks_off()
        for axes in (left, right):
            axes.grid(False, axis="y")


def table(systems: Mapping[str, Sequence[RunRecord]], ratios: Mapping[str, Sequence[float]]) -> str:
    """Write the table, every system tested against SGDM."""
    finals = {x: Spread.of([run.figure("final") or 0.0 for run in systems[x]]) for x in systems}
    others = [label for label in systems if label != "SGDM"]
    tests = {label: welch(finals[label], finals["SGDM"]) for label in others}
    # With a single seed there is no test yet, and none that the others must be corrected for.
    known = {label: p for label, p in tests.items() if p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    lines = [
        "| system | n | final test accuracy, % | minus SGDM's | p (Holm) | mean over epochs, % "
        "| time per epoch / SGDM's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, runs in systems.items():
        area = Spread.of([statistics.mean(run.accuracies) for run in runs])
        ratio = Spread.of(ratios[label]).show(1, 2) if label in ratios else "–"
        difference = 100 * ((finals[label].mean or 0.0) - (finals["SGDM"].mean or 0.0))
        p = f"{adjusted[label]:.2g}" if label in adjusted else "–"
        against = f"{difference:+.2f} | {p}" if label in tests else " | "
        lines.append(
            f"| {label} | {len(runs)} | {finals[label].show(100, 2)} | {against} "
            f"| {area.show(100, 2)} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both for one task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--out", type=Path, help=f"default: {OUT}/TASK")
    given = parser.parse_args()
    task, out = TASKS[given.task], given.out or OUT / given.task
    try:
        systems = by_system(out / "table", list(task.systems))
    except LabError as error:
        parser.error(f"{error}; `python benchmarks/evidence.py {given.task}` trains them")
    if "SGDM" not in systems:
        parser.error(f"no finished run of SGDM in {out / 'table'}, which all are compared with")
    ratios = against_sgdm(systems, task.untimed)
    write_text(out / "systems.md", table(systems, ratios))
    path = out / "systems.png"
    draw(systems, ratios, f"{task.title} (number of seeds; mean ± std, blue band: SGDM's)", path)
    print((out / "systems.md").read_text(), path, sep="\n")


if __name__ == "__main__":
    main()
