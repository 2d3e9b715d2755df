"""What a person may ask for on the command line.

An option left unset is ``None`` here: it takes its default, or when a run is resumed, the run's own
value.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from sgdph.lab.config.run_config import (
    PrecisionName,
    RefreshName,
    RunConfig,
    ScheduleName,
    TrackerName,
)
from sgdph.lab.config.yaml import as_pairs
from sgdph.lab.data.registry import DatasetName
from sgdph.lab.errors import LabError
from sgdph.lab.networks.registry import PATTERNS, canonical
from sgdph.lab.optimizers.registry import OptimizerName, check_name
from sgdph.lab.options.optimizer_args import parse_arguments
from sgdph.validation import Estimator

DEFAULT_OPTIMIZERS = ("sgdm", "sgdph")
DEFAULT_SEEDS = (0, 1, 2)


def shown(default: str, values: Any) -> Any:
    """Say in the help what an unset option means, and which values it takes.

    Left alone the help would offer "None" everywhere.
    """
    metavar = values if isinstance(values, str) else "{" + ",".join(get_args(values)) + "}"
    return tyro.conf.arg(help_behavior_hint=f"(default: {default})", metavar=metavar)


MODELS = " | ".join((*PATTERNS, "torchvision:NAME", "timm:NAME"))
_OWN = "the optimizer's own"


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The options that the commands which train have in common."""

    out: Annotated[Path | None, shown("a name made of the options, in runs/", "DIR")] = None
    """Directory for what is measured."""
    resume: bool = False
    """Carry on what lies in --out; unset options then take the values it was started with."""
    overwrite: bool = False
    """Delete what an earlier call left in --out, and nothing else, and start anew."""

    dataset: Annotated[DatasetName | None, shown("mnist5k", DatasetName)] = None
    """Data set; mnist5k, digits and pydoc (text) need no download. sgdph data tells more."""
    data_dir: Annotated[Path | None, shown("none", "DIR")] = None
    """Directory that holds the files of the other sets."""
    download: bool = False
    """Let torchvision download CIFAR or Fashion-MNIST into --data-dir if it is not there."""
    train_size: Annotated[int | None, shown("all", "N")] = None
    """Train on a stratified subset of this many images."""
    validation_size: Annotated[int | None, shown("0", "N")] = None
    """Hold out so many training images, evaluate on them, and never touch the test images."""
    image_size: Annotated[int | None, shown("224", "N")] = None
    """Pixels to which image files are resized (mini-imagenet, imagenet)."""
    data_workers: Annotated[int | None, shown("one per CPU core, at most 8", "N")] = None
    """Processes that read image files (mini-imagenet, imagenet)."""
    model: Annotated[str | None, shown("resnet8", MODELS)] = None
    """Network: one of ours, or any of torchvision or timm, like timm:resnet18. The default for
    pydoc is transformer, for sets of image files torchvision:resnet18."""
    epochs: Annotated[int | None, shown("12", "N")] = None
    """Passes over the training images."""
    batch_size: Annotated[int | None, shown("25", "N")] = None
    """Images per step, over all processes."""
    schedule: Annotated[ScheduleName | None, shown("cosine", ScheduleName)] = None
    """Learning rate over the epochs: cosine to 0, step (x0.1 after every 30%), or constant."""
    schedule_every: Annotated[int | None, shown("30% of the epochs", "N")] = None
    """Epochs between the falls of --schedule step."""
    precision: Annotated[PrecisionName | None, shown("float32", PrecisionName)] = None
    """Arithmetic of the forward, by autocast; weights and optimizer state stay float32."""
    no_channels_last: bool = False
    """Lay images and weights out as torch does by default. Otherwise they lie channels last."""
    track: Annotated[TrackerName | None, shown("none", TrackerName)] = None
    """Send the metrics to a tracker as well."""
    device: Annotated[str | None, shown("auto", "TEXT")] = None
    """auto (a CUDA GPU where there is one), cpu, cuda, cuda:1 ..."""
    threads: Annotated[int | None, shown("1 for a small network", "N")] = None
    """CPU threads of a run, by default one for every 2 GFLOP of a batch's forward; the last bits of
    a result depend on it."""

    momentum: Annotated[float | None, shown(_OWN, "X")] = None
    """Momentum (sgdm, sgdph, muon)."""
    second_order_lr: Annotated[float | None, shown(_OWN, "X")] = None
    """Second-order learning rate, the paper's tau (sgdph)."""
    hessian_momentum: Annotated[float | None, shown(_OWN, "X")] = None
    """Momentum of the Hessian average, the paper's beta_2 (sgdph)."""
    eps: Annotated[float | None, shown(_OWN, "X")] = None
    """Damping: added to the Hessian average (sgdph), or to the denominator (adam and its kin)."""
    estimator: Annotated[Estimator | None, shown(_OWN, Estimator)] = None
    """What is taken of each Hessian block (sgdph)."""
    refresh: Annotated[RefreshName | None, shown(_OWN, RefreshName)] = None
    """Whether a refresh takes one parameter in turn, or all (sgdph)."""
    hessian_interval: Annotated[int | None, shown(_OWN, "N")] = None
    """Refresh at every n-th step (sgdph)."""
    betas: Annotated[tuple[float, float] | None, shown(_OWN, "X X")] = None
    """Averaging factors (adam, adamw, adabelief, adahessian, sophiah, soap)."""
    optimizer_args: Annotated[tuple[str, ...] | None, shown(_OWN, "NAME=VALUE ...")] = None
    """Any argument of the optimizer's constructor, like update_each=2 adamw_betas=0.9,0.99; a
    comparison takes OPTIMIZER.NAME=VALUE too."""

    def given(self) -> dict[str, Any]:
        """Return the options of :class:`RunConfig` that were set, by field name."""
        names = {field.name for field in dataclasses.fields(RunConfig)}
        values = {
            name: value for name, value in vars(self).items() if name in names and value is not None
        }
        if self.data_dir is not None:
            values["data_dir"] = str(self.data_dir.expanduser().resolve())
        if self.model is not None:
            values["model"] = canonical(self.model)
        if self.no_channels_last:
            values["channels_last"] = False
        return values


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonOptions):
    """The options of a single run."""

    optimizer: Annotated[OptimizerName | None, shown("sgdph", OptimizerName)] = None
    """Optimizer."""
    lr: Annotated[float | None, shown(_OWN, "X")] = None
    """Initial learning rate."""
    weight_decay: Annotated[float | None, shown(_OWN, "X")] = None
    """Weight decay."""
    seed: Annotated[int | None, shown("0", "N")] = None
    """Weights, data order, augmentation and probes all come from it."""

    def given(self) -> dict[str, Any]:
        """Return the options of :class:`RunConfig` that were set, by field name.

        Raises:
            LabError: The optimizer's arguments cannot be read.
        """
        values = super().given()
        if self.optimizer_args is not None:
            values["optimizer_args"] = as_pairs(parse_arguments(self.optimizer_args))
        return values


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """Train one network and record the run."""

    keep_checkpoints: Annotated[str | None, shown("none", "TEXT")] = None
    """Epochs whose checkpoint is kept as epoch-N.pt, like 0,3,12; 0 is before the first step."""

    def given(self) -> dict[str, Any]:
        """Return the options of :class:`RunConfig` that were set, by field name.

        Raises:
            LabError: A list cannot be read.
        """
        values = super().given()
        if self.keep_checkpoints is not None:
            values["keep_checkpoints"] = parse_epochs(self.keep_checkpoints, "--keep-checkpoints")
        return values


@dataclass(frozen=True, kw_only=True)
class CompareOptions(CommonOptions):
    """Train several optimizers over several seeds; end with a table and a picture."""

    optimizers: Annotated[str | None, shown("sgdm,sgdph", "TEXT")] = None
    """Optimizers, separated by commas."""
    seeds: Annotated[str | None, shown("0-2", "TEXT")] = None
    """Seeds: a range like 0-2, a list like 0,3,7, or both."""
    lr: Annotated[str | None, shown(_OWN, "TEXT")] = None
    """Initial learning rate: one number for all, or one each like sgdm=0.1,sgdph=0.01."""
    weight_decay: Annotated[str | None, shown(_OWN, "TEXT")] = None
    """Weight decay: one number for all, or one each like sgdm=5e-4,sgdph=5e-3."""
    settings: Annotated[Path | None, shown("none", "FILE")] = None
    """Settings of each optimizer, as sgdph tune writes them; what is set here goes before."""
    jobs: Annotated[int | None, shown("the cores / a run's threads; 1 on a GPU", "N")] = None
    """How many runs are trained at the same time."""
    dry_run: bool = False
    """Say what would be run and how long it would take here, and leave no file behind."""
    ray: Annotated[str | None, shown("this machine", "local|auto|HOST:PORT")] = None
    """Train on Ray's cluster at this address, retried where a machine is lost; local starts one."""


def parse_optimizers(text: str) -> tuple[str, ...]:
    """Read ``"sgdm,sgdph"``.

    Raises:
        LabError: If a name is unknown or stands twice.
    """
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        check_name(name)
    if len(set(names)) < len(names):
        raise LabError(f"--optimizers names one twice: {text!r}; name each once")
    return names


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``"0-2"``, ``"0,3,7"`` or a mixture.

    Raises:
        LabError: If the text is something else, a range runs backwards, or a seed stands twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise LabError(f"--seeds must be like 0-2 or 0,3,7; got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise LabError(
                f"--seeds has a range that runs backwards: {part!r}; write {last}-{first}"
            )
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) < len(seeds):
        raise LabError(f"--seeds names one twice: {text!r}; name each once")
    return tuple(seeds)


def parse_epochs(text: str, name: str) -> tuple[int, ...]:
    """Read ``"0,3,12"``.

    Args:
        text: What was given.
        name: The flag, for error messages.

    Returns:
        The epochs, each once, in order.

    Raises:
        LabError: If the text is something else.
    """
    words = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", word) for word in words):
        raise LabError(f"{name} must be epochs like 0,3,12; got {text!r}")
    return tuple(sorted({int(word) for word in words}))
