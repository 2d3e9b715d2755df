"""Tune lr and weight decay on MNIST-5k: equal budgets, and never on the test set.

    python benchmarks/tune_small.py [--optimizers sgdm,sgdph,adamw] [--out results/tuning-mnist5k]

Of the 1,000 training images 800 train and 200 validate, a different, stratified fifth for each of
three seeds. Eight points of a grid for each optimizer, three runs a point, all else at the
laboratory's defaults; ranked by mean final validation accuracy, then by validation loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

import torch

from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.tensors import channel_statistics
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.start import prepare
from sgdph.lab.run.training import train_run

GRIDS = {
    "sgdm": [(lr, wd) for lr in (0.01, 0.03, 0.1, 0.3) for wd in (5e-4, 5e-3)],
    "sgdph": [(lr, wd) for lr in (0.01, 0.03, 0.1, 0.3) for wd in (5e-4, 5e-3)],
    "adamw": [(lr, wd) for lr in (3e-4, 1e-3, 3e-3, 1e-2) for wd in (5e-3, 5e-2)],
}
SEEDS = (0, 1, 2)
FOLDS = 5


class Silent:
    """Says nothing of a run's progress."""

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """Ignore it."""

    def batch_finished(self) -> None:
        """Ignore it."""

    def epoch_finished(self, metrics: object, epochs: int) -> None:
        """Ignore it."""

    def run_finished(self, name: str, message: str) -> None:
        """Ignore it."""


def fold(data: Dataset, k: int) -> Dataset:
    """Hold out the k-th stratified fifth of the training images, and forget the test images."""
    place = torch.zeros_like(data.train_labels)
    for label in range(data.classes):
        members = (data.train_labels == label).nonzero().flatten()
        place[members] = torch.arange(len(members)) % FOLDS
    kept, held = place != k, place == k
    mean, std = channel_statistics(data.train_images[kept])
    return dataclasses.replace(
        data,
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
        mean=mean,
        std=std,
    )


def validate(optimizer: str, lr: float, weight_decay: float, folds: list[Dataset]) -> dict:
    """Train one point of the grid with every seed."""
    accuracies, losses = [], []
    for seed in SEEDS:
        given = {"optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "seed": seed}
        config = resolve({**given, "threads": 1})
        with tempfile.TemporaryDirectory() as folder:
            directory = RunDirectory(Path(folder) / "run")
            directory.create(config)
            summary = train_run(prepare(config, folds[seed]), directory, Silent())
            metrics = directory.read_metrics()
        finished = summary["status"] == "finished"
        accuracies.append(summary["final_test_accuracy"] if finished else 0.0)
        losses.append(metrics[-1]["test_loss"] if finished else float("inf"))
    return {
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "validation_accuracy": accuracies,
        "mean_accuracy": statistics.mean(accuracies),
        "mean_loss": statistics.mean(losses),
    }


def main() -> None:
    """Run the grids and write one JSON file an optimizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", default="sgdm,sgdph,adamw")
    parser.add_argument("--out", type=Path, default=Path("results/tuning-mnist5k"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load_dataset("mnist5k")
    folds = [fold(data, k) for k in SEEDS]
    environment = describe_environment(torch.device("cpu"))
    for optimizer in arguments.optimizers.split(","):
        points = []
        for lr, weight_decay in GRIDS[optimizer]:
            points.append(validate(optimizer, lr, weight_decay, folds))
            print(json.dumps(points[-1]), flush=True)
        points.sort(key=lambda point: (-point["mean_accuracy"], point["mean_loss"]))
        result = {"points": points, "environment": environment}
        file = arguments.out / f"{optimizer}.json"
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{optimizer}: best {points[0]}, in {file.resolve()}", flush=True)


if __name__ == "__main__":
    main()
