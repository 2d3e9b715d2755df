"""Tables of the paper's own regime: CIFAR-10, 200 epochs."""

from __future__ import annotations

import statistics

from comparison import by_system

from result_tables.markdown import RESULTS, markdown
from result_tables.studies import compare_pairs, final_spreads, long_study
from sgdph.lab.reports.statistics import Spread

STUDY = "cifar10-paper"
# What the page of claims calls a system of the paper's regime; the order is the page's.
NAMES = {
    "SGDM": "SGDM",
    "SGD-PH": "SGD-PH",
    "SGD-PH, eps_warmup": "SGD-PH, `eps_warmup=True`",
    "control: multiplier 1": "control: multiplier 1",
}


def final() -> str:
    """Make the table of final accuracies, each system compared with SGDM."""
    return long_study(STUDY, NAMES)


def curves() -> str:
    """Make the table of SGD-PH's and SGDM's accuracy curves, by parts of training."""
    found = by_system(RESULTS / "evidence" / STUDY / "table")
    each_run = [[run.accuracies for run in found[label]] for label in ("SGD-PH", "SGDM")]
    ours, theirs = (list(map(statistics.fmean, zip(*each, strict=True))) for each in each_run)
    spans = [range(60), range(60, 120), range(120, 180), range(180, 200)]
    pairs = []
    for part in spans:
        means = [
            [statistics.fmean(run[epoch] for epoch in part) for run in each] for each in each_run
        ]
        pairs.append((Spread.of(means[0]), Spread.of(means[1])))
    rows = [
        [
            *(f"{part.start + 1} to {part.stop}", sgdm.show(100, 2), sgdph.show(100, 2), *cells),
            f"{sum(ours[epoch] > theirs[epoch] for epoch in part)} of {len(part)}",
        ]
        for part, (sgdph, sgdm), cells in zip(spans, pairs, compare_pairs(pairs), strict=True)
    ]
    headings = ["epochs", "SGDM, %", "SGD-PH, %", "SGD-PH minus SGDM (95% interval)"]
    return markdown([*headings, "p (Holm)", "outcome", "epochs with SGD-PH's mean above"], rows)


def parts() -> str:
    """Make the table of the parts of SGD-PH's distance from SGDM, over 200 epochs."""
    finals = final_spreads(RESULTS / "evidence" / STUDY / "table")
    names = {
        ("control: multiplier 1", "SGDM"): "lr and weight decay",
        ("SGD-PH", "control: multiplier 1"): "multipliers",
        ("SGD-PH, eps_warmup", "SGD-PH"): "the bias correction",
    }
    cells = compare_pairs([(finals[first], finals[second]) for first, second in names])
    rows = [
        [f"{NAMES[first]} minus {NAMES[second]}", what, *each]
        for ((first, second), what), each in zip(names.items(), cells, strict=True)
    ]
    headings = ["difference", "what differs", "points (95% interval)", "p (Holm)", "outcome"]
    return markdown(headings, rows, 2)
