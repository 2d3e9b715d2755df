"""Time a cell of the paper's Table 1, ResNet18 on CIFAR-10, as the laboratory trains it.

    PYTHONPATH=src python3 benchmarks/paper_cell.py                # a GPU; meant for 90 seconds
    PYTHONPATH=src python3 benchmarks/paper_cell.py --device cpu   # a test run on few images

The script needs only torch. It runs the laboratory's own epoch: augmentation, steps, evaluation, a
single read of results from the device, and a checkpoint. The images are noise, in the shape and
number of CIFAR-10. A GPU's results go to ``results/cost/cuda/paper-cell.json``. Results of a test
run are not written, unless ``--out`` is given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgdph.lab.data.dataset import plan_epoch
from sgdph.lab.data.tensors import TensorDataset, noise_dataset
from sgdph.lab.networks.models import build_model
from sgdph.lab.optimizers.build import make_optimizer
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.run.distributed import ALONE
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.epoch import Stopwatch, TrainingSums, train_epoch
from sgdph.lab.run.evaluation import evaluation_sums
from sgdph.lab.run.newton_steps import multiplier_summary
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.writer import Snapshot, Writer, write_checkpoint

# The values of the recipe: sgdph reproduce table1 --scale paper.
EPOCHS, TRAIN, TEST = 200, 50_000, 10_000
SETTINGS = {
    "sgdm": {"lr": 0.1, "weight_decay": 5e-4},
    "sgdph": {"lr": 0.01, "weight_decay": 5e-3},
}
MINUTES = 8
OUT = Path(__file__).parents[1] / "results" / "cost" / "cuda" / "paper-cell.json"
# Steps before the timing starts, in which kernels are loaded and memory is allocated.
WARM_UP_STEPS = 50


@dataclass
class Cell:
    """A network with its optimizer and data, as in a run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: TensorDataset
    arithmetic: Arithmetic
    generator: torch.Generator
    batch: int

    def train(self, steps: int) -> TrainingSums:
        """Train the first ``steps`` steps of an epoch."""
        self.model.train()
        plan = plan_epoch(self.data, self.generator)
        batches = self.data.training_batches(plan, self.batch)
        return train_epoch(
            self.model, self.optimizer, batches, steps=steps, arithmetic=self.arithmetic
        )

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return -(-self.data.train_count // self.batch)

    def content(self) -> dict[str, Any]:
        """Return the content of a checkpoint, without small items."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def make_cell(model: str, optimizer: str, precision: str, data: TensorDataset, batch: int) -> Cell:
    """Build a cell as the laboratory does, on the data's device."""
    torch.manual_seed(0)
    arithmetic = Arithmetic(precision)  # type: ignore[arg-type]
    arithmetic.set_backends(data.device)
    network = build_model(model, in_channels=3, classes=10)
    network.to(device=data.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    defaults = {k: v for k, v in BASELINES[optimizer].defaults.items() if v is not None}
    steps = make_optimizer(optimizer, network, {**defaults, **SETTINGS[optimizer]}, 0)
    return Cell(network, steps, data, arithmetic, torch.Generator().manual_seed(0), batch)


def noise(images: int, tests: int, device: torch.device) -> TensorDataset:
    """Make a data set of noise images, augmented like CIFAR-10."""
    return noise_dataset("cifar10", (3, 32, 32), 10, train=images, test=tests).to(device)


def one_epoch(cell: Cell, writer: Writer, path: Path) -> tuple[float, float]:
    """Train and evaluate an epoch like ``sgdph.lab.run.training``.

    Returns:
        Seconds of the whole epoch, and seconds of its training.
    """
    started, watch = time.perf_counter(), Stopwatch(cell.data.device)
    trained = cell.train(cell.steps)
    watch.stop()
    evaluated = evaluation_sums(cell.model, cell.data, cell.arithmetic, ALONE)
    trained.read(torch.cat([trained.values, evaluated]).tolist()[:3])
    multiplier_summary(cell.optimizer)
    snapshot = Snapshot(cell.content(), cell.data.device)
    writer.do(lambda: write_checkpoint([path], snapshot.content()))
    return time.perf_counter() - started, watch.seconds()


def time_cell(cell: Cell, epochs: int) -> dict[str, Any]:
    """Time whole epochs, and single steps, after a warm-up."""
    beside = cell.data.device.type == "cuda"
    if beside:
        torch.cuda.reset_peak_memory_stats()
    cell.train(min(WARM_UP_STEPS, cell.steps))
    with tempfile.TemporaryDirectory() as folder, Writer(beside) as writer:
        # The first epoch is dropped: it also loads what evaluation and checkpoint need.
        found = [one_epoch(cell, writer, Path(folder) / "last.pt") for _ in range(epochs + 1)][1:]
        writer.wait()
    seconds = statistics.median(whole for whole, _ in found)
    step, launched = step_times(cell)
    return {
        "epochs": [round(whole, 4) for whole, _ in found],
        "seconds_per_epoch": seconds,
        "training_seconds": statistics.median(training for _, training in found),
        "minutes_of_200_epochs": seconds * EPOCHS / 60,
        "step_milliseconds": 1000 * step,
        "launch_milliseconds": 1000 * launched,
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if beside else None,
    }


def step_times(cell: Cell, count: int = 10) -> tuple[float, float]:
    """Return the median seconds of a single step, and of launching it.

    If launching takes as long as the step, the device waits for the host.
    """
    wait: Callable[[], None] = (
        torch.cuda.synchronize if cell.data.device.type == "cuda" else lambda: None
    )
    plan = plan_epoch(cell.data, cell.generator)
    batches = list(itertools.islice(cell.data.training_batches(plan, cell.batch), count))
    cell.model.train()
    whole, launched = [], []
    for batch in batches:
        wait()
        started = time.perf_counter()
        train_epoch(cell.model, cell.optimizer, [batch], steps=1, arithmetic=cell.arithmetic)
        launched.append(time.perf_counter() - started)
        wait()
        whole.append(time.perf_counter() - started)
    return statistics.median(whole), statistics.median(launched)


def show_times(
    arguments: argparse.Namespace,
    device: torch.device,
    write: Callable[[Sequence[Mapping[str, Any]]], None],
) -> None:
    """Print a cell's times for each optimizer and precision; write the results after each."""
    rows = []
    images = arguments.images or (TRAIN if device.type == "cuda" else 4 * arguments.batch_size)
    data = noise(images, max(1, images * TEST // TRAIN), device)
    for precision, optimizer in itertools.product(arguments.precision.split(","), SETTINGS):
        cell = make_cell(arguments.model, optimizer, precision, data, arguments.batch_size)
        row = {"optimizer": optimizer, "precision": precision, **time_cell(cell, arguments.epochs)}
        rows.append(row)
        write(rows)
        print(
            f"{optimizer:6} {precision:9} {row['seconds_per_epoch']:7.2f} s an epoch of {images:,} "
            f"images, {row['minutes_of_200_epochs']:6.1f} min for {EPOCHS}; a step "
            f"{row['step_milliseconds']:.2f} ms, {row['launch_milliseconds']:.2f} ms to launch",
            flush=True,
        )
    if images == TRAIN:
        worst = max(row["minutes_of_200_epochs"] for row in rows)
        verdict = "within" if worst <= MINUTES else "beyond"
        print(f"The slowest takes {worst:.1f} minutes: {verdict} the {MINUTES} that were aimed at.")


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the results and write them if requested; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="tf32,bfloat16")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that are timed")
    parser.add_argument("--images", type=int, help="training images (50,000; few on a CPU)")
    parser.add_argument("--commit", help="the commit, where git cannot tell")
    parser.add_argument("--out", type=Path, help=f"a JSON file for the figures; a GPU's: {OUT}")
    arguments = parser.parse_args(words)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no CUDA GPU here, so nothing was timed; --device cpu rehearses it.")
        return 0
    device = torch.device(arguments.device)
    environment = describe_environment(device)
    environment["git_commit"] = environment["git_commit"] or arguments.commit
    print(f"{environment['device_name'] or environment['cpu']}, torch {torch.__version__}")
    out: Path | None = arguments.out or (OUT if device.type == "cuda" else None)
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            content = {"environment": {**environment, **versions}, "cells": rows}
            out.write_text(json.dumps(content, indent=2) + "\n")

    show_times(arguments, device, write)
    if out is not None:
        print(f"The figures lie in {out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
