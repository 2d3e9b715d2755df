"""Tables of studies with their own file formats or table layouts."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import by_system, compare, percent
from scipy.stats import ttest_rel

from result_tables.accuracies import (
    AGAINST,
    SYSTEMS,
    TUNED,
    difference_text,
    exchanged,
    outcome_of,
    over_baseline,
    p_value,
)
from result_tables.markdown import RESULTS, markdown
from sgdph.lab.reports.statistics import Difference, Spread, difference, holm
from sgdph.lab.reports.statistics import outcome as judged


def with_controls(task: str) -> str:
    """Make the table of SGD-PH and controls without curvature."""
    names = {
        "sgdm": "SGDM",
        "row-sum": "SGD-PH, row sum (the paper)",
        "mean": "control: mean multiplier",
        "shuffled": "control: shuffled multipliers",
        "fixed-1": "control: multiplier 1",
        "fixed-10": "control: multiplier 10",
        "hutchinson": "SGD-PH, Hutchinson",
        "hutchinson-every-10": "SGD-PH, Hutchinson, interval 10",
        "hutchinson-all": "SGD-PH, Hutchinson, all at once",
        "exact": "SGD-PH, exact diagonal (lr, wd not tuned)",
    }
    folder = RESULTS / "diagonality" / "training"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))[task]
    lines = (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [run for run in map(json.loads, lines) if run["phase"] == "test"]
    rows = []
    for found in summary:
        text, outcome = "", ""
        if found.get("p_holm") is not None:
            pairs = _over_row_sum(runs, found["system"])
            text = difference_text(pairs)
            outcome = judged(found["p_holm"], pairs)
        rows.append(
            [
                names[found["system"]],
                f"{found['lr']:g}, {found['weight_decay']:g}",
                f"{found['accuracy']:.2f} ± {found['accuracy_std']:.2f}",
                text,
                f"{found['p_holm']:.3f}" if outcome else "",
                outcome,
            ]
        )
    headings = ("system", "lr, wd", "test accuracy, %", "minus the row sum's (95% interval)")
    return markdown([*headings, "p (Holm)", "outcome"], rows, 2)


def _over_row_sum(runs: Sequence[Mapping[str, Any]], system: str) -> Difference:
    """Compare a system with the row sum by a paired t-test over seeds."""
    accuracies = {(run["system"], run["seed"]): run["accuracy"] for run in runs}
    seeds = [seed for name, seed in accuracies if name == system]
    first = [accuracies[system, seed] for seed in seeds]
    second = [accuracies["row-sum", seed] for seed in seeds]
    found = ttest_rel(first, second)
    interval = found.confidence_interval(0.95)
    mean = statistics.mean(first) - statistics.mean(second)
    return Difference(mean, interval.low, interval.high, (len(first), len(second)), found.pvalue)


def differences() -> str:
    """Make the table of the errors of gradient differences against the exact product."""
    file = RESULTS / "finite-difference" / "errors.json"
    found = [row for row in json.loads(file.read_text(encoding="utf-8"))["rows"] if row["trained"]]
    by = {(row["network"], row["estimator"], row["arithmetic"]): row for row in found}

    def error(network: str, estimator: str, arithmetic: str) -> str:
        row = by.get((network, estimator, arithmetic))
        return "–" if row is None else f"{row['median']:.2g} ({row['p90']:.2g})"

    kinds = [
        (estimator, arithmetic)
        for arithmetic in ("float32", "bfloat16 autocast")
        for estimator in ("row_sum", "hutchinson")
    ]
    networks = {row["network"]: row["cost_ratio"] for row in found}
    return markdown(
        [
            *("network", "row sum, float32", "Hutchinson, float32", "row sum, bfloat16"),
            *("Hutchinson, bfloat16", "time"),
        ],
        [
            [name, *(error(name, *kind) for kind in kinds), f"{cost:.2f}"]
            for name, cost in networks.items()
        ],
    )


def search_points() -> list[dict[str, Any]]:
    """Read the points of the search on MNIST-5k that gave the defaults."""
    return [
        point
        for optimizer in ("sgdm", "sgdph", "adamw")
        for point in json.loads((RESULTS / "tuning-mnist5k" / f"{optimizer}.json").read_text())[
            "points"
        ]
    ]


def search() -> str:
    """Make the table of all points of the search on MNIST-5k."""
    rows: dict[tuple[str, float], list[tuple[float, str]]] = {}
    for point in search_points():
        cell = percent(point["validation_accuracy"])
        place = rows.setdefault((point["optimizer"], point["lr"]), [])
        place.append((point["weight_decay"], f"{cell} (λ {point['weight_decay']:g})"))
    order = ("sgdm", "sgdph", "adamw")
    return markdown(
        ["system", "lr", "lower weight decay", "higher weight decay"],
        [
            [optimizer, f"{lr:g}", *(text for _, text in sorted(cells))]
            for (optimizer, lr), cells in sorted(
                rows.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
            )
        ],
    )


def search_over_lr() -> str:
    """Make the table of that search's points for SGDM and SGD-PH at weight decay 5e-4."""
    rates = (0.01, 0.03, 0.1, 0.3)
    cells = {
        (point["optimizer"], point["lr"]): percent(point["validation_accuracy"])
        for point in search_points()
        if point["weight_decay"] == 5e-4
    }
    return markdown(
        ["lr", *(f"{rate:g}" for rate in rates)],
        [
            [name, *(cells[optimizer, rate] for rate in rates)]
            for optimizer, name in (("sgdm", "SGDM"), ("sgdph", "SGD-PH"))
        ],
    )


def transcribed(name: str, texts: int) -> str:
    """Make a table from values that were copied from a page, because the data were not kept."""
    with (RESULTS / "transcribed" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        headings, *rows = csv.reader(file)
    return markdown(headings, rows, texts)


def long_study(study: str, names: Mapping[str, str]) -> str:
    """Make the table of a study of many epochs: each system compared with SGDM."""
    systems = by_system(RESULTS / "evidence" / study, list(names))
    compared = compare(systems)
    rows = []
    for label, row in compared.items():
        runs = systems[label]
        middle = [run.metrics[-1].get("newton_multiplier", {}).get("median") for run in runs]
        known = [value for value in middle if value is not None]
        rows.append(
            [
                *(names[label], str(len(runs)), percent(row.final)),
                *(over_baseline(compared, label), p_value(row), outcome_of(compared, label)),
                f"{statistics.fmean(run.losses[-1] for run in runs):.3g}",
                f"{statistics.fmean(known):.2g}" if known else "–",
            ]
        )
    headings = ["system", "n", "final test accuracy, %", AGAINST, "p (Holm)", "outcome"]
    return markdown([*headings, "final training loss", "median multiplier at the end"], rows)


def compare_pairs(pairs: Sequence[tuple[Spread, Spread]]) -> list[list[str]]:
    """Compare pairs, the first with the second: difference, p corrected for all pairs, outcome."""
    found = [difference(*pair) for pair in pairs]
    known = [each for each in found if each is not None]
    return [
        [difference_text(each), f"{p:.2g}", judged(p, each)]
        for each, p in zip(known, holm([each.p for each in known]), strict=True)
    ]


def final_spreads(folder: Path) -> dict[str, Spread]:
    """Read the final test accuracies of each label."""
    return {
        label: Spread.of([run.accuracies[-1] for run in runs])
        for label, runs in by_system(folder).items()
    }


def exchanged_settings() -> str:
    """Make the table of SGDM and SGD-PH with each other's lr and weight decay, 60 epochs."""
    names = {**SYSTEMS, "sgdph-fixed1": "control: multiplier 1"}
    baseline, *others = (
        *(("sgdm", "sgdm"), ("sgdm", "sgdph"), ("sgdph", "sgdph")),
        *(("sgdph", "sgdm"), ("sgdph-fixed1", "sgdph")),
    )
    finals = {each: Spread.of(exchanged(*each)) for each in (baseline, *others)}
    compared = compare_pairs([(finals[each], finals[baseline]) for each in others])
    rows = [
        [
            *(names[system], "{:g}, {:g}".format(*TUNED[source]), str(found.n)),
            *(found.show(100, 2), *cells),
        ]
        for ((system, source), found), cells in zip(
            finals.items(), [[""] * 3, *compared], strict=True
        )
    ]
    headings = ["system", "lr, weight decay", "n", "final test accuracy, %", AGAINST]
    return markdown([*headings, "p (Holm)", "outcome"], rows, 2)


def channelwise_decay(task: str) -> str:
    """Make the table of weight decay on norms and biases.

    Each optimizer's own kind of decay is compared with none and with the other kind.
    """
    finals = final_spreads(RESULTS / "evidence" / "channelwise-decay" / task)
    ways = [
        (optimizer, own, way)
        for optimizer, own, other in (
            ("SGDM", "coupled", "decoupled"),
            ("AdamW", "decoupled", "coupled"),
            ("Muon", "decoupled", "coupled"),
        )
        for way in ("none", other)
    ]
    pairs = [(finals[f"{name}, {way}"], finals[f"{name}, {own}"]) for name, own, way in ways]
    rows = [
        [name, f"{own}: {usual.show(100, 2)}", f"{way}: {changed.show(100, 2)}", *cells]
        for (name, own, way), (changed, usual), cells in zip(
            ways, pairs, compare_pairs(pairs), strict=True
        )
    ]
    headings = ("optimizer", "its own decay, %", "another, %", "difference (95% interval)")
    return markdown([*headings, "p (Holm)", "outcome"], rows, 3)


def eps_warmup(task: str) -> str:
    """Make the table that compares the authors' bias correction with ours, for two settings."""
    finals = final_spreads(RESULTS / "evidence" / "eps-warmup" / task)
    names = {"SGDM's settings": "SGDM's lr and weight decay", "tuned": "tuned for SGD-PH"}
    pairs = [(finals[f"{label}, eps_warmup"], finals[label]) for label in names]
    rows = [
        [name, plain.show(100, 2), warm.show(100, 2), interval, str(warm.n), *judgement]
        for name, (warm, plain), (interval, *judgement) in zip(
            names.values(), pairs, compare_pairs(pairs), strict=True
        )
    ]
    headings = ("settings", "`False`, %", "`True`, %", "difference (95% interval)")
    return markdown([*headings, "n", "p (Holm)", "outcome"], rows)
