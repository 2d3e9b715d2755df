"""The files that a tuning produces: the best settings, all trials, the page, the pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgdph.lab.files import write_json
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.options.settings import write_settings
from sgdph.lab.reports.folder import Page, write_folder
from sgdph.lab.reports.numbers import counted, listed
from sgdph.lab.reports.page import Block, Bullets, Picture, Section
from sgdph.lab.run.directory import LOGS
from sgdph.lab.tune.outcome import Search, read_searches, to_json
from sgdph.lab.tune.plots import draw_budget, draw_sensitivity
from sgdph.lab.tune.record import (
    BEST,
    BUDGET,
    DATABASE,
    FORMER,
    GENERATOR,
    HEADING,
    JOURNAL,
    SENSITIVITY,
    TRIALS,
    TUNING,
    TuneDirectory,
    Tuning,
    with_settings,
)
from sgdph.lab.tune.space import BELOW_ONE, MOST_BELOW_ONE, Range
from sgdph.lab.tune.study import STARTUP
from sgdph.lab.tune.tables import best_table, figures_table, spent_table, trials_table

SOURCE = ("sgdph", "torch", "python", "git_commit", "cpu", "device_name", "command")
HOLDS = {
    BEST: "the best settings; sgdph compare --settings takes them",
    SENSITIVITY: "validation accuracy over learning rate and weight decay",
    BUDGET: "the best validation accuracy so far, over trials and seconds",
    TRIALS: "every trial, for programs",
    TUNING: "what was searched; --resume reads it",
    **dict.fromkeys((DATABASE, JOURNAL), "the trials, for the sampler"),
    **dict.fromkeys(BASELINES, "a folder of trials, each with its run"),
    LOGS: "what parallel workers said, and why trials failed",
    "*.lock": "held while a process writes here, without a meaning otherwise",
}


def write_outcome(
    directory: TuneDirectory, tuning: Tuning, environment: Mapping[str, Any]
) -> list[Search]:
    """Write the results so far.

    Args:
        directory: The tuning's directory.
        tuning: The tuning.
        environment: This process's machine and command.

    Returns:
        The optimizers' trials.
    """
    with directory.lock():
        searches = read_searches(directory, tuning)
        source = describe_source(tuning, searches, environment)
        found = {
            search.optimizer: with_settings(tuning.fixed(search.optimizer), search.best.settings)
            for search in searches
            if search.best is not None
        }
        write_json(
            directory.path / TRIALS,
            {"format": "sgdph-trials-1", **source, "optimizers": to_json(searches)},
        )
        pictures = [directory.path / SENSITIVITY, directory.path / BUDGET]
        if found:
            title = describe_task(tuning, searches)
            draw_sensitivity(searches, pictures[0], title)
            draw_budget(searches, pictures[1], title)
            write_settings(directory.path / BEST, found, source)
        blocks = page_blocks(tuning, searches, source, pictures if found else [])
        title = f"{HEADING}{listed(tuning.optimizers)}"
        page = Page(title, tuple(blocks), GENERATOR)
        write_folder(directory.path, page, figures_table(searches), HOLDS, former=FORMER)
    return searches


def describe_source(
    tuning: Tuning, searches: Sequence[Search], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe where the settings come from: the task, the budget, the machine."""
    config = tuning.config(tuning.optimizers[0])
    task = ("dataset", "train_size", "validation_size", "model", "epochs", "batch_size", "schedule")
    return {
        **{name: getattr(config, name) for name in (*task, "precision")},
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
        # torch's version is a subclass of str, which YAML cannot write.
        **{name: str(environment[name]) for name in SOURCE if environment.get(name) is not None},
    }


def describe_task(tuning: Tuning, searches: Sequence[Search]) -> str:
    """Describe the task: data set, sizes, network, epochs."""
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
    return ", ".join([*parts, config.model, counted(config.epochs, "epoch")])


def warnings(tuning: Tuning, searches: Sequence[Search]) -> list[str]:
    """List the reasons against using the settings as they are."""
    lines = []
    for search in searches:
        for name, end in search.edges().items():
            lines.append(edge_warning(search, name, end))
        if search.best is None:
            lines.append(f"{search.optimizer}: no trial was finished, so it has no settings.")
    if tuning.sampler == "tpe" and tuning.trials <= STARTUP:
        lines.append(
            f"The first {STARTUP} trials are random, so with {tuning.trials} trials there was no "
            "further search."
        )
    counts = {
        search.optimizer: len(search.trials) - search.count("unfinished") for search in searches
    }
    if set(counts.values()) != {tuning.trials}:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(
            f"Not all of the {tuning.trials} trials of each have ended ({told}). Run the same "
            "command again to continue."
        )
    return lines


def edge_warning(search: Search, name: str, end: str) -> str:
    """Explain that a best setting is at an end of its range, and what to do."""
    assert search.best is not None
    space, value = search.space[name], search.best.settings[name]
    wider = widened(space, end, name)
    found = (
        f"{search.optimizer}: the best {name}, {value:g}, lies at the {end} end of its range "
        f"({space})"
    )
    if wider is None:
        return f"{found}, and there are no values to search beyond."
    return (
        f"{found}; better values may lie beyond. Search again with --space "
        f"{search.optimizer}.{name}={wider} and another --out."
    )


def widened(space: Range, end: str, name: str) -> str | None:
    """Return, as text, a range that extends beyond one end by half its width, if that is allowed.

    Args:
        space: The range.
        end: ``"low"`` or ``"high"``.
        name: The setting. Only values that it may have are in the wider range.

    Returns:
        The range; ``None`` if no wider range is allowed.
    """
    most = MOST_BELOW_ONE if name.endswith(BELOW_ONE) else math.inf
    low = max(space.at(-0.5), 0.0) if end == "low" else space.low
    high = min(space.at(1.5), most) if end == "high" else space.high
    if low >= space.low and high <= space.high:
        return None
    # Known bounds are not rounded: 0.999 would become 1.
    ends = (
        f"{each:g}" if each in (space.low, space.high, most) else f"{each:.2g}"
        for each in (low, high)
    )
    return f"{':'.join(ends)}:{'log' if space.log else 'linear'}"


def sensitivity(search: Search) -> str:
    """Describe the region within one percentage point of the best, as far as trials reached it."""
    near, best = search.near, search.best
    if best is None:
        return f"{search.optimizer}: no trial was finished."
    if len(near) == 1:
        return f"{search.optimizer}: no other trial came within a point of the best."
    parts = []
    for name, each in search.space.items():
        values = [trial.settings[name] for trial in near]
        low, high = min(values), max(values)
        width = f", {math.log10(high / low):.1f} decades" if each.log else ""
        parts.append(f"{name} from {low:g} to {high:g}{width}")
    return (
        f"{search.optimizer}: {len(near)} of {len(search.trials)} trials came within a point of "
        f"the best: {'; '.join(parts)}."
    )


def page_blocks(
    tuning: Tuning, searches: Sequence[Search], source: Mapping[str, Any], drawn: Sequence[Path]
) -> list[Block]:
    """Return the content of the page.

    Args:
        tuning: The tuning.
        searches: The optimizers' trials.
        source: Where the settings come from.
        drawn: The files of the pictures; may be empty.
    """
    titles = ("Validation accuracy over lr and weight decay", "Best validation accuracy so far")
    pictures = [Picture(*pair) for pair in zip(drawn, titles, strict=False)]
    notes = [
        f"Every optimizer had {tuning.trials} trials, pruned and diverged ones included, chosen by "
        f"{tuning.sampler}, pruner {tuning.pruner}, all with seed {tuning.seed}.",
        "A trial is judged by its accuracy on the held-out validation images after its last "
        "epoch; no test image was looked at. The best of many trials looks better than it is: "
        "compare the settings on the test images, with several seeds.",
    ]
    ranges = [
        f"{search.optimizer}: " + ", ".join(f"{name} {each}" for name, each in search.space.items())
        for search in searches
    ]
    told = [f"{name.replace('_', ' ')}: {source[name]}" for name in SOURCE if name in source]
    least = (
        "The samplers do not spread trials evenly, so the good region may be larger than these "
        "ranges."
    )
    return [
        f"{describe_task(tuning, searches)}.",
        replace(best_table(searches), caption=""),
        Bullets([*warnings(tuning, searches), *notes]),
        *pictures[:1],
        Section("How much the settings matter", [Bullets([*map(sensitivity, searches)]), least]),
        Section("What the budget bought", [spent_table(searches), *pictures[1:]]),
        Section("Searched", [Bullets(ranges)]),
        Section("Trials", [*map(trials_table, searches)]),
        Section("Source", [Bullets(told)]),
    ]
