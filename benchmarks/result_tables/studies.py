"""Tables of the studies that have a form of their own."""

from __future__ import annotations

import csv
import json
from typing import Any

from comparison import percent

from result_tables.markdown import RESULTS, markdown


def with_controls(task: str) -> str:
    """SGD-PH beside controls without curvature."""
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
    file = RESULTS / "diagonality" / "training" / "summary.json"
    rows = []
    for found in json.loads(file.read_text(encoding="utf-8"))[task]:
        tested = found.get("p_holm") is not None
        rows.append(
            [
                names[found["system"]],
                f"{found['lr']:g}, {found['weight_decay']:g}",
                f"{found['accuracy']:.2f} ± {found['accuracy_std']:.2f} (n = {found['n']})",
                f"{found['loss']:.4f}",
                f"{found['difference']:+.2f}" if tested else "",
                f"{found['p_holm']:.3f}" if tested else "",
            ]
        )
    headings = ("system", "lr, wd", "test accuracy %", "test loss", "against the row sum")
    return markdown([*headings, "p (Holm)"], rows, 6)


def differences() -> str:
    """How far differences of gradients lie from the exact product."""
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


def points() -> list[dict[str, Any]]:
    """Read the search on MNIST-5k that the defaults come from."""
    return [
        point
        for optimizer in ("sgdm", "sgdph", "adamw")
        for point in json.loads((RESULTS / "tuning-mnist5k" / f"{optimizer}.json").read_text())[
            "points"
        ]
    ]


def search() -> str:
    """All points of that search."""
    rows: dict[tuple[str, float], list[tuple[float, str]]] = {}
    for point in points():
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
    """The points of that search at one weight decay."""
    rates = (0.01, 0.03, 0.1, 0.3)
    cells = {
        (point["optimizer"], point["lr"]): percent(point["validation_accuracy"])
        for point in points()
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
    """A table of which only the page's figures were kept."""
    with (RESULTS / "transcribed" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        headings, *rows = csv.reader(file)
    return markdown(headings, rows, texts)
