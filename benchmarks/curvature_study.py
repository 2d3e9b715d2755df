"""Does the curvature matter to training? SGD-PH's estimators, and controls without curvature.

    python benchmarks/curvature_study.py run mnist5k [--systems sgdm,row-sum,...]
    python benchmarks/curvature_study.py run pydoc
    python benchmarks/curvature_study.py run cifar10 --data-dir DIR
    python benchmarks/curvature_study.py run mnist5k --systems exact --point 0.3 5e-4
    python benchmarks/curvature_study.py report

Each system is tuned first, all with one budget: the task's grid of lr and weight decay, on
training data alone, of which a fifth is held out (another fifth for each tuning seed). Then it
trains with five seeds at its best point, and is judged on the test set. Every finished run is one
line of ``TASK.jsonl``; a call that is repeated goes on where the last one stopped. ``--point``
takes a system's lr and weight decay as given, for one that is too dear to tune: the exact diagonal
takes a product for each channel.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tune_small import FOLDS, Silent, fold

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.tensors import TextDataset
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.start import prepare
from sgdph.lab.run.training import train_run

OUT = Path("results/diagonality/training")
SEEDS = (0, 1, 2, 3, 4)

SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "sgdm": {"optimizer": "sgdm"},
    "row-sum": {"optimizer": "sgdph"},
    "mean": {"optimizer": "sgdph-mean"},
    "shuffled": {"optimizer": "sgdph-shuffled"},
    "fixed-1": {"optimizer": "sgdph-fixed1"},
    "fixed-10": {"optimizer": "sgdph-fixed10"},
    "hutchinson": {"optimizer": "sgdph", "estimator": "hutchinson"},
    "hutchinson-every-10": {
        "optimizer": "sgdph",
        "estimator": "hutchinson",
        "hessian_interval": 10,
    },
    "hutchinson-all": {
        "optimizer": "sgdph",
        "estimator": "hutchinson",
        "refresh": "all",
        "hessian_momentum": 0.99,
    },
    "exact": {"optimizer": "sgdph", "estimator": "exact"},
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: what is trained on what, and the grid every system is tuned over.

    Attributes:
        options: The laboratory's options.
        lrs: Learning rates.
        weight_decays: Weight decays.
        tuning_seeds: How many runs a point of the grid gets.
    """

    options: Mapping[str, Any]
    lrs: Sequence[float]
    weight_decays: Sequence[float]
    tuning_seeds: int


TASKS: Mapping[str, Task] = {
    "mnist5k": Task(
        {"dataset": "mnist5k", "model": "resnet8", "epochs": 8, "batch_size": 25},
        lrs=(0.03, 0.1, 0.3),
        weight_decays=(5e-4, 5e-3),
        tuning_seeds=2,
    ),
    "pydoc": Task(
        {
            "dataset": "pydoc",
            "model": "transformer",
            "train_size": 1000,
            "epochs": 10,
            "batch_size": 25,
        },
        lrs=(0.1, 0.3, 1.0),
        weight_decays=(5e-5, 5e-4),
        tuning_seeds=2,
    ),
    "cifar10": Task(
        {
            "dataset": "cifar10",
            "model": "resnet8",
            "train_size": 4000,
            "epochs": 6,
            "batch_size": 50,
        },
        lrs=(0.03, 0.1, 0.3),
        weight_decays=(5e-4, 5e-3),
        tuning_seeds=1,
    ),
}


def held_out(data: Dataset, k: int) -> Dataset:
    """Hold out the k-th fifth of the training data, and forget the test data."""
    if not isinstance(data, TextDataset):
        return fold(data, k)
    # Neighbouring windows belong together, so whole stretches of text are held out.
    count = len(data.train_labels)
    held = torch.arange(count) * FOLDS // count == k
    return dataclasses.replace(
        data,
        train_images=data.train_images[~held],
        train_labels=data.train_labels[~held],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
    )


def trained(config: RunConfig, data: Dataset) -> dict[str, Any]:
    """Train one run and say how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run")
        directory.create(config)
        summary = train_run(prepare(config, data), directory, Silent())
        metrics = directory.read_metrics()
    finished = summary["status"] == "finished"
    return {
        "status": summary["status"],
        "accuracy": summary["final_test_accuracy"] if finished else None,
        "loss": metrics[-1]["test_loss"] if finished else None,
        "train_loss": metrics[-1]["train_loss"] if finished else None,
        "accuracies": [line["test_accuracy"] for line in metrics],
        "newton_multiplier": metrics[-1].get("newton_multiplier") if metrics else None,
    }


class Study:
    """One task's runs, each trained once.

    Args:
        name: The task's.
        data: Its data set.
        file: Where the finished runs' lines are.
    """

    def __init__(self, name: str, data: Dataset, file: Path) -> None:
        self.task = TASKS[name]
        self.data = data
        self.file = file
        self.lines = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        self.environment = describe_environment(torch.device("cpu"))

    def run(self, system: str, point: tuple[float, float] | None) -> None:
        """Tune a system, unless its point is given, and train it with every seed."""
        lr, weight_decay = point or self.tuned(system)
        for seed in SEEDS:
            self.line("test", system, lr, weight_decay, seed)

    def tuned(self, system: str) -> tuple[float, float]:
        """Search the grid for the best lr and weight decay."""
        points = list(itertools.product(self.task.lrs, self.task.weight_decays))
        scores = {}
        for lr, weight_decay in points:
            lines = [
                self.line("tune", system, lr, weight_decay, seed)
                for seed in range(self.task.tuning_seeds)
            ]
            # A point at which any run diverged loses to one at which none did.
            scores[lr, weight_decay] = (
                statistics.mean(line["accuracy"] or 0.0 for line in lines),
                -statistics.mean(line["loss"] or 1e9 for line in lines),
            )
        return max(points, key=scores.__getitem__)

    def line(
        self, phase: str, system: str, lr: float, weight_decay: float, seed: int
    ) -> dict[str, Any]:
        """Return a run's line; train it where there is none yet."""
        key = {
            "phase": phase,
            "system": system,
            "lr": lr,
            "weight_decay": weight_decay,
            "seed": seed,
        }
        for line in self.lines:
            if key.items() <= line.items():
                return line
        settings = {"lr": lr, "weight_decay": weight_decay, "seed": seed, "threads": 1}
        data_dir = {"data_dir": "."} if self.task.options["dataset"] == "cifar10" else {}
        config = resolve({**self.task.options, **SYSTEMS[system], **settings, **data_dir})
        data = held_out(self.data, seed) if phase == "tune" else self.data
        line = {**key, **trained(config, data), "commit": self.environment["git_commit"]}
        self.lines.append(line)
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print({name: line[name] for name in (*key, "accuracy")}, flush=True)
        return line


def systems_of(text: str) -> Iterator[str]:
    """Read ``"sgdm,row-sum"``."""
    for name in text.split(","):
        if name not in SYSTEMS:
            raise SystemExit(f"--systems takes {', '.join(SYSTEMS)}; got {name!r}")
        yield name


def main() -> None:
    """Run a task, or make the tables and the picture of what has been run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("task", choices=TASKS)
    run.add_argument("--systems", default=",".join(SYSTEMS))
    run.add_argument("--point", type=float, nargs=2, metavar=("LR", "WEIGHT_DECAY"))
    run.add_argument("--data-dir", type=Path)
    commands.add_parser("report")
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.command == "report":
        from curvature_report import write_report

        write_report(arguments.out, list(TASKS), list(SYSTEMS), SEEDS)
        return
    torch.set_num_threads(1)
    task = TASKS[arguments.task]
    data = load_dataset(
        task.options["dataset"],
        data_dir=arguments.data_dir,
        train_size=task.options.get("train_size"),
    )
    study = Study(arguments.task, data, arguments.out / f"{arguments.task}.jsonl")
    (arguments.out / f"{arguments.task}-environment.json").write_text(
        json.dumps(study.environment, indent=1) + "\n"
    )
    for system in systems_of(arguments.systems):
        study.run(system, arguments.point and tuple(arguments.point))


if __name__ == "__main__":
    main()
