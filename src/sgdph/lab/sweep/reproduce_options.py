"""What a person may ask of ``sgdph reproduce``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sgdph.lab.config.run_config import PrecisionName, RunConfig
from sgdph.lab.data.registry import DatasetName
from sgdph.lab.options.options import MODELS, shown
from sgdph.lab.sweep.recipe import ScaleName

_RECIPE = "the recipe's"


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Run one of the paper's tables or figures: all its runs, and the table at the end.

    The same command again carries on: it skips what is finished and resumes what is half done.
    Other machines that share --out join by running it too.
    """

    name: Annotated[
        str | None, tyro.conf.Positional, shown("none", "table1...8|figure3...5|cost|FILE.yaml")
    ] = None
    """The recipe, or a recipe file of your own."""
    scale: ScaleName = "cpu"
    """paper: the paper's; gpu-hour: about an hour on one GPU; cpu: minutes on a laptop."""
    list: bool = False
    """List the recipes, with the time that each scale takes."""
    dry_run: bool = False
    """Say what would be run and how long it would take here, and leave no file behind."""
    only: Annotated[str | None, shown("all", "TEXT")] = None
    """Train only the cells whose name holds this, or one of these, separated by commas."""
    jobs: Annotated[int | None, shown("the cores / a run's threads; 1 on a GPU", "N")] = None
    """How many runs are trained at the same time; each has cores of its own, or a GPU in turn."""
    ray: Annotated[str | None, shown("this machine", "local|auto|HOST:PORT")] = None
    """Train on Ray's cluster at this address, retried where a machine is lost; local starts one."""

    out: Annotated[Path | None, shown("runs/RECIPE-SCALE", "DIR")] = None
    """Directory of the runs and the report."""
    resume: bool = False
    """Nothing: a sweep that lies in --out is always carried on."""
    overwrite: bool = False
    """Delete the sweep that lies in --out, and nothing else, and start anew."""

    data_dir: Annotated[Path | None, shown("none", "DIR")] = None
    """Directory that holds the data sets' files; sgdph data tells more."""
    download: bool = False
    """Let torchvision download CIFAR or Fashion-MNIST into --data-dir if it is not there."""
    device: Annotated[str | None, shown("auto", "TEXT")] = None
    """auto (a CUDA GPU where there is one), cpu, cuda, cuda:1 ..."""
    threads: Annotated[int | None, shown("1 for a small network", "N")] = None
    """CPU threads of a run, by default one for every 2 GFLOP of a batch's forward; the last bits of
    a result depend on it."""

    settings: Annotated[Path | None, shown("none", "FILE")] = None
    """Settings of each optimizer, as sgdph tune writes them, in place of the recipe's."""
    seeds: Annotated[str | None, shown(_RECIPE, "TEXT")] = None
    """Seeds, like 0-3 or 0,2."""
    dataset: Annotated[DatasetName | None, shown(_RECIPE, DatasetName)] = None
    """One data set in place of the recipe's; all its images without --train-size."""
    train_size: Annotated[int | None, shown(_RECIPE, "N")] = None
    """Train on a stratified subset of this many images."""
    image_size: Annotated[int | None, shown(_RECIPE, "N")] = None
    """Pixels to which image files are resized."""
    model: Annotated[str | None, shown(_RECIPE, MODELS)] = None
    """One network in place of the recipe's."""
    epochs: Annotated[int | None, shown(_RECIPE, "N")] = None
    """Passes over the training images; the falls of the learning rate move in proportion."""
    batch_size: Annotated[int | None, shown(_RECIPE, "N")] = None
    """Images per step, over all processes."""
    processes: Annotated[int | None, shown(_RECIPE, "N")] = None
    """Processes that share each batch, one per GPU."""
    precision: Annotated[PrecisionName | None, shown(_RECIPE, PrecisionName)] = None
    """Arithmetic of the forward."""

    def given(self) -> dict[str, Any]:
        """Return the options of :class:`RunConfig` that were set, by field name."""
        names = {field.name for field in dataclasses.fields(RunConfig)}
        values = {
            name: value for name, value in vars(self).items() if name in names and value is not None
        }
        if self.data_dir is not None:
            values["data_dir"] = str(self.data_dir.expanduser().resolve())
        return values
