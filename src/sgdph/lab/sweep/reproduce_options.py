"""The options of ``sgdph reproduce``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from sgdph.lab.config.option import MEASUREMENT, OPTIMIZER, OUTPUT, TRAINING, Option
from sgdph.lab.options.options import ManyRunsOptions
from sgdph.lab.sweep.recipe import ScaleName


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(ManyRunsOptions):
    """The options of ``sgdph reproduce``."""

    TAKES: ClassVar[frozenset[str]] = frozenset(
        {"dataset", "data_dir", "train_size", "image_size", "model", "epochs", "batch_size"}
        | {"processes", "precision", "device", "threads", "data_workers"}
    )
    SHOWN: ClassVar[str] = "the recipe's"
    INSTEAD: ClassVar[Mapping[str, str]] = {
        "--partial-hessian": "write optimizer: adamw-ph in a recipe file of your own"
    }

    name: Annotated[str | None, Option(MEASUREMENT, metavar="RECIPE", positional=True)] = None
    """The recipe, or a recipe file of your own: table1...8, figure3...5, cost, or FILE.yaml."""
    scale: Annotated[ScaleName, Option(MEASUREMENT)] = "cpu"
    """paper: the paper's; gpu-hour: about an hour on one GPU; cpu: minutes on a laptop."""
    list: Annotated[bool, Option(MEASUREMENT)] = False
    """List the recipes, with the time that each scale takes."""
    dry_run: Annotated[bool, Option(MEASUREMENT)] = False
    """Print what would be trained and how long it would take here, without writing a file."""
    only: Annotated[str | None, Option(MEASUREMENT, "all", metavar="VALUES")] = None
    """Train only these cells, like cifar10,resnet18,SGDM: values of one field (data set, network,
    optimizer ...) are alternatives, and those of several fields must all hold."""
    settings: Annotated[Path | None, Option(OPTIMIZER, "none", metavar="FILE")] = None
    """Settings of each optimizer, as sgdph tune writes them, in place of the recipe's. Values that
    the recipe gives to single cells (Tables 4 and 5) stay."""
    seeds: Annotated[str | None, Option(TRAINING, "the recipe's", metavar="SEEDS")] = None
    """Seeds, like 0-3 or 0,2."""
    out: Annotated[Path | None, Option(OUTPUT, "runs/RECIPE-SCALE", metavar="DIR")] = None
    """Directory of the runs and the report."""
    resume: Annotated[bool, Option(OUTPUT)] = False
    """Has no effect: a sweep that is in --out is always continued."""
