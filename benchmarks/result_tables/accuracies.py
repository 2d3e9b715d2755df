"""Tables of accuracies, made of the runs in ``results``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from comparison import BASELINE, Row, by_system, compare, percent
from evidence import TASKS

from result_tables.markdown import RESULTS, markdown
from sgdph.lab.reports.numbers import points, shown_interval
from sgdph.lab.reports.statistics import Spread
from sgdph.lab.run.records import group_runs, read_runs

AGAINST = "minus SGDM's (95% interval)"
CHEAP = "SGD-PH, Hutchinson, interval 10"
# What the pages call a system, where its label in the runs says less; the order is the pages'.
NAMES = {
    "SGD-PH": "SGD-PH (the paper's)",
    "SGD-PH, interval 10": "SGD-PH, `hessian_interval=10`",
    "SGD-PH, Hutchinson": "SGD-PH, Hutchinson",
    "SGD-PH, Hutchinson all": "SGD-PH, Hutchinson, all at once",
    "SGD-PH, Hutchinson all, interval 10, τ tuned": (
        "SGD-PH, Hutchinson, all at once, interval 10, τ tuned"
    ),
    "SGD-PH, interval 10, τ tuned": "SGD-PH, interval 10, τ tuned",
    "control: multiplier τ/ε tuned, no curvature": (
        "control: one multiplier, tuned, without curvature"
    ),
    "control: multipliers shuffled, interval 10, τ tuned": (
        "control: multipliers shuffled, interval 10, τ tuned"
    ),
    CHEAP: CHEAP,
}
NARROW_VGG = {
    "SGDM": "SGDM, no norms",
    "SGDM+WN": "SGDM, weight norm",
    "SGD-PH+WN": "SGD-PH, weight norm",
    "AdaHessian": "AdaHessian, no norms",
    "SGDM+BN": "SGDM, batch norm",
    "SGD-PH+BN": "SGD-PH, batch norm",
    "AdaHessian+BN": "AdaHessian, batch norm",
}


@cache
def rows_of(study: str) -> Mapping[str, Row]:
    """Compare the systems of one study under ``results/evidence`` with SGDM."""
    task = TASKS.get(study)
    labels, untimed = (list(task.systems), task.untimed) if task else ([], frozenset[str]())
    return compare(by_system(RESULTS / "evidence" / study / "table", labels), untimed)


def p_value(row: Row) -> str:
    """Write a p-value with two digits."""
    return "" if row.p is None else f"{row.p:.2g}"


def over_baseline(rows: Mapping[str, Row], label: str) -> str:
    """Write a difference to the baseline with its interval, nothing for the baseline itself."""
    found = None if label == BASELINE else rows[label].over(rows[BASELINE])
    if found is None:
        return ""
    return f"{points(found.mean)} ({shown_interval(found.low, found.high)})"


def outcome_of(rows: Mapping[str, Row], label: str) -> str:
    """Write what a comparison with the baseline shows, nothing for the baseline itself."""
    return rows[label].outcome(rows[BASELINE])


def all_systems(study: str) -> str:
    """Every system of a study, with all that is told of it."""
    rows = rows_of(study)
    return markdown(
        [
            *("system", "n", "final test accuracy, %", AGAINST, "p (Holm)", "outcome"),
            *("mean over epochs, %", "time per epoch / SGDM's"),
        ],
        [
            [
                *(label, str(len(row.final)), percent(row.final), over_baseline(rows, label)),
                *(p_value(row), outcome_of(rows, label), percent(row.area)),
                Spread.of(row.times).show(1, 2),
            ]
            for label, row in rows.items()
        ],
    )


def claims(study: str, names: Mapping[str, str] = NAMES) -> str:
    """The systems of a study as the page of claims has them."""
    rows = rows_of(study)
    order = sorted(rows, key=lambda label: list(names).index(label) if label in names else -1)
    return markdown(
        [
            *("system", "final test accuracy, %", AGAINST, "p", "outcome"),
            "time per epoch / SGDM's",
        ],
        [
            [
                *(names.get(label, label), percent(rows[label].final), over_baseline(rows, label)),
                *(p_value(rows[label]), outcome_of(rows, label), mean(rows[label].times)),
            ]
            for label in order
        ],
    )


def mean(values: Sequence[float]) -> str:
    """Write a mean, a dash for none."""
    return f"{statistics.mean(values):.2f}" if values else "–"


def readme_accuracy() -> str:
    """The short form of the two comparisons of README."""
    systems = [
        ("SGDM", "SGDM", ""),
        ("SGD-PH, the paper's setting", "SGD-PH", ""),
        ("SGD-PH as in the snippet, with SGDM's lr and weight decay", CHEAP, "-carried"),
        ("Adam", "Adam", ""),
        ("AdaHessian", "AdaHessian", ""),
    ]
    lines = []
    for name, label, kind in systems:
        line = [name]
        for data in ("mnist5k", "cifar10"):
            rows = rows_of(data + kind)
            line += [percent(rows[label].final), with_interval(rows, label)]
        lines.append(line)
    return markdown(
        ["system", "MNIST-5k, 1,000 images", AGAINST, "CIFAR-10, 10,000 images", AGAINST], lines
    )


def with_interval(rows: Mapping[str, Row], label: str) -> str:
    """Write a difference to the baseline with its interval and what it shows."""
    if label == BASELINE:
        return ""
    return f"{over_baseline(rows, label)}, {outcome_of(rows, label)}"


def carried() -> str:
    """SGDM's lr and weight decay taken over by SGD-PH, beside each system tuned for itself."""
    shuffled = "control: multipliers shuffled, Hutchinson, interval 10"
    systems = {
        "SGDM": "SGDM",
        "control: multiplier 1": "control: multiplier 1",
        "SGD-PH": "SGD-PH, the paper's defaults",
        "SGD-PH, interval 10": "SGD-PH, interval 10",
        CHEAP: CHEAP,
        "SGD-PH, Hutchinson all, interval 10": "SGD-PH, Hutchinson all at once, interval 10",
        shuffled: "control: the same as Hutchinson, interval 10, multipliers shuffled",
    }
    tuned = "the same, tuned for itself"
    studies = [
        rows_of(name) for name in ("mnist5k-carried", "mnist5k", "cifar10-carried", "cifar10")
    ]
    return markdown(
        ["system", "MNIST-5k", tuned, "CIFAR-10", tuned],
        [
            [name, *(percent(rows[label].final) if label in rows else "" for rows in studies)]
            for label, name in systems.items()
        ],
    )


@cache
def finals(study: str) -> Mapping[tuple[Any, ...], tuple[float, ...]]:
    """Read a sweep's final accuracies by optimizer, network, data set and what it varies."""
    groups = group_runs(read_runs([RESULTS / "evidence" / study]).records)
    return {
        (
            *(group.config.optimizer, group.config.dataset, group.config.model, group.config.lr),
            *(group.config.weight_decay, group.config.second_order_lr),
            *(group.config.hessian_momentum, group.config.batch_size),
        ): tuple(run.figure("final") or 0.0 for run in group.finished)
        for group in groups
    }


def finals_with(study: str, **wanted: Any) -> list[tuple[float, ...]]:
    """Return the final accuracies of each entry of a sweep that has some settings."""
    names = (
        *("optimizer", "dataset", "model", "lr", "weight_decay"),
        *("second_order_lr", "hessian_momentum", "batch_size"),
    )
    return [
        values
        for key, values in finals(study).items()
        if all(dict(zip(names, key, strict=True))[name] == each for name, each in wanted.items())
    ]


def final(study: str, **wanted: Any) -> str:
    """Return the one final accuracy of a sweep that has some settings."""
    (found,) = finals_with(study, **wanted)
    return percent(found)


def robust_to_lr() -> str:
    """Claim 6: factors around the tuned lr and weight decay."""
    tuned = {"sgdph": (0.0769, 0.00284), "sgdm": (0.124, 0.000205)}
    factors = ((1, 2), (1, 0.4), (1, 1), (2, 1), (0.5, 1))

    def at(optimizer: str, lr: float, decay: float) -> str:
        middle = tuned[optimizer]
        settings = {"lr": round(middle[0] * lr, 9), "weight_decay": round(middle[1] * decay, 9)}
        return final("table5", optimizer=optimizer, **settings)

    return markdown(
        ["factors of lr, weight decay", "SGD-PH, %", "SGDM, %"],
        [[f"{lr:g}, {wd:g}", at("sgdph", lr, wd), at("sgdm", lr, wd)] for lr, wd in factors],
    )


def robust_to_tau() -> str:
    """Claim 7."""
    tasks = {
        ("mnist5k", "resnet8"): "MNIST-5k, ResNet-8",
        ("mnist5k", "vgg8-bn"): "MNIST-5k, VGG-8 with batch norm",
        ("digits", "resnet8"): "digits, ResNet-8",
        ("digits", "vgg8-bn"): "digits, VGG-8 with batch norm",
    }
    return markdown(
        ["", "τ = 1e-4", "1e-3", "1e-2"],
        [
            [
                name,
                *(
                    final("table6", dataset=data, model=model, second_order_lr=tau)
                    for tau in (1e-4, 1e-3, 1e-2)
                ),
            ]
            for (data, model), name in tasks.items()
        ],
    )


def robust_to_beta2() -> str:
    """Claim 8."""
    values = (0.8, 0.9, 0.99)
    cells = [final("table7", hessian_momentum=value) for value in values]
    return markdown(["", *(f"β₂ = {value:g}" for value in values)], [["SGD-PH", *cells]])


def robust_to_batch() -> str:
    """Claim 9."""
    sizes = (16, 32, 64, 128, 256)
    systems = {"sgdph": "SGD-PH", "sgdm": "SGDM"}
    return markdown(
        ["", *map(str, sizes)],
        [
            [name, *(final("table8", optimizer=each, batch_size=size) for size in sizes)]
            for each, name in systems.items()
        ],
    )
