"""The options of ``sgdph reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from sgdph.lab.config.option import DATA, MACHINE, MEASUREMENT, OPTIMIZER, OUTPUT, TRAINING, Option
from sgdph.lab.options.options import RunOptions
from sgdph.lab.sweep.recipe import ScaleName


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(RunOptions):
    """The options of ``sgdph reproduce``."""

    TAKES: ClassVar[frozenset[str]] = frozenset(
        {"dataset", "data_dir", "train_size", "image_size", "model", "epochs", "batch_size"}
        | {"processes", "precision", "device", "threads", "data_workers"}
    )
    SHOWN: ClassVar[str] = "the recipe's"

    name: Annotated[
        str | None,
        Option(
            "The recipe, or a recipe file of your own: table1...8, figure3...5, cost, or "
            "FILE.yaml.",
            MEASUREMENT,
            "RECIPE",
            positional=True,
        ),
    ] = None
    scale: Annotated[
        ScaleName,
        Option(
            "paper: the paper's; gpu-hour: about an hour on one GPU; cpu: minutes on a laptop.",
            MEASUREMENT,
        ),
    ] = "cpu"
    list: Annotated[
        bool, Option("List the recipes, with the time that each scale takes.", MEASUREMENT)
    ] = False
    dry_run: Annotated[
        bool,
        Option(
            "Say what would be run and how long it would take here, and leave no file behind.",
            MEASUREMENT,
        ),
    ] = False
    only: Annotated[
        str | None,
        Option(
            "Train only the cells whose name holds this, or one of these, separated by commas.",
            MEASUREMENT,
            shown="all",
        ),
    ] = None
    settings: Annotated[
        Path | None,
        Option(
            "Settings of each optimizer, as sgdph tune writes them, in place of the recipe's.",
            OPTIMIZER,
            "FILE",
            shown="none",
        ),
    ] = None
    seeds: Annotated[
        str | None,
        Option("Seeds, like 0-3 or 0,2.", TRAINING, "SEEDS", shown="the recipe's"),
    ] = None
    download: Annotated[
        bool,
        Option("Let torchvision download CIFAR or Fashion-MNIST into --data-dir if missing.", DATA),
    ] = False
    jobs: Annotated[
        int | None,
        Option(
            "How many runs are trained at the same time; each has cores of its own, or a GPU in "
            "turn.",
            MACHINE,
            shown="the cores / a run's threads; 1 on a GPU",
        ),
    ] = None
    out: Annotated[
        Path | None,
        Option("Directory of the runs and the report.", OUTPUT, "DIR", shown="runs/RECIPE-SCALE"),
    ] = None
    resume: Annotated[
        bool, Option("Nothing: a sweep that lies in --out is always carried on.", OUTPUT)
    ] = False
    overwrite: Annotated[
        bool,
        Option("Delete the sweep that lies in --out, and nothing else, and start anew.", OUTPUT),
    ] = False
