"""Measure what each part of the cheaper step saves, by removing one part at a time.

    python benchmarks/step_parts.py [--model resnet18] [--batch-size 16] [--visits 8] [--rounds 3]

Time is CPU time of the process, and memory is the peak that a step allocates. Both are ratios to
SGDM's step. The visited Newton parameters are spread evenly over the depth. The variants alternate
in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from rich.console import Console

from sgdph.autograd.activations import ELEMENTWISE, RELU
from sgdph.autograd.batch_norm import BATCH_NORMS
from sgdph.autograd.convolution import CONVOLUTION
from sgdph.autograd.layer_norm import LAYER_NORM
from sgdph.autograd.lean import LEAN, RELEASING
from sgdph.autograd.matmul import MATRIX_PRODUCTS
from sgdph.autograd.shared_backward import SharedBackward
from sgdph.autograd.softmax import LOG_SOFTMAX, NLL_LOSSES, SOFTMAX
from sgdph.lab.cost.authors import newton_names
from sgdph.lab.cost.figures import CostSettings
from sgdph.lab.cost.measure import spread, time_round
from sgdph.lab.cost.memory import watch_memory
from sgdph.lab.cost.step import Contestant, Workload, build_workload
from sgdph.lab.cost.systems import SYSTEMS, Kind
from sgdph.lab.progress import step_reporter_for

PARTS = {
    "convolution": lambda: without(CONVOLUTION),
    "batch norm": lambda: without(*BATCH_NORMS),
    "ReLU": lambda: without(RELU),
    "matrix products": lambda: without(*MATRIX_PRODUCTS),
    "layer norm": lambda: without(LAYER_NORM),
    "activations": lambda: without(*ELEMENTWISE),
    "softmax and loss": lambda: without(SOFTMAX, LOG_SOFTMAX, *NLL_LOSSES),
    "inputs let go of": lambda: mock.patch.object(SharedBackward, "released_at", return_value=None),
    "late weight gradients": lambda: mock.patch.object(
        SharedBackward, "_is_better_late", return_value=False
    ),
}
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "SGDM": ("sgdm", ()),
    "all parts": ("sgdph", ()),
    **{f"without: {part}": ("sgdph", (part,)) for part in PARTS},
    "without: two phases": ("sgdph-plain", ()),
    "two phases alone": ("sgdph", tuple(PARTS)),
    "none: the plain way": ("sgdph-plain", tuple(PARTS)),
}


@contextlib.contextmanager
def without(*operations: str) -> Iterator[None]:
    """Let torch handle some operations, as if the package had no code for them."""
    with contextlib.ExitStack() as stack:
        for table in (LEAN, RELEASING):
            others: dict[str, Any] = {k: hook for k, hook in table.items() if k not in operations}
            stack.enter_context(mock.patch.dict(table, others, clear=True))
        yield


class Variant(Contestant):
    """A system whose steps run without some parts."""

    def __init__(self, name: str, workload: Workload) -> None:
        system, self._without = VARIANTS[name]
        super().__init__(SYSTEMS[system], workload, compiled=False)

    def step(self, kind: Kind, *, eager: bool = False) -> None:
        """Take a step without these parts."""
        with self._parts_taken_out():
            super().step(kind, eager=eager)

    @contextlib.contextmanager
    def _parts_taken_out(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for part in self._without:
                stack.enter_context(PARTS[part]())
            yield


def peaks(variant: Variant, places: list[int]) -> list[int]:
    """Measure the peak bytes of a step at each place, after steps that create the state."""
    (kind,) = variant.system.weights
    variant.step(kind)
    with watch_memory(torch.device("cpu")) as memory:
        found = []
        for place in places:
            variant.go_to(place, kind)
            variant.step(kind)
            variant.go_to(place, kind)
            variant.clear()
            memory.start()
            variant.step(kind)
            found.append(memory.peak().added)
    return found


def main() -> None:
    """Measure all variants, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--visits", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = CostSettings(systems=("sgdph",))
    cpu = torch.device("cpu")
    workload = build_workload(arguments.model, arguments.batch_size, settings, cpu)
    places = spread(len(newton_names(workload.model)), arguments.visits)
    variants = {name: Variant(name, workload) for name in VARIANTS}
    memory = {name: peaks(variant, places) for name, variant in variants.items()}
    with step_reporter_for(Console(), 1) as reporter:
        units = arguments.rounds * len(places) * len(variants)
        reporter.cell_started(f"{arguments.model}, batch {arguments.batch_size}", units)
        contestants = list(variants.values())
        rounds = [time_round(contestants, places, cpu, reporter) for _ in range(arguments.rounds)]
    print(
        f"{arguments.model}, batch {arguments.batch_size}, {arguments.threads} thread(s), "
        f"{len(places)} parameters visited, {arguments.rounds} rounds, torch {torch.__version__}"
    )
    base = statistics.fmean(memory["SGDM"])
    print(f"{'SGDM = 1.00':34} time (lowest to highest)   mean peak   worst peak")
    for i, (name, variant) in enumerate(variants.items()):
        (kind,) = variant.system.weights
        ratios = [each[i, kind][0] / each[0, "plain"][0] for each in rounds]
        print(
            f"{name:34} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f"{statistics.fmean(memory[name]) / base:18.2f}{max(memory[name]) / base:13.2f}"
        )


if __name__ == "__main__":
    main()
