"""Measure the share of an epoch on a CPU that is not the network's own arithmetic.

    python benchmarks/epoch_parts.py [--model resnet8,resnet18] [--batch-size 128] [--rounds 3]

The network's own arithmetic is its forward pass in training and evaluation, the backward pass and
the optimizer's step. The rest is overhead: order, augmentation, loss, sums, checkpoint. Each part
is measured per image or per epoch on random images, and scaled to an epoch of CIFAR-10: 50,000
training images and 10,000 evaluation images. Times are CPU times of the process, so that other
programs have little influence. The checkpoint's time is wall time, because it waits for the disk.
The script needs only torch.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from paper_cell import SETTINGS, TEST, TRAIN, Cell, make_cell, noise
from torch import Tensor

from sgdph.lab.data.dataset import plan_epoch
from sgdph.lab.run import epoch
from sgdph.lab.run.distributed import ALONE
from sgdph.lab.run.epoch import train_epoch
from sgdph.lab.run.evaluation import evaluation_sums
from sgdph.lab.run.writer import write_checkpoint


class Parts:
    """CPU seconds of the process by part. The time of a nested part counts for that part alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time in the context towards a part."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def within(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time counts towards a part."""

        def counted(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return call(*arguments, **options)

        return counted


def epoch_parts(cell: Cell, steps: int) -> dict[str, float]:
    """Estimate the seconds of each part of an epoch of CIFAR-10, from a few of its steps."""
    parts = Parts()
    forward = mock.patch.object(cell.model, "forward", parts.within("network", cell.model.forward))
    step = mock.patch.object(
        epoch, "optimization_step", parts.within("network", epoch.optimization_step)
    )
    with forward, step:
        with parts.part("order"):
            plan = plan_epoch(cell.data, cell.generator)
        batches = timed(parts, cell.data.training_batches(plan, cell.batch))
        cell.model.train()
        with parts.part("loss, sums, loop"):
            train_epoch(
                cell.model, cell.optimizer, batches, steps=steps, arithmetic=cell.arithmetic
            )
        order = parts.seconds.pop("order")
        found = {name: each * TRAIN / (steps * cell.batch) for name, each in parts.seconds.items()}
        parts.seconds.clear()
        with parts.part("evaluation's batches and sums"):
            evaluation_sums(cell.model, cell.data, cell.arithmetic, ALONE)
    for name, each in parts.seconds.items():
        found[name] = found.get(name, 0.0) + each * TEST / cell.data.test_count
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint([Path(folder) / "last.pt"], cell.content())
    return {**found, "order": order, "checkpoint": time.perf_counter() - started}


def timed(
    parts: Parts, batches: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; the time to make them counts towards the augmentation."""
    following = parts.within("augmentation", lambda: next(batches, None))
    while (batch := following()) is not None:
        yield batch


def main() -> None:
    """Print each part's share of an epoch, the median of several rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet8,resnet18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch, rounds = arguments.batch_size, arguments.rounds
    # The order of an epoch covers all images, but only a few of them are trained on.
    data = noise(TRAIN, 2 * batch, torch.device("cpu"))
    for model, optimizer in itertools.product(arguments.model.split(","), SETTINGS):
        cell = make_cell(model, optimizer, "float32", data, batch)
        cell.train(1)
        found = [epoch_parts(cell, arguments.steps) for _ in range(rounds)]
        shares = [{name: each / sum(one.values()) for name, each in one.items()} for one in found]
        overheads = [1 - share["network"] for share in shares]
        print(
            f"{model}, {optimizer}, batch {batch}, torch {torch.__version__}: "
            f"{statistics.median(overheads):.2%} of an epoch is not the network's "
            f"({min(overheads):.2%} to {max(overheads):.2%} in {rounds} rounds)"
        )
        median = {name: statistics.median(s[name] for s in shares) for name in shares[0]}
        for name, share in sorted(median.items(), key=lambda item: -item[1]):
            print(f"  {name:32}{share:9.3%}")


if __name__ == "__main__":
    main()
