"""The files that a tuning ends in: the best settings, all trials, the page, the pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sgdph.lab.files import write_json, write_text
from sgdph.lab.options.settings import write_settings
from sgdph.lab.tune.outcome import Search, TrialRecord, read_searches, show_settings, to_json
from sgdph.lab.tune.plots import draw_budget, draw_sensitivity
from sgdph.lab.tune.record import (
    BEST,
    BUDGET,
    PAGE,
    SENSITIVITY,
    TRIALS,
    TuneDirectory,
    Tuning,
)
from sgdph.lab.tune.space import Range
from sgdph.lab.tune.study import STARTUP

COLUMNS = ("optimizer", "best, %", "its settings", "finished", "pruned", "diverged", "unfinished")
SOURCE = ("sgdph", "torch", "python", "git_commit", "cpu", "device_name", "command")


def write_outcome(
    directory: TuneDirectory, tuning: Tuning, environment: Mapping[str, Any]
) -> list[Search]:
    """Write what was found so far.

    Args:
        directory: The tuning's directory.
        tuning: What it is.
        environment: This process's machine and command.

    Returns:
        The optimizers' trials.
    """
    with directory.lock():
        searches = read_searches(directory, tuning)
        source = describe_source(tuning, searches, environment)
        found = {
            search.optimizer: {**tuning.fixed(search.optimizer), **search.best.settings}
            for search in searches
            if search.best is not None
        }
        write_json(
            directory.path / TRIALS,
            {"format": "sgdph-trials-1", **source, "optimizers": to_json(searches)},
        )
        if found:
            title = describe_task(tuning, searches)
            draw_sensitivity(searches, directory.path / SENSITIVITY, title)
            draw_budget(searches, directory.path / BUDGET, title)
            write_settings(directory.path / BEST, found, source)
        write_text(directory.path / PAGE, to_page(tuning, searches, source))
    return searches


def describe_source(
    tuning: Tuning, searches: Sequence[Search], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Say where the settings come from: the task, the budget, the machine."""
    config = tuning.config(tuning.optimizers[0])
    task = ("dataset", "train_size", "validation_size", "model", "epochs", "batch_size", "schedule")
    return {
        **{name: getattr(config, name) for name in task},
        "seed": tuning.seed,
        "judged_by": "final validation accuracy",
        "trials_of_each": tuning.trials,
        "sampler": tuning.sampler,
        "pruner": tuning.pruner,
        "found": {
            search.optimizer: {
                "validation_accuracy": search.best.accuracy,
                "trial": search.best.number,
                "finished": len(search.finished),
            }
            for search in searches
            if search.best is not None
        },
        # torch's version is a text of a kind of its own, which YAML would refuse.
        **{name: str(environment[name]) for name in SOURCE if environment.get(name) is not None},
    }


def describe_task(tuning: Tuning, searches: Sequence[Search]) -> str:
    """Name data set, sizes and network."""
    config = tuning.config(tuning.optimizers[0])
    sizes = {
        (trial.run.summary.get("train_images"), trial.run.summary.get("validation_images"))
        for search in searches
        for trial in search.finished
    }
    parts: list[str] = [config.dataset]
    if len(sizes) == 1:
        train, validation = sizes.pop()
        parts.append(f"{train:,} training and {validation:,} validation images")
    return ", ".join([*parts, config.model, f"{config.epochs} epochs"])


def rows(searches: Sequence[Search]) -> list[tuple[str, ...]]:
    """Write the table's rows, as :data:`COLUMNS` has them."""
    return [
        (
            search.optimizer,
            "–" if search.best is None else f"{100 * (search.best.accuracy or 0.0):.2f}",
            "–" if search.best is None else show_settings(search.best.settings),
            *(
                str(search.count(status))
                for status in ("finished", "pruned", "diverged", "unfinished")
            ),
        )
        for search in searches
    ]


def to_rich(searches: Sequence[Search]) -> Table:
    """Make the table for the terminal."""
    table = Table(title="Best settings on the validation images")
    for column in COLUMNS:
        words = column in ("optimizer", "its settings")
        table.add_column(column, justify="left" if words else "right")
    for row in rows(searches):
        table.add_row(*row)
    return table


def to_markdown(searches: Sequence[Search]) -> str:
    """Make the table for the page."""
    head = f"| {' | '.join(COLUMNS)} |\n|---|---:|---|---:|---:|---:|---:|"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows(searches))])


def warnings(tuning: Tuning, searches: Sequence[Search]) -> list[str]:
    """Say what speaks against taking the settings as they are."""
    lines = []
    for search in searches:
        for name, end in search.edges().items():
            lines.append(edge_warning(search, name, end))
        if search.best is None:
            lines.append(f"{search.optimizer}: no trial was finished, so it has no settings yet.")
    if tuning.sampler == "tpe" and tuning.trials <= STARTUP:
        lines.append(
            f"The first {STARTUP} trials are drawn at random: with {tuning.trials} there was no "
            "search beyond that."
        )
    counts = {
        search.optimizer: len(search.trials) - search.count("unfinished") for search in searches
    }
    if set(counts.values()) != {tuning.trials}:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(
            f"Not all of the {tuning.trials} trials of each have ended ({told}): the same command "
            "carries on."
        )
    return lines


def edge_warning(search: Search, name: str, end: str) -> str:
    """Say that a best setting lies at an end of its range, and what to do."""
    assert search.best is not None
    space, value = search.space[name], search.best.settings[name]
    wider = widened(space, end)
    return (
        f"{search.optimizer}: the best {name}, {value:g}, lies at the {end} end of its range "
        f"({space}); better values may lie beyond. Search again with --space "
        f"{search.optimizer}.{name}={wider} and another --out."
    )


def widened(space: Range, end: str) -> str:
    """Write a range that goes on beyond an end by half its width."""
    low = space.at(-0.5) if end == "low" else space.low
    high = space.at(1.5) if end == "high" else space.high
    return f"{low:.2g}:{high:.2g}:{'log' if space.log else 'linear'}"


def sensitivity(search: Search) -> str:
    """Say how wide the region within a point of the best is, as far as trials came there."""
    near, best = search.near, search.best
    if best is None:
        return f"* {search.optimizer}: no trial was finished."
    if len(near) == 1:
        return f"* {search.optimizer}: no other trial came within a point of the best."
    parts = []
    for name, each in search.space.items():
        values = [trial.settings[name] for trial in near]
        low, high = min(values), max(values)
        width = f", {math.log10(high / low):.1f} decades" if each.log else ""
        parts.append(f"{name} from {low:g} to {high:g}{width}")
    return (
        f"* {search.optimizer}: {len(near)} of {len(search.trials)} trials came within a point of "
        f"the best: {'; '.join(parts)}."
    )


def to_page(tuning: Tuning, searches: Sequence[Search], source: Mapping[str, Any]) -> str:
    """Write the markdown page."""
    notes = [
        f"Every optimizer had {tuning.trials} trials, pruned and diverged ones included, chosen by "
        f"{tuning.sampler}, pruner {tuning.pruner}, all with seed {tuning.seed}.",
        "A trial is judged by its accuracy on the held-out validation images after its last epoch; "
        "no test image was looked at. The best of many trials flatters itself: compare the "
        "settings on the test images, with several seeds.",
    ]
    drawn = any(search.best for search in searches)
    sections = [
        f"# Tuning of {' and '.join(tuning.optimizers)}",
        f"{describe_task(tuning, searches)}.",
        to_markdown(searches),
        "\n".join(f"* {line}" for line in [*warnings(tuning, searches), *notes]),
        f"![Validation accuracy over lr and weight decay]({SENSITIVITY})" if drawn else "",
        "## How much the settings matter",
        "\n".join(map(sensitivity, searches)),
        "The samplers do not spread trials evenly, so these ranges are the least that is known, "
        "not the whole region.",
        "## What the budget bought",
        spent(searches),
        f"![Best validation accuracy so far]({BUDGET})" if drawn else "",
        "## Searched",
        "\n".join(
            f"* {search.optimizer}: "
            + ", ".join(f"{name} {each}" for name, each in search.space.items())
            for search in searches
        ),
        "## Trials",
        *(trial_table(search) for search in searches),
        "## Source",
        "\n".join(
            f"* {name.replace('_', ' ')}: {source[name]}" for name in SOURCE if name in source
        ),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def spent(searches: Sequence[Search]) -> str:
    """Make a table of the epochs and seconds that each optimizer's trials took."""
    lines = ["| optimizer | trials | epochs | seconds |", "|---|---:|---:|---:|"]
    for search in searches:
        epochs = sum(len(trial.run.metrics) for trial in search.trials)
        seconds = sum(trial.seconds for trial in search.trials)
        lines.append(f"| {search.optimizer} | {len(search.trials)} | {epochs} | {seconds:,.0f} |")
    return "\n".join(lines)


def trial_table(search: Search) -> str:
    """Make a table of an optimizer's trials, the best first."""
    names = list(search.space)
    lines = [
        f"| {search.optimizer} | {' | '.join(names)} | status | epochs | validation accuracy, % | "
        "loss |",
        "|---|" + "---:|" * len(names) + "---|---:|---:|---:|",
    ]
    for trial in sorted(search.trials, key=_rank):
        name = trial.run.path.name
        values = " | ".join(f"{trial.settings[each]:g}" for each in names)
        accuracy = "–" if trial.accuracy is None else f"{100 * trial.accuracy:.2f}"
        loss = "–" if trial.loss is None else f"{trial.loss:.4f}"
        lines.append(
            f"| [{name}]({search.optimizer}/{name}/) | {values} | {trial.status} | "
            f"{len(trial.run.metrics)} | {accuracy} | {loss} |"
        )
    return "\n".join(lines)


def _rank(trial: TrialRecord) -> tuple[bool, float, float, int]:
    return (
        trial.status != "finished",
        -(trial.accuracy or 0.0),
        trial.loss or 0.0,
        trial.number,
    )
