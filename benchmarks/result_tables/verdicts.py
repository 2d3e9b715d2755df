"""The table of verdicts on the page of claims: regime, difference, interval, n, verdict."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from result_tables.accuracies import LENGTHS, difference_text, exchanged, finals_with, rows_of
from result_tables.costs import costs, ratio, with_range
from result_tables.markdown import RESULTS, markdown
from sgdph.lab.reports.numbers import points
from sgdph.lab.reports.statistics import Difference, Spread, difference

MNIST = "MNIST-5k, ResNet-8"
OPEN = "**not decided**"
FAILS = "**does not hold**"


def verdicts() -> str:
    """Make the table of all claims, with the measured values and verdicts."""
    claim_2 = "[2. Better test accuracy](#2-better-test-accuracy)"
    sgdph = "SGD-PH minus SGDM"
    cifar = "CIFAR-10 (10,000 images), ResNet-8, 12 epochs"
    equal = [Spread.of(exchanged(optimizer, "sgdph")) for optimizer in ("sgdph", "sgdm")]
    return markdown(
        ["claim", "tested on", "measured; accuracy in points (95% interval), n", "verdict"],
        [
            _block(),
            [claim_2, f"{MNIST}, 12 epochs", _over(sgdph, "mnist5k", "SGD-PH", "SGDM"), OPEN],
            [
                *(claim_2, f"{MNIST}, 60 epochs, equal lr and weight decay"),
                *(_shown(sgdph, difference(*equal)), f"{FAILS}: a tie"),
            ],
            [claim_2, cifar, _over(sgdph, "cifar10", "SGD-PH", "SGDM"), OPEN],
            [
                *(claim_2, cifar),
                *(_over("SGD-PH minus AdaHessian", "cifar10", "SGD-PH", "AdaHessian"), FAILS),
            ],
            [
                *(claim_2, "CIFAR-10 (10,000 images), ResNet-20, 12 epochs"),
                *(_over(sgdph, "cifar10-resnet20", "SGD-PH", "SGDM"), OPEN),
            ],
            [
                *(claim_2, "CIFAR-10 (50,000 images, 16 × 16), ResNet-8, 200 epochs"),
                _over(sgdph, "cifar10-paper", "SGD-PH", "SGDM"),
                f"{FAILS} with the paper's settings where known",
            ],
            *_narrow_vgg(
                "[3. More stable than AdaHessian on VGG](#3-more-stable-than-adahessian)",
                "with batch norm, SGD-PH minus AdaHessian",
                ("SGD-PH+BN", "AdaHessian+BN"),
                {12: OPEN, 60: f"{FAILS}: a tie"},
            ),
            _cost(),
            *_narrow_vgg(
                "[5. Weight normalisation with SGD-PH comes close to batch norm]"
                "(#5-weight-normalisation-and-sgd-ph)",
                "SGD-PH with weight norm minus SGDM with batch norm",
                ("SGD-PH+WN", "SGDM+BN"),
                {12: FAILS, 60: FAILS},
            ),
            *_robustness(),
        ],
        texts=4,
    )


def _block() -> list[str]:
    """Return the row of claim 1, from the study of blocks."""
    text = (RESULTS / "diagonality" / "blocks.json").read_text(encoding="utf-8")
    shares = [each["off_diagonal_share_mean"] for each in json.loads(text)]
    return [
        "[1. The Hessian block of a scale is diagonal](#1-the-block-is-diagonal)",
        "seven small networks on MNIST-5k, CIFAR-10 and text, 6 to 10 epochs",
        f"off-diagonal share {statistics.median(shares):.2f}, median; n = {len(shares)} blocks",
        FAILS,
    ]


def _over(name: str, study: str, first: str, second: str) -> str:
    """Format the difference of two systems in a study."""
    rows = rows_of(study)
    return _shown(name, rows[first].over(rows[second]))


def _shown(name: str, found: Difference | None) -> str:
    assert found is not None, name
    low, high = sorted(found.n)
    n = str(low) if low == high else f"{low} and {high}"
    return f"{name}: {difference_text(found)}, n = {n}"


def _cost() -> list[str]:
    """Return the row of claim 4, from the cost study: ranges over rounds instead of an interval."""
    found = costs("resnet18")
    ours, theirs = with_range(found["sgdph"]), with_range(found["adahessian-timm"])
    return [
        "[4. Less time and memory than AdaHessian](#4-time-and-memory-below-adahessians)",
        "one step, CIFAR ResNet18, batch 16, one CPU thread",
        f"time / SGDM's: SGD-PH {ours}, AdaHessian {theirs}; range over n = 3 rounds",
        "**holds**",
    ]


def cost() -> str:
    """Make the table of the costs that claim 4 compares."""
    names = {
        "sgdph": "SGD-PH, default",
        "sgdph-interval10": "SGD-PH, `hessian_interval=10`",
        "adahessian-timm": "AdaHessian (timm)",
        "adahessian": "AdaHessian (pytorch_optimizer)",
    }
    found = costs("resnet18")
    return markdown(
        ["", "time", "highest peak of memory"],
        [
            [name, with_range(found[key]), ratio(found[key]["worst_peak"])]
            for key, name in names.items()
        ],
    )


def _narrow_vgg(
    claim: str, name: str, pair: tuple[str, str], outcomes: Mapping[int, str]
) -> list[list[str]]:
    """Return the rows of claim 3 or 5, one for each number of epochs."""
    return [
        [
            *(claim, f"MNIST-5k, VGG19 of an eighth of the width, {epochs} epochs"),
            *(_over(name, f"{folder}mnist5k-vgg", *pair), outcomes[epochs]),
        ]
        for epochs, folder in LENGTHS.items()
    ]


def _robustness() -> list[list[str]]:
    """Return the rows of claims 6 to 9, one for each number of epochs.

    Claims 6 to 8 show the best mean minus the worst, over the values that were tried. No 95%
    interval is valid for a pair that was chosen because it is furthest apart, so none is shown.
    Claim 9 shows batch size 16 minus 256, with an interval.
    """
    place = "#6-to-9-robust-to-its-settings"
    sizes = f"{FAILS}, nor does it for SGDM"
    kinds: list[tuple[str, str, Callable[[str], str], Mapping[int, str]]] = [
        (
            *("[6. Robust to lr and weight decay]", "{}, {} epochs; five pairs"),
            lambda folder: _range([finals_with(f"{folder}table5", optimizer="sgdph")]),
            {12: OPEN, 60: OPEN},
        ),
        (
            *(
                "[7. Robust to τ]",
                "MNIST-5k and digits, ResNet-8 and VGG-8, {1} epochs; three values",
            ),
            lambda folder: _range(
                [
                    finals_with(f"{folder}table6", dataset=data, model=model)
                    for data in ("mnist5k", "digits")
                    for model in ("resnet8", "vgg8-bn")
                ]
            ),
            {12: OPEN, 60: OPEN},
        ),
        (
            *("[8. Robust to β₂]", "{}, {} epochs; three values"),
            lambda folder: _range([finals_with(f"{folder}table7")]),
            {12: OPEN, 60: OPEN},
        ),
        (
            *("[9. Robust to the batch size]", "{}, {} epochs, one lr; batches of 16 to 256"),
            lambda folder: _shown(
                "16 minus 256", difference(*(_batch_size(folder, size) for size in (16, 256)))
            ),
            {12: sizes, 60: sizes},
        ),
    ]
    return [
        [f"{claim}({place})", tested.format(MNIST, epochs), measured(LENGTHS[epochs]), outcome]
        for claim, tested, measured, outcomes in kinds
        for epochs, outcome in outcomes.items()
    ]


def _batch_size(folder: str, size: int) -> Spread:
    (finals,) = finals_with(f"{folder}table8", optimizer="sgdph", batch_size=size)
    return Spread.of(finals)


def _range(tables: Sequence[Any]) -> str:
    """Format the largest gap, over some tables, between a table's highest and lowest mean."""
    spreads = [[Spread.of(values) for values in entries] for entries in tables]
    means = [[each.mean or 0.0 for each in entries] for entries in spreads]
    n = {each.n for entries in spreads for each in entries}
    widest = max(max(values) - min(values) for values in means)
    return f"highest minus lowest mean: {points(widest)}, n = {', '.join(map(str, sorted(n)))}"
