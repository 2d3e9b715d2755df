"""The paper's comparison at CPU scale: all systems tuned with equal budgets, then run with seeds.

    python benchmarks/evidence.py mnist5k --jobs 2
    python benchmarks/evidence.py mnist5k-vgg --jobs 2
    python benchmarks/evidence.py cifar10 --data-dir DIR --jobs 2

There are three steps. If a call is interrupted, the same call resumes it. ``--systems`` selects
some systems and leaves the others for later calls. All files are in ``runs/evidence/TASK``.
``results/evidence/TASK`` holds the files that are kept.

1. ``sgdph tune`` runs once for each system. All have the same number of trials, and equally wide
   ranges of lr and weight decay (and of τ, if the system's name says so). The trials are evaluated
   on held-out training images.
2. ``tuning.csv`` and ``tuning.json`` get all results. ``recipe.yaml`` gets the best settings, in
   the format that ``sgdph reproduce`` takes.
3. ``sgdph reproduce recipe.yaml`` trains on all training images with all seeds, and evaluates on
   the test set.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sgdph.lab import cli
from sgdph.lab.files import write_json, write_text
from sgdph.lab.reports.table import Table
from sgdph.lab.sweep.recipe import FORMAT
from sgdph.lab.tune.record import TRIALS

OUT = Path("runs/evidence")
TUNING, SEARCHES = "tuning.csv", "tuning.json"
# Range of τ: two and a half decades around the paper's value. For the systems with τ tuned.
TAU = "second_order_lr=3e-4:1e-1:log"
JOINT = {"estimator": "hutchinson", "refresh": "all", "hessian_momentum": 0.99}


@dataclasses.dataclass(frozen=True)
class System:
    """One system of the comparison.

    Attributes:
        optimizer: Its name in the laboratory.
        options: The options that distinguish it from other systems.
        tunes_tau: Whether τ is tuned together with lr and weight decay, with the same number of
            trials.
    """

    optimizer: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tunes_tau: bool = False


PAPER = {
    "SGDM": System("sgdm"),
    "Adam": System("adam"),
    "AdamW": System("adamw"),
    "AdaBelief": System("adabelief"),
    "AdaHessian": System("adahessian"),
    # Shorter than its author's 500 steps of warm-up, which the MNIST runs do not have.
    "Apollo": System("apollo", {"optimizer_args": {"warmup_steps": 40}}),
    "SGD-PH": System("sgdph"),
}
VARIANTS = {
    "SGD-PH, interval 10": System("sgdph", {"hessian_interval": 10}),
    "SGD-PH, Hutchinson": System("sgdph", {"estimator": "hutchinson"}),
    "SGD-PH, Hutchinson all": System("sgdph", JOINT),
}
# Possible presets, and the controls that they have to beat: τ tuned, but no curvature.
PRESETS = {
    "SGD-PH, interval 10, τ tuned": System("sgdph", {"hessian_interval": 10}, tunes_tau=True),
    "SGD-PH, Hutchinson all, interval 10, τ tuned": System(
        "sgdph", {**JOINT, "hessian_interval": 10}, tunes_tau=True
    ),
    "control: multiplier τ/ε tuned, no curvature": System("sgdph-fixed", tunes_tau=True),
    "control: multipliers shuffled, interval 10, τ tuned": System(
        "sgdph-shuffled", {"hessian_interval": 10}, tunes_tau=True
    ),
}
VGG = {
    "SGDM": System("sgdm", {"model": "vgg19-narrow"}),
    "SGDM+WN": System("sgdm", {"model": "vgg19-narrow-wn"}),
    "SGD-PH+WN": System("sgdph", {"model": "vgg19-narrow-wn"}),
    "AdaHessian": System("adahessian", {"model": "vgg19-narrow"}),
    "SGDM+BN": System("sgdm", {"model": "vgg19-narrow-bn"}),
    "SGD-PH+BN": System("sgdph", {"model": "vgg19-narrow-bn"}),
    "AdaHessian+BN": System("adahessian", {"model": "vgg19-narrow-bn"}),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of one comparison, on which all its systems are trained.

    Attributes:
        title: Title above the table.
        options: Options of the laboratory, for tuning and final runs.
        systems: Maps labels in the table to systems.
        seeds: Seeds of the final runs.
        trials: Number of trials for each system's tuning.
        tuning: Options for the tuning only.
        untimed: Systems whose committed runs shared the machine with other work. Their seconds are
            not comparable.
    """

    title: str
    options: Mapping[str, Any]
    systems: Mapping[str, System]
    seeds: Sequence[int]
    trials: int
    tuning: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    untimed: frozenset[str] = frozenset()


_MNIST = {"dataset": "mnist5k", "batch_size": 25, "schedule": "cosine"}
TASKS = {
    "mnist5k": Task(
        "MNIST-5k, ResNet-8, every system tuned",
        {**_MNIST, "model": "resnet8", "epochs": 12},
        {**PAPER, **VARIANTS, **PRESETS},
        seeds=range(5),
        trials=12,
    ),
    "mnist5k-vgg": Task(
        "MNIST-5k, a narrow VGG19 with and without batch norm, every system tuned",
        {**_MNIST, "epochs": 12},
        VGG,
        seeds=range(5),
        trials=12,
    ),
    "cifar10": Task(
        "CIFAR-10 (10,000 training images), ResNet-8, every system tuned",
        {
            "dataset": "cifar10",
            "train_size": 10000,
            "model": "resnet8",
            "epochs": 12,
            "batch_size": 64,
            "schedule": "cosine",
        },
        {**PAPER, **VARIANTS, **PRESETS},
        seeds=range(5),
        trials=12,
        # Half as long as the final runs. Otherwise the tuning would take most of the time.
        tuning={"epochs": 6, "validation_size": 2000},
        untimed=frozenset(
            {
                "Adam",
                "SGD-PH, Hutchinson",
                "SGD-PH, interval 10, τ tuned",
                "SGD-PH, Hutchinson all, interval 10, τ tuned",
                "control: multipliers shuffled, interval 10, τ tuned",
            }
        ),
    ),
}


def slug(label: str) -> str:
    """Convert a label to a directory name."""
    return "-".join("".join(c if c.isalnum() else " " for c in label.lower()).split())


def flags(options: Mapping[str, Any]) -> list[str]:
    """Convert options to command-line arguments."""
    words = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += [flag, *(f"{key}={each}" for key, each in value.items())]
        else:
            words.append(f"{flag}={value}")
    return words


def tune(task: Task, label: str, out: Path, place: Sequence[str], jobs: int) -> dict[str, Any]:
    """Run or resume the tuning of one system, and return its record."""
    system = task.systems[label]
    words = ["tune", *flags({**task.options, **system.options, **task.tuning}), *place]
    words += [f"--optimizers={system.optimizer}", f"--trials={task.trials}", f"--out={out}"]
    words += [f"--jobs={jobs}", "--threads=1"]
    if system.tunes_tau:
        words.append(f"--space={system.optimizer}.{TAU}")
    print("sgdph", *words, flush=True)
    if code := cli.main(words):
        raise SystemExit(code)
    return dict(json.loads((out / TRIALS).read_text(encoding="utf-8")))


def write_tuning(directory: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the tunings of all systems: one CSV line per trial, and the settings of each search."""
    rows, searches = [], {}
    for label, record in found.items():
        ((optimizer, search),) = record["optimizers"].items()
        best, trials = search["best"], search["trials"]
        for trial in trials:
            figures = {name: value for name, value in trial.items() if name != "settings"}
            first = {"system": label, "best": trial["number"] == best}
            rows.append({**first, **figures, **trial["settings"]})
        rest = {name: value for name, value in search.items() if name != "trials"}
        searches[label] = {**record, "optimizers": {optimizer: rest}}
    write_text(directory / TUNING, Table.of_records(rows).csv())
    write_json(directory / SEARCHES, searches)


def best_cells(task: Task, directory: Path) -> list[dict[str, Any]]:
    """Return each tuned system's options, with the best settings that were found."""
    with (directory / TUNING).open(encoding="utf-8", newline="") as file:
        best = [row for row in csv.DictReader(file) if row["best"] == "True"]
    cells = []
    for row in best:
        system = task.systems[row["system"]]
        names = ("lr", "weight_decay", "second_order_lr")
        found = {name: float(row[name]) for name in names if row.get(name)}
        cells.append(
            {"label": row["system"], "optimizer": system.optimizer, **system.options, **found}
        )
    return cells


def recipe(task: Task, cells: Sequence[Mapping[str, Any]], command: str) -> str:
    """Return the text of the comparison's recipe."""
    scale = {
        "description": f"Each system's settings are the best of {task.trials} trials on held-out "
        "training images.",
        "time": "hours on 2 CPU cores; --dry-run tells",
        "seeds": list(task.seeds),
        "options": dict(task.options),
        "axes": [[dict(cell) for cell in cells]],
    }
    return yaml.safe_dump(
        {
            "format": FORMAT,
            "title": task.title,
            "paper": f"Not one of the paper's tables: its comparison, tuned here by {command}",
            "layout": {"rows": ["system"], "columns": ["dataset"]},
            "scales": {"cpu": scale},
        },
        sort_keys=False,
        allow_unicode=True,
    )


def main() -> int:
    """Tune, write the recipe and train; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--out", type=Path, help=f"default: {OUT}/TASK")
    parser.add_argument("--data-dir", help="for cifar10")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--systems", help="labels, separated by semicolons; all unless given")
    given = parser.parse_args()
    task, out = TASKS[given.task], given.out or OUT / given.task
    asked = given.systems.split(";") if given.systems else list(task.systems)
    if unknown := [label for label in asked if label not in task.systems]:
        parser.error(f"no system {unknown}; choose from {'; '.join(task.systems)}")
    # Systems of earlier calls are in the table too, in the task's order.
    labels = [x for x in task.systems if x in asked or (out / "tuning" / slug(x)).exists()]
    place = [f"--data-dir={given.data_dir}"] if given.data_dir else []
    found = {x: tune(task, x, out / "tuning" / slug(x), place, given.jobs) for x in labels}
    write_tuning(out, found)
    path = out / "recipe.yaml"
    command = f"`python benchmarks/evidence.py {given.task}`"
    write_text(path, recipe(task, best_cells(task, out), command))
    words = ["reproduce", str(path), "--scale=cpu", f"--out={out / 'table'}", "--threads=1"]
    return cli.main([*words, *place, f"--jobs={given.jobs}"])


if __name__ == "__main__":
    sys.exit(main())
