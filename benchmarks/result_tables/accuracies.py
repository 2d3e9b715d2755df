"""Tables of accuracies, made from the runs in ``results``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from comparison import BASELINE, Row, by_system, compare, percent
from evidence import TASKS

from result_tables.markdown import RESULTS, markdown
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.reports.numbers import points, shown_interval
from sgdph.lab.reports.statistics import Difference, Spread
from sgdph.lab.run.records import group_runs, read_runs

AGAINST = "minus SGDM's (95% interval)"
CHEAP = "SGD-PH, Hutchinson, interval 10"
# Maps the label of a system in the runs to its name on the pages, in the order of the pages.
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
# The systems of claims 6 to 9, and the folder under ``results/evidence`` of each number of epochs.
SYSTEMS = {"sgdph": "SGD-PH", "sgdm": "SGDM"}
LENGTHS = {12: "", 60: "60-epochs/"}
# The lr and weight decay that were tuned for each of them on MNIST-5k.
TUNED = {"sgdph": (0.0769, 0.00284), "sgdm": (0.124, 0.000205)}


@cache
def rows_of(study: str) -> Mapping[str, Row]:
    """Compare the systems of one study under ``results/evidence`` with SGDM."""
    task = TASKS.get(study)
    labels, untimed = (list(task.systems), task.untimed) if task else ([], frozenset[str]())
    return compare(by_system(RESULTS / "evidence" / study, labels), untimed)


def p_value(row: Row) -> str:
    """Format a p-value with two significant digits; empty if there is none."""
    return "" if row.p is None else f"{row.p:.2g}"


def difference_text(found: Difference) -> str:
    """Format a difference in points with its 95% interval."""
    return f"{points(found.mean)} ({shown_interval(found.low, found.high)})"


def over_baseline(rows: Mapping[str, Row], label: str) -> str:
    """Format a difference to the baseline with its interval; empty for the baseline itself."""
    found = None if label == BASELINE else rows[label].over(rows[BASELINE])
    if found is None:
        return ""
    return difference_text(found)


def outcome_of(rows: Mapping[str, Row], label: str) -> str:
    """Return the outcome of a comparison with the baseline; empty for the baseline itself."""
    return rows[label].outcome(rows[BASELINE])


def all_systems(study: str) -> str:
    """Make the table of all systems in a study, with all values."""
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
    """Make the table of a study's systems for the page of claims."""
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
    """Format a mean; a dash if there are no values."""
    return f"{statistics.mean(values):.2f}" if values else "–"


def readme_accuracy() -> str:
    """Make README's short table of the two comparisons."""
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
    """Format a difference to the baseline with its interval and outcome; empty for the baseline."""
    if label == BASELINE:
        return ""
    return f"{over_baseline(rows, label)}, {outcome_of(rows, label)}"


def carried() -> str:
    """Make the table of systems with SGDM's lr and weight decay, next to tuned systems."""
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
def finals(study: str) -> list[tuple[RunConfig, tuple[float, ...]]]:
    """Read each entry of a sweep: its settings and its runs' final accuracies."""
    groups = group_runs(read_runs([RESULTS / "evidence" / study]).records)
    return [
        (group.config, tuple(run.figure("final") or 0.0 for run in group.finished))
        for group in groups
    ]


def finals_with(study: str, **wanted: Any) -> list[tuple[float, ...]]:
    """Return the final accuracies of each entry of a sweep that has the wanted settings."""
    return [
        values
        for config, values in finals(study)
        if all(getattr(config, name) == each for name, each in wanted.items())
    ]


def final(study: str, **wanted: Any) -> str:
    """Format the final accuracies of the only entry of a sweep that has the wanted settings."""
    (found,) = finals_with(study, **wanted)
    return percent(found)


def exchanged(optimizer: str, tuned_for: str) -> tuple[float, ...]:
    """Return the final accuracies after 60 epochs, with the settings tuned for an optimizer."""
    study = "table5" if optimizer == tuned_for else "settings"
    lr, decay = TUNED[tuned_for]
    wanted = {"optimizer": optimizer, "lr": lr, "weight_decay": decay}
    (found,) = finals_with(f"60-epochs/{study}", **wanted)
    return found


def robust_to_lr() -> str:
    """Make the table for claim 6: factors around the tuned lr and weight decay."""
    factors = ((1, 2), (1, 0.4), (1, 1), (2, 1), (0.5, 1))

    def at(folder: str, optimizer: str, lr: float, decay: float) -> str:
        middle = TUNED[optimizer]
        settings = {"lr": round(middle[0] * lr, 9), "weight_decay": round(middle[1] * decay, 9)}
        return final(f"{folder}table5", optimizer=optimizer, **settings)

    return markdown(
        [
            "factors of lr, weight decay",
            *(f"{name}, {epochs} epochs, %" for epochs in LENGTHS for name in SYSTEMS.values()),
        ],
        [
            [
                f"{lr:g}, {decay:g}",
                *(at(folder, each, lr, decay) for folder in LENGTHS.values() for each in SYSTEMS),
            ]
            for lr, decay in factors
        ],
    )


def robust_to_tau() -> str:
    """Make the table for claim 7: robustness to τ."""
    tasks = {
        ("mnist5k", "resnet8"): "MNIST-5k, ResNet-8",
        ("mnist5k", "vgg8-bn"): "MNIST-5k, VGG-8 with batch norm",
        ("digits", "resnet8"): "digits, ResNet-8",
        ("digits", "vgg8-bn"): "digits, VGG-8 with batch norm",
    }
    return markdown(
        ["", "epochs", "τ = 1e-4", "1e-3", "1e-2"],
        [
            [
                *(name, str(epochs)),
                *(
                    final(f"{folder}table6", dataset=data, model=model, second_order_lr=tau)
                    for tau in (1e-4, 1e-3, 1e-2)
                ),
            ]
            for epochs, folder in LENGTHS.items()
            for (data, model), name in tasks.items()
        ],
    )


def robust_to_beta2() -> str:
    """Make the table for claim 8: robustness to β₂."""
    values = (0.8, 0.9, 0.99)
    return markdown(
        ["epochs", *(f"β₂ = {value:g}" for value in values)],
        [
            [str(epochs), *(final(f"{folder}table7", hessian_momentum=value) for value in values)]
            for epochs, folder in LENGTHS.items()
        ],
    )


def robust_to_batch() -> str:
    """Make the table for claim 9: robustness to the batch size."""
    sizes = (16, 32, 64, 128, 256)
    return markdown(
        ["", "epochs", *map(str, sizes)],
        [
            [
                *(name, str(epochs)),
                *(final(f"{folder}table8", optimizer=each, batch_size=size) for size in sizes),
            ]
            for epochs, folder in LENGTHS.items()
            for each, name in SYSTEMS.items()
        ],
    )
