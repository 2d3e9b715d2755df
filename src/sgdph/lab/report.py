"""The page of a comparison, made of its run directories alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sgdph.lab.baselines import BASELINES
from sgdph.lab.files import write_text
from sgdph.lab.plots import draw_comparison
from sgdph.lab.records import Group, RunRecord, group_runs, load_runs, shared_fields
from sgdph.lab.table import FINAL, spread, to_csv, to_markdown

REPORT, TABLE, PLOT = "report.md", "table.csv", "comparison.png"


def write_report(directory: Path) -> list[Group]:
    """Write the page, the table and the picture of the runs under a directory into it.

    Args:
        directory: Holds one directory per run.

    Returns:
        The groups of runs that were reported.

    Raises:
        LabError: If there is no run, or one cannot be read.
    """
    records = load_runs(directory)
    groups = group_runs(records)
    title = f"{describe_task(records)}\n{describe_bands(groups)}"
    draw_comparison(groups, directory / PLOT, title)
    write_text(directory / TABLE, to_csv(groups))
    write_text(directory / REPORT, to_page(records, groups, directory))
    return groups


def verdict(groups: Sequence[Group]) -> str:
    """Say what the final accuracies show, and no more.

    Two groups tie where their intervals, mean ± standard deviation over seeds, meet. With fewer
    than two finished seeds there is no interval, so nothing is said.
    """
    judged = [group for group in groups if len(group.finished) > 1]
    if len(judged) < 2:
        return "Fewer than two optimizers have two finished seeds, so no comparison is drawn."
    spreads = {group.label: spread(group, FINAL) for group in judged}
    bounds = {
        label: (each.mean - each.std, each.mean + each.std)
        for label, each in spreads.items()
        if each.mean is not None and each.std is not None
    }
    ranked = sorted(bounds, key=lambda label: spreads[label].mean or 0.0, reverse=True)
    first = ranked[0]
    level = [label for label in ranked[1:] if bounds[label][1] >= bounds[first][0]]
    if level:
        return (
            f"A tie in final test accuracy between {first} and {', '.join(level)}: their intervals "
            "of mean ± standard deviation meet."
        )
    counts = ", ".join(f"{group.label} {len(group.finished)}" for group in judged)
    others = ", ".join(ranked[1:])
    return (
        f"In final test accuracy {first} lies above {others} by more than the spread over seeds "
        f"(intervals of mean ± standard deviation do not meet; seeds: {counts}). That "
        "holds for this task and these settings."
    )


def notes(groups: Sequence[Group]) -> list[str]:
    """Say how the table is to be read, as far as this one calls for it."""
    lines = [
        "n counts the finished runs, and the figures are theirs alone; ± is the sample standard "
        "deviation over seeds (– where one seed has none).",
        "The final accuracy, after the last epoch, is the one to quote. The best one was picked on "
        "the test images, and so flatters.",
        "The training loss is the mean over the last epoch as it trained. Seconds are training "
        "alone, without evaluation.",
    ]
    diverged = sum(group.count("diverged") for group in groups)
    if diverged:
        lines.append(
            f"{diverged} run(s) diverged (the loss became infinite or undefined) and are not in "
            "the means."
        )
    return lines


def describe_task(records: Sequence[RunRecord]) -> str:
    """Name data set, size and network, as far as the runs have them in common."""
    shared = shared_fields(records)
    sizes = {
        (run.summary.get("train_images"), run.summary.get("test_images"))
        for run in records
        if run.summary
    }
    parts = [str(shared.get("dataset", "several data sets"))]
    if len(sizes) == 1:
        train, test = sizes.pop()
        parts.append(f"{train:,} training and {test:,} test images")
    parts.append(str(shared.get("model", "several networks")))
    return ", ".join(parts)


def describe_bands(groups: Sequence[Group]) -> str:
    """Say what the picture's lines and bands are, and over how many seeds."""
    counts = sorted({len(group.finished) for group in groups})
    if counts == [1]:
        return "one seed"
    numbers = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"line: mean over {numbers} seeds, band: lowest to highest"


def to_page(records: Sequence[RunRecord], groups: Sequence[Group], directory: Path) -> str:
    """Write the markdown page."""
    shared = shared_fields(records)
    recipe = ", ".join(
        f"{name.replace('_', ' ')} {shared[name]}"
        for name in ("epochs", "batch_size", "schedule")
        if name in shared
    )
    sections = [
        f"# {' and '.join(group.label for group in groups)}",
        f"{describe_task(records)}; {recipe}.",
        to_markdown(groups).rstrip(),
        verdict(groups),
        "\n".join(f"* {line}" for line in notes(groups)),
        f"![Test accuracy and training loss over epochs]({PLOT})",
        "## Settings",
        "\n".join(f"* {group.label}: {_settings(group)}" for group in groups),
        "## Runs",
        _run_table(records, directory),
        "## Machine",
        _machines(records),
    ]
    return "\n\n".join(sections) + "\n"


def _settings(group: Group) -> str:
    config = dataclasses.asdict(group.runs[0].config)
    names = BASELINES[group.runs[0].config.optimizer].defaults
    return ", ".join(f"{name} {config[name]}" for name in names)


def _run_table(records: Sequence[RunRecord], directory: Path) -> str:
    lines = [
        "| run | seed | status | final test accuracy, % | best (epoch) |",
        "|---|---:|---|---:|---:|",
    ]
    for run in records:
        final, best = run.figure("final"), run.figure("best")
        name = run.path.relative_to(directory).as_posix()
        shown_final = "–" if final is None else f"{final * 100:.2f}"
        shown_best = "–" if best is None else f"{best * 100:.2f} ({run.summary['best_epoch']})"
        lines.append(
            f"| [{name}]({name}/) | {run.config.seed} | {run.status} | {shown_final} | "
            f"{shown_best} |"
        )
    return "\n".join(lines)


def _machines(records: Sequence[RunRecord]) -> str:
    """List each kind of machine, with the runs' commands, once."""
    keys = (
        "cpu",
        "device",
        "device_name",
        "threads",
        "platform",
        "python",
        "torch",
        "sgdph",
        "git_commit",
    )
    titles = [key.replace("_", " ") for key in keys]
    machines = dict.fromkeys(
        "; ".join(
            f"{title} {run.env[key]}"
            for key, title in zip(keys, titles, strict=True)
            if run.env.get(key) is not None
        )
        for run in records
        if run.env
    )
    commands = dict.fromkeys(run.env["command"] for run in records if "command" in run.env)
    lines = [f"* {machine}" for machine in machines]
    return "\n".join(lines + [f"* `{command}`" for command in commands])
