"""Tables and a picture of what ``curvature_study.py`` has run."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from scipy.stats import ttest_rel

from sgdph.lab.reports.statistics import holm

REFERENCE = "row-sum"
LABELS = {
    "sgdm": "SGDM",
    "row-sum": "SGD-PH, row sum (the paper)",
    "hutchinson": "SGD-PH, Hutchinson",
    "hutchinson-every-10": "SGD-PH, Hutchinson, interval 10",
    "hutchinson-all": "SGD-PH, Hutchinson, all at once",
    "exact": "SGD-PH, exact diagonal (lr, wd not tuned)",
    "mean": "control: mean multiplier",
    "shuffled": "control: shuffled multipliers",
    "fixed-1": "control: multiplier 1",
    "fixed-10": "control: multiplier 10",
}


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of a paired t-test; 1 where every difference is zero."""
    if all(a == b for a, b in zip(first, second, strict=True)):
        return 1.0
    return float(ttest_rel(first, second).pvalue)


def of_task(lines: Sequence[dict[str, Any]], systems: Sequence[str]) -> list[dict[str, Any]]:
    """Make one row for each system that has runs: mean, deviation, difference to the reference."""
    tests = [line for line in lines if line["phase"] == "test"]
    by_system = {s: [line for line in tests if line["system"] == s] for s in systems}
    for system, runs in by_system.items():
        points = sorted({(run["lr"], run["weight_decay"]) for run in runs})
        if len(points) > 1:
            raise SystemExit(
                f"{system} was trained at several settings (lr, weight decay): {points}; a row of "
                "the table is of one, so keep each in a file of its own"
            )
    reference = {line["seed"]: line for line in by_system[REFERENCE]}
    rows = []
    for system, runs in by_system.items():
        if not runs:
            continue
        good = [run for run in runs if run["accuracy"] is not None]
        accuracies = [100 * run["accuracy"] for run in good]
        pairs = [
            (100 * run["accuracy"], 100 * reference[run["seed"]]["accuracy"])
            for run in good
            if run["seed"] in reference and reference[run["seed"]]["accuracy"] is not None
        ]
        rows.append(
            {
                "system": system,
                "lr": runs[0]["lr"],
                "weight_decay": runs[0]["weight_decay"],
                "n": len(accuracies),
                "diverged": len(runs) - len(good),
                "accuracy": statistics.mean(accuracies) if accuracies else math.nan,
                "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else math.nan,
                "loss": statistics.mean(run["loss"] for run in good) if good else math.nan,
                "difference": statistics.mean(a - b for a, b in pairs) if pairs else math.nan,
                "p": (
                    paired_p(*zip(*pairs, strict=True))
                    if system != REFERENCE and len(pairs) > 1
                    else None
                ),
                "multiplier": statistics.median(
                    run["newton_multiplier"]["median"]
                    for run in good
                    if run["newton_multiplier"] and "median" in run["newton_multiplier"]
                )
                if any((run["newton_multiplier"] or {}).get("median") for run in good)
                else None,
            }
        )
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay rows out as Markdown."""
    text = (
        "| system | lr, wd | test accuracy % | test loss | against the row sum | p (Holm) |\n"
        "|---|---|---|---|---|---|\n"
    )
    for row in rows:
        own = row["system"] == REFERENCE
        p = "" if own or "p_holm" not in row else f"{row['p_holm']:.3f}"
        difference = "" if own else f"{row['difference']:+.2f}"
        count = f"{row['n']}" + (f", {row['diverged']} diverged" if row["diverged"] else "")
        text += (
            f"| {LABELS[row['system']]} | {row['lr']:g}, {row['weight_decay']:g} "
            f"| {row['accuracy']:.2f} ± {row['accuracy_std']:.2f} (n = {count}) "
            f"| {row['loss']:.4f} | {difference} | {p} |\n"
        )
    return text


def draw(tasks: dict[str, list[dict[str, Any]]], lines: dict[str, list[Any]], file: Path) -> None:
    """Draw every run's test accuracy as a dot, a system a row, a task a panel."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4.2 * len(tasks) + 2, 4.4), layout="constrained", squeeze=False
    )
    systems = [s for s in LABELS if any(row["system"] == s for r in tasks.values() for row in r)]
    for axis, (task, rows) in zip(axes[0], tasks.items(), strict=True):
        for row in rows:
            y = systems.index(row["system"])
            values = [
                100 * line["accuracy"]
                for line in lines[task]
                if line["phase"] == "test"
                and line["system"] == row["system"]
                and line["accuracy"] is not None
            ]
            control = LABELS[row["system"]].startswith("control")
            colour = "#9a6700" if control else "#0a5db0"
            colour = "#555555" if row["system"] == "sgdm" else colour
            axis.plot(values, [y] * len(values), "o", color=colour, alpha=0.45, markersize=5)
            axis.plot([row["accuracy"]], [y], "|", color=colour, markersize=18, markeredgewidth=2.5)
        axis.axvline(
            next(row["accuracy"] for row in rows if row["system"] == REFERENCE),
            color="#0a5db0",
            linewidth=0.8,
            linestyle=":",
        )
        axis.set_title(task)
        axis.locator_params(axis="x", nbins=6)
        axis.set_xlabel("test accuracy, %")
        axis.set_ylim(len(systems) - 0.5, -0.5)
        axis.set_yticks(range(len(systems)), [LABELS[s] for s in systems])
        axis.grid(axis="x", alpha=0.25)
        if axis is not axes[0][0]:
            axis.set_yticklabels([])
    figure.savefig(file, dpi=130)
    plt.close(figure)


def write_report(
    out: Path, tasks: Sequence[str], systems: Sequence[str], seeds: Sequence[int]
) -> None:
    """Write ``summary.json``, ``tables.md`` and ``training.png`` beside the tasks' lines."""
    lines = {
        task: [json.loads(line) for line in (out / f"{task}.jsonl").read_text().splitlines()]
        for task in tasks
        if (out / f"{task}.jsonl").exists()
    }
    rows = {task: of_task(lines[task], systems) for task in lines}
    rows = {task: found for task, found in rows.items() if found}
    text = "".join(f"## {task}\n\n{table(found)}\n" for task, found in rows.items())
    (out / "tables.md").write_text(text)
    (out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, lines, out / "training.png")
    print(text)
    for name in ("tables.md", "summary.json", "training.png"):
        print((out / name).resolve())
