"""The sentences of a report: its verdicts, how to read it, and descriptions of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.optimizers.registry import BASELINES, TUNED
from sgdph.lab.reports.grid import Grid
from sgdph.lab.reports.layout import SYSTEM
from sgdph.lab.reports.measures import SHARE, final, judge_column
from sgdph.lab.reports.names import shown_value
from sgdph.lab.reports.numbers import (
    counted,
    exact,
    from_to,
    listed,
    p_value,
    points,
    shown_interval,
)
from sgdph.lab.reports.statistics import ALPHA, MARGIN, Judgement
from sgdph.lab.reports.table import LEVEL
from sgdph.lab.run.records import Group, RunRecord, differing_fields

# The optimizer's own settings, and the other settings of a run that readers need first.
SETTINGS = (
    *("lr", "weight_decay", "newton_lr", "momentum", "second_order_lr", "hessian_momentum", "eps"),
    *("estimator", "refresh", "hessian_interval", "betas", "optimizer_args"),
)
RECIPE = (
    *("epochs", "batch_size", "schedule", "schedule_every", "train_size", "validation_size"),
    *("image_size", "processes", "precision", "channels_last", "channelwise_decay"),
)
# Up to this number, rows are named one by one.
FEW = 4
TEST = "Welch's t-test over seeds with Holm's correction"


def verdicts(grid: Grid) -> list[str]:
    """Describe what each column's final accuracies show, then the test that was used."""
    said, tested = [], False
    for j, heading in enumerate(grid.columns):
        judgement = judge_column(grid, final(grid.evaluated), j)
        assert judgement is not None
        where = f"{heading.text}: " if len(grid.columns) > 1 else ""
        said.append(where + _verdict(grid, j, judgement))
        tested = tested or bool(judgement.adjusted)
    closing = (
        f"Differs: p < {ALPHA:g} by {TEST}. Tie: the whole 95% interval of the difference lies "
        f"within ±{MARGIN * 100:g} points, a margin set beforehand. Not decided: neither. This "
        "holds for these tasks and settings only."
    )
    return [*said, closing] if tested else said


def _verdict(grid: Grid, j: int, judgement: Judgement) -> str:
    split, best = grid.evaluated, judgement.best
    counts = _counts(grid.column(j).values())
    if best is None:
        return "No run is finished."
    if len(grid.column(j)) == 1:
        return "There is nothing to compare with."
    if not judgement.adjusted:
        return (
            f"The final {split} accuracies are not compared. A test needs two finished seeds of "
            f"each system, with different accuracies ({counts})."
        )
    sentences = [f"{grid.rows[best].text} has the highest mean final {split} accuracy ({counts})"]
    sentences += _comparisons(grid, judgement, grid.rows[best].text)
    if judgement.untested:
        others = listed([grid.rows[i].text for i in judgement.untested])
        sentences.append(f"It is not compared with {others}: a test needs seeds that differ")
    return ". ".join(sentences) + "."


def _comparisons(grid: Grid, judgement: Judgement, best: str) -> list[str]:
    """Describe how the best row compares with each other row; if these are many, count outcomes."""
    rows = judgement.adjusted
    if len(rows) <= FEW:
        return [
            f"{best} − {grid.rows[i].text}: {points(found.mean)} points, 95% interval "
            f"{shown_interval(found.low, found.high)}, p {p_value(p)}: {judgement.outcome(i)}"
            for i, p in rows.items()
            for found in [judgement.differences[i]]
        ]
    outcomes = Counter(judgement.outcome(i) for i in rows)
    counts = listed([f"{each}: {number}" for each, number in outcomes.items()])
    return [f"Outcomes for the {len(rows)} others: {counts}. See the table of differences"]


def _counts(groups: Iterable[Group]) -> str:
    """Describe the number of seeds."""
    counts = {len(group.finished) for group in groups}
    if len(counts) == 1:
        return f"{counted(counts.pop(), 'seed')} each"
    return f"{from_to(counts)} seeds"


def notes(grid: Grid, targets: Sequence[float]) -> list[str]:
    """Explain how to read the tables."""
    split = grid.evaluated
    images = (
        "the test images" if split == "test" else "held-out training images, not on the test images"
    )
    lines = [
        f"Evaluated on {images}. n is the number of finished runs; only these are in the figures. "
        "± is the sample standard deviation over seeds. One seed has none.",
        "Quote the final accuracy, which is that after the last epoch. The best epoch's is too "
        f"high, because the epoch was chosen on the same {split} images.",
        f"Bold: the best of its column, if it differs from all others (each p < {ALPHA:g}, by "
        f"{TEST}). {LEVEL}: the best, and those that do not differ from it; with few seeds that "
        "says little. No mark: it differs from the best, or cannot be tested. The best epoch's "
        "accuracy is not tested, because the epoch was chosen. Seconds are not tested, because "
        "they depend on what else the machine did.",
        "An interval is that of its pair alone. p is corrected for all comparisons of the column, "
        "so an interval without 0 may still be not decided. Here all others are compared with the "
        "best; a table that compares them with a baseline has other values of p.",
        "The training loss is the mean over the last epoch during training. Seconds are those of "
        "training, without evaluation. They are medians, with the lowest and the highest, because "
        "one run beside other work would spoil a mean.",
        _target_note(targets),
    ]
    untuned = with_untuned_settings(grid)
    if untuned:
        lines.insert(
            0,
            f"Not tuned for these data: the lr or weight decay of {listed(untuned)} is a default "
            "of the laboratory. Their settings may explain a difference from others.",
        )
    diverged = sum(group.count("diverged") for group in grid.groups)
    if diverged:
        lines.append(
            f"Diverged, and not in the means: {counted(diverged, 'run')}, whose loss became "
            "infinite or undefined."
        )
    pruned = sum(group.count("pruned") for group in grid.groups)
    if pruned:
        lines.append(
            f"Pruned, and not in the means: {counted(pruned, 'run')}, which a tuning stopped early."
        )
    unfinished = sum(group.unfinished for group in grid.groups)
    if unfinished:
        lines.append(
            f"Unfinished, and not in the means: {counted(unfinished, 'run')}, running or "
            "interrupted."
        )
    return lines


def with_untuned_settings(grid: Grid) -> list[str]:
    """Name the rows with the default lr or weight decay of their optimizer, made for other data.

    A default that was given explicitly as an option cannot be distinguished.
    """
    rows = sorted({i for (i, _), group in grid.entries.items() if is_untuned(group.config)})
    return [grid.rows[i].text for i in rows]


def is_untuned(config: RunConfig) -> bool:
    """Return whether a run has its optimizer's default lr or weight decay, made for other data."""
    tuned = TUNED.get(config.dataset, {}).get(config.optimizer, {})
    defaults = BASELINES[config.optimizer].defaults
    return any(
        name not in tuned and getattr(config, name) == defaults[name]
        for name in ("lr", "weight_decay", "newton_lr")
        if name in defaults
    )


def _target_note(targets: Sequence[float]) -> str:
    how = (
        "The targets were given."
        if targets
        else f"The target is {SHARE:.0%} of the column's highest mean final accuracy, which is "
        "known only after training."
    )
    return (
        f"{how} Times to a target count whole epochs. They are those of the runs that reached it, "
        "so read them with the number of these runs. A diverged run has not reached it."
    )


def shared_fields(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the fields other than the seed that all runs share; place fields have defaults."""
    keys = [record.key for record in records]
    differing = {*differing_fields(keys), "seed"}
    return {name: value for name, value in vars(keys[0]).items() if name not in differing}


def describe_task(records: Sequence[RunRecord]) -> str:
    """Describe data set, sizes and network, as far as the runs have them in common."""
    shared = shared_fields(records)
    parts = [
        shown_value("dataset", shared["dataset"]) if "dataset" in shared else "several data sets"
    ]
    split = records[0].config.evaluated
    sizes = {
        (run.summary.get("train_images"), run.summary.get(f"{split}_images"))
        for run in records
        if run.summary
    }
    if len(sizes) == 1:
        train, evaluated = sizes.pop()
        if isinstance(train, int) and isinstance(evaluated, int):
            parts.append(f"{train:,} training and {evaluated:,} {split} images")
    parts.append(shown_value("model", shared["model"]) if "model" in shared else "several networks")
    return ", ".join(parts)


def describe_recipe(records: Sequence[RunRecord]) -> str:
    """List the settings in :data:`RECIPE` that the runs share, except sizes and defaults."""
    shared = shared_fields(records)
    sizes = ("train_size", "validation_size")
    text = _settings(shared, [name for name in RECIPE if name in shared and name not in sizes])
    return text.replace("_", " ")


def describe_settings(grid: Grid) -> list[tuple[str, str]]:
    """List each row's settings: once if all its columns agree, otherwise per column."""
    everywhere = {
        *differing_fields([group.config for group in grid.groups]),
        *SETTINGS,
    } - {"seed", "dataset", "model", "optimizer", "label"}
    names = [name for name in (*SETTINGS, *RECIPE) if name in everywhere]
    lines: dict[tuple[int, str], list[int]] = {}
    for (i, j), group in sorted(grid.entries.items()):
        lines.setdefault((i, _settings(vars(group.config), names)), []).append(j)
    whole = [sum(i == row for row, _ in lines) == 1 for i in range(len(grid.rows))]
    return [
        (
            grid.rows[i].text
            + ("" if whole[i] else f" on {'; '.join(grid.columns[j].text for j in columns)}"),
            text,
        )
        for (i, text), columns in lines.items()
    ]


def _settings(values: Mapping[str, Any], names: Sequence[str]) -> str:
    defaults = {name: getattr(RunConfig, name, None) for name in names}
    return ", ".join(
        f"{name} {exact(values[name])}"
        for name in names
        if values[name] is not None and not (name in RECIPE and values[name] == defaults[name])
    )


def default_title(grids: Sequence[Grid]) -> str:
    """Return a report's title: the names of its rows, or their number if there are many."""
    rows = dict.fromkeys(heading.text for grid in grids for heading in grid.rows)
    if len(rows) <= 4:
        return listed(list(rows))
    what = "optimizers" if grids[0].layout.rows == (SYSTEM,) else "settings"
    return f"{len(rows)} {what}"
