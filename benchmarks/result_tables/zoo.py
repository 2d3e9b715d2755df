"""Tables of the network zoo, made from ``results/zoo``."""

from __future__ import annotations

import csv

from network_zoo.row import PACKAGES, Row

from result_tables.markdown import RESULTS, markdown


def _rows(package: str) -> list[Row]:
    with (RESULTS / "zoo" / "networks.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in map(Row.of, csv.DictReader(file)) if row.package == package]


def _power(error: float | None) -> str:
    if error is None:
        return "–"
    return f"{error:.1e}" if error else "0"


def summary() -> str:
    """Make the table of how many networks of each package are right."""
    lines = []
    for package in PACKAGES:
        rows = _rows(package)
        right = [row for row in rows if row.result == "ok"]
        double = [row.error or 0.0 for row in right if row.dtype == "float64"]
        gradients = [row.gradient_error or 0.0 for row in rows if row.gradient_error is not None]
        lines.append(
            [
                f"{package} {', '.join(sorted({row.version for row in rows}))}",
                ", ".join(sorted({row.commit for row in rows})),
                f"{len(right)} of {len(rows)}",
                f"{sum(row.fused_attentions > 0 for row in right)}",
                f"{len(double)}",
                _power(max(double, default=0.0)),
                f"{sum(error == 0 for error in gradients)} of {len(gradients)}",
                _power(max(gradients, default=0.0)),
            ]
        )
    return markdown(
        [
            *(
                "package",
                "commit",
                "right",
                "of these with fused attention",
                "in float64",
                "largest error there",
            ),
            *("first gradients torch's to the bit", "largest error of the others"),
        ],
        lines,
        texts=2,
    )


def networks(package: str) -> str:
    """Make the table of all networks of a package."""
    return markdown(
        [
            *("family", "network", "result", "dtype", "parameters", "Newton parameters"),
            *("fused attentions", "error of the product", "of first gradients", "seconds"),
        ],
        [
            [
                row.family,
                f"`{row.name}`" if row.name != row.family else "",
                f"{row.result}: {row.reason}" if row.reason else row.result,
                row.dtype,
                f"{row.parameters:,}",
                f"{row.newton:,}",
                str(row.fused_attentions),
                _power(row.error),
                _power(row.gradient_error),
                f"{row.seconds:.1f}",
            ]
            for row in _rows(package)
        ],
        texts=4,
    )
