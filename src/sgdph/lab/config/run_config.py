"""The configuration of a run: flat, frozen and fully resolved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Lt

from sgdph.lab.config.check import check_fields
from sgdph.lab.config.option import DATA, MACHINE, OPTIMIZER, OUTPUT, TRAINING, Option
from sgdph.lab.data.registry import DatasetName
from sgdph.lab.errors import LabError
from sgdph.lab.networks.registry import PATTERNS as NETWORK_PATTERNS
from sgdph.lab.networks.registry import canonical, check_model
from sgdph.lab.optimizers.baseline import Setting
from sgdph.lab.optimizers.registry import PATTERNS, OptimizerName
from sgdph.names import Estimator, Refresh

ScheduleName = Literal["cosine", "step", "constant"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
PrecisionName = Literal["float32", "tf32", "bfloat16", "float16"]
SplitName = Literal["test", "validation"]
ChannelwiseDecay = Literal["same", "none", "coupled", "decoupled"]
Count = Annotated[int, Ge(1)]
Rate = Annotated[float, Ge(0), Lt(math.inf)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines one training run.

    Each field is defined only here. Its type and bounds are checked whenever a configuration is
    created, also from a file. :class:`Option` makes it an option of the command line; the text
    below it is the option's help. A setting that the optimizer does not have is ``None``.

    Raises:
        LabError: If a value has the wrong type or is out of its bounds.
    """

    optimizer: Annotated[OptimizerName, Option(OPTIMIZER, default="sgdph", names=PATTERNS)]
    """Optimizer; adamw-ph is adamw with --partial-hessian."""
    lr: Annotated[Rate, Option(OPTIMIZER)]
    """Initial learning rate."""
    weight_decay: Annotated[Rate, Option(OPTIMIZER)]
    """Weight decay, in the optimizer's own sense."""
    newton_lr: Annotated[Rate | None, Option(OPTIMIZER)] = None
    """Initial learning rate of the Newton steps beside another optimizer (--partial-hessian)."""
    momentum: Annotated[float | None, Option(OPTIMIZER)] = None
    """Momentum."""
    second_order_lr: Annotated[float | None, Option(OPTIMIZER)] = None
    """Second-order learning rate, the paper's tau."""
    hessian_momentum: Annotated[float | None, Option(OPTIMIZER)] = None
    """Momentum of the Hessian average, the paper's beta_2."""
    eps: Annotated[float | None, Option(OPTIMIZER)] = None
    """Damping. sgdph adds it to the Hessian average, other optimizers to their denominator.
    With --partial-hessian, --optimizer-args newton_eps sets that of the Newton steps."""
    estimator: Annotated[Estimator | None, Option(OPTIMIZER)] = None
    """Estimator: what is computed from each Hessian block."""
    refresh: Annotated[Refresh | None, Option(OPTIMIZER)] = None
    """What a refresh updates: one parameter after the other (cyclic), or all."""
    hessian_interval: Annotated[Count | None, Option(OPTIMIZER)] = None
    """Refresh at every n-th step."""
    betas: Annotated[tuple[float, float] | None, Option(OPTIMIZER)] = None
    """Averaging factors."""
    optimizer_args: Annotated[
        tuple[tuple[str, Setting], ...] | None,
        Option(
            OPTIMIZER, "as docs/optimizers-and-models.md has them", metavar="NAME=VALUE", nargs="+"
        ),
    ] = None
    """Any other argument of the optimizer's constructor, like update_each=2
    adamw_betas=0.9,0.99."""
    channelwise_decay: Annotated[ChannelwiseDecay, Option(OPTIMIZER)] = "same"
    """Weight decay of norm layers and biases, for first-order optimizers: that of all weights
    (same), none, added to the gradient (coupled), or subtracted from the weight
    (decoupled)."""
    dataset: Annotated[DatasetName, Option(DATA, default="mnist5k")]
    """Data set; mnist5k, digits and pydoc (text) need no download. sgdph data lists all."""
    data_dir: Annotated[str | None, Option(DATA, "none", metavar="DIR")] = None
    """Directory that holds the files of the other sets."""
    train_size: Annotated[Count | None, Option(DATA, "all")] = None
    """Train on a stratified subset of this many images."""
    validation_size: Annotated[Count | None, Option(DATA, "0")] = None
    """Hold out this many training images and evaluate on them; the test images are not used."""
    image_size: Annotated[Count | None, Option(DATA, "224, of CIFAR 32")] = None
    """Height and width of the images (mini-imagenet, imagenet; smaller, cifar10 and cifar100)."""
    model: Annotated[
        str,
        Option(
            DATA,
            metavar="NAME",
            default="resnet8",
            names=(*NETWORK_PATTERNS, "torchvision:NAME", "timm:NAME"),
        ),
    ]
    """Network: one of ours, or any of torchvision or timm."""
    epochs: Annotated[Count, Option(TRAINING, default=12)]
    """Passes over the training images."""
    batch_size: Annotated[Count, Option(TRAINING, default=25)]
    """Images per step, over all processes."""
    schedule: Annotated[ScheduleName, Option(TRAINING, default="cosine")]
    """Learning rate over the epochs: cosine to 0, step (x0.1 after every 30%), or constant."""
    schedule_every: Annotated[Count | None, Option(TRAINING, "30% of the epochs")] = None
    """Epochs between the reductions of --schedule step."""
    seed: Annotated[int, Ge(0), Lt(2**63), Option(TRAINING, default=0)]
    """Seed of weights, data order, augmentation and probes."""
    precision: Annotated[PrecisionName, Option(TRAINING)] = "float32"
    """Arithmetic of the network: tf32 for products on a GPU; bfloat16 and float16 by autocast
    around the forward. Weights and optimizer state stay float32."""
    channels_last: Annotated[bool, Option(TRAINING)] = True
    """Store images and weights channels last in memory."""
    processes: Annotated[Count, Option(TRAINING)] = 1
    """Processes that share each batch, one per GPU. Each has its own batch statistics."""
    device: Annotated[str, Option(MACHINE, metavar="DEVICE")] = "auto"
    """auto (a CUDA GPU where there is one), cpu, cuda, cuda:1 ..."""
    threads: Annotated[
        Count | None, Option(MACHINE, "one for every 2 GFLOP of a batch's forward")
    ] = None
    """CPU threads of a run; the last bits of a result depend on it."""
    data_workers: Annotated[
        Annotated[int, Ge(0)] | None, Option(MACHINE, "one per CPU core, at most 8")
    ] = None
    """Processes that read image files (mini-imagenet, imagenet)."""
    track: Annotated[TrackerName | None, Option(OUTPUT, "none")] = None
    """Send the metrics to a tracker as well."""
    keep_checkpoints: Annotated[
        tuple[int, ...] | None, Option(OUTPUT, "none", metavar="EPOCHS", nargs=1)
    ] = None
    """Epochs whose checkpoint is kept as epoch-N.pt, like 0,3,12; 0 is before the first step."""
    label: str | None = None
    """Name of the run in tables, in place of its optimizer's name. It does not change the run."""

    def __post_init__(self) -> None:
        for name, value in check_fields(field_types(), vars(self)).items():
            object.__setattr__(self, name, value)
        check_model(self.model)
        object.__setattr__(self, "model", canonical(self.model))
        for epoch in self.keep_checkpoints or ():
            if not 0 <= epoch <= self.epochs:
                raise LabError(
                    f"keep_checkpoints must lie between 0 and the {self.epochs} epochs; got {epoch}"
                )

    @property
    def evaluated(self) -> SplitName:
        """Which images the run is evaluated on."""
        return "test" if self.validation_size is None else "validation"

    def setting(self, name: str) -> Any:
        """Return an optimizer's setting or argument; ``None`` if it was not set."""
        return dict(self.optimizer_args or ()).get(name, getattr(self, name, None))


# Where a run is computed, not what it computes: these fields may change when a run is resumed.
PLACE_FIELDS = frozenset({"data_dir", "device", "threads", "data_workers", "track"})
# Runs that differ in these fields alone are one entry of a report.
WITHIN_ENTRY = PLACE_FIELDS | {"seed", "keep_checkpoints"}


def without_place(config: RunConfig) -> RunConfig:
    """Return a configuration without its place and kept checkpoints, which change no result."""
    defaults: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.name in PLACE_FIELDS
    }
    return dataclasses.replace(config, keep_checkpoints=None, **defaults)


@cache
def field_types() -> dict[str, Any]:
    """Return each field's annotation, with its bounds and option."""
    return get_type_hints(RunConfig, include_extras=True)


def differences(given: Mapping[str, Any], saved: RunConfig) -> list[str]:
    """List the explicitly given values that differ from a saved run's.

    Args:
        given: Field name to value, only those that were given.
        saved: The run's configuration.

    Returns:
        One ``"name: the run has x, given y"`` per difference, except in :data:`PLACE_FIELDS`.
    """
    named = {
        name: value
        for name, value in given.items()
        if name not in PLACE_FIELDS and name != "optimizer_args"
    }
    lines = [_difference(name, getattr(saved, name), value) for name, value in named.items()]
    # Compare only the given arguments. Some of them may be fields of RunConfig.
    lines += [
        _difference(name, saved.setting(name), value)
        for name, value in given.get("optimizer_args") or ()
    ]
    return [line for line in lines if line]


def _difference(name: str, found: object, value: object) -> str:
    """Return a line on how two values differ, or an empty string if they are equal."""
    return "" if found == value else f"{name}: the run has {found!r}, given {value!r}"
