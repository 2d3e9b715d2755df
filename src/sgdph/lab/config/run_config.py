"""What a run is: one flat, frozen, fully resolved configuration."""

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
from sgdph.lab.networks.registry import PATTERNS, canonical, check_model
from sgdph.lab.optimizers.baseline import Setting
from sgdph.lab.optimizers.registry import OptimizerName
from sgdph.names import Estimator, Refresh

ScheduleName = Literal["cosine", "step", "constant"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
PrecisionName = Literal["float32", "bfloat16", "float16"]
SplitName = Literal["test", "validation"]
Count = Annotated[int, Ge(1)]
Rate = Annotated[float, Ge(0), Lt(math.inf)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides one training run.

    A field's annotation is its only definition. Its type and bounds are checked whenever a
    configuration is made, also of a file. :class:`Option` makes it an option of the command line;
    its help says what the field is. A setting that the optimizer does not have is ``None``.

    ``label`` is what the run is called in tables, where its optimizer's name does not say it all
    (``SGDM+WN``). It decides nothing.

    Raises:
        LabError: A value is of a wrong type or out of its bounds.
    """

    optimizer: Annotated[OptimizerName, Option("Optimizer.", OPTIMIZER, default="sgdph")]
    lr: Annotated[Rate, Option("Initial learning rate.", OPTIMIZER)]
    weight_decay: Annotated[Rate, Option("Weight decay, in the optimizer's own sense.", OPTIMIZER)]
    momentum: Annotated[float | None, Option("Momentum.", OPTIMIZER)] = None
    second_order_lr: Annotated[
        float | None, Option("Second-order learning rate, the paper's tau.", OPTIMIZER)
    ] = None
    hessian_momentum: Annotated[
        float | None, Option("Momentum of the Hessian average, the paper's beta_2.", OPTIMIZER)
    ] = None
    eps: Annotated[
        float | None,
        Option(
            "Damping: added to the Hessian average (sgdph), or to the denominator (the others).",
            OPTIMIZER,
        ),
    ] = None
    estimator: Annotated[
        Estimator | None, Option("What is taken of each Hessian block.", OPTIMIZER)
    ] = None
    refresh: Annotated[
        Refresh | None, Option("A refresh takes one parameter in turn, or all.", OPTIMIZER)
    ] = None
    hessian_interval: Annotated[Count | None, Option("Refresh at every n-th step.", OPTIMIZER)] = (
        None
    )
    betas: Annotated[tuple[float, float] | None, Option("Averaging factors.", OPTIMIZER)] = None
    optimizer_args: Annotated[
        tuple[tuple[str, Setting], ...] | None,
        Option(
            "Any other argument of the optimizer's constructor, like update_each=2 "
            "adamw_betas=0.9,0.99.",
            OPTIMIZER,
            metavar="NAME=VALUE",
            shown="as docs/optimizers-and-models.md has them",
            nargs="+",
        ),
    ] = None
    dataset: Annotated[
        DatasetName,
        Option(
            "Data set; mnist5k, digits and pydoc (text) need no download. sgdph data tells more.",
            DATA,
            default="mnist5k",
        ),
    ]
    data_dir: Annotated[
        str | None,
        Option("Directory that holds the files of the other sets.", DATA, "DIR", shown="none"),
    ] = None
    train_size: Annotated[
        Count | None, Option("Train on a stratified subset of this many images.", DATA, shown="all")
    ] = None
    validation_size: Annotated[
        Count | None,
        Option(
            "Hold out so many training images, evaluate on them, and never touch the test images.",
            DATA,
            shown="0",
        ),
    ] = None
    image_size: Annotated[
        Count | None,
        Option(
            "Pixels to which image files are resized (mini-imagenet, imagenet).", DATA, shown="224"
        ),
    ] = None
    model: Annotated[
        str,
        Option(
            f"Network: {', '.join(PATTERNS)}, or one of torchvision's or timm's, as "
            "torchvision:NAME or timm:NAME.",
            DATA,
            "NAME",
            default="resnet8",
        ),
    ]
    epochs: Annotated[Count, Option("Passes over the training images.", TRAINING, default=12)]
    batch_size: Annotated[
        Count, Option("Images per step, over all processes.", TRAINING, default=25)
    ]
    schedule: Annotated[
        ScheduleName,
        Option(
            "Learning rate over the epochs: cosine to 0, step (x0.1 after every 30%), or constant.",
            TRAINING,
            default="cosine",
        ),
    ]
    schedule_every: Annotated[
        Count | None,
        Option("Epochs between the falls of --schedule step.", TRAINING, shown="30% of the epochs"),
    ] = None
    seed: Annotated[
        int,
        Ge(0),
        Lt(2**63),
        Option(
            "Weights, data order, augmentation and probes all come from it.", TRAINING, default=0
        ),
    ]
    precision: Annotated[
        PrecisionName,
        Option(
            "Arithmetic of the forward, by autocast; weights and optimizer state stay float32.",
            TRAINING,
        ),
    ] = "float32"
    channels_last: Annotated[
        bool, Option("Images and weights lie channels last in memory.", TRAINING)
    ] = True
    processes: Annotated[
        Count,
        Option(
            "Processes that share each batch, one per GPU. Each has its own batch statistics.",
            TRAINING,
        ),
    ] = 1
    device: Annotated[
        str,
        Option(
            "auto (a CUDA GPU where there is one), cpu, cuda, cuda:1 ...", MACHINE, metavar="DEVICE"
        ),
    ] = "auto"
    threads: Annotated[
        Count | None,
        Option(
            "CPU threads of a run; the last bits of a result depend on it.",
            MACHINE,
            shown="one for every 2 GFLOP of a batch's forward",
        ),
    ] = None
    data_workers: Annotated[
        int | None,
        Option(
            "Processes that read image files (mini-imagenet, imagenet).",
            MACHINE,
            shown="one per CPU core, at most 8",
        ),
    ] = None
    track: Annotated[
        TrackerName | None,
        Option("Send the metrics to a tracker as well.", OUTPUT, shown="none"),
    ] = None
    keep_checkpoints: Annotated[
        tuple[int, ...] | None,
        Option(
            "Epochs whose checkpoint is kept as epoch-N.pt, like 0,3,12; 0 is before the first "
            "step.",
            OUTPUT,
            metavar="EPOCHS",
            shown="none",
            nargs=1,
        ),
    ] = None
    label: str | None = None

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


# Where a run is computed, not what it computes: these may change when a run is resumed.
PLACE_FIELDS = frozenset({"data_dir", "device", "threads", "data_workers", "track"})


@cache
def field_types() -> dict[str, Any]:
    """Resolve the annotations, bounds and options included."""
    return get_type_hints(RunConfig, include_extras=True)


def differences(given: Mapping[str, Any], saved: RunConfig) -> list[str]:
    """List where explicitly given values disagree with a saved run's.

    Args:
        given: Field name to value, only those that were given.
        saved: The run's configuration.

    Returns:
        One ``"name: the run has x, given y"`` per difference, fields of :data:`PLACE_FIELDS`
        excepted.
    """
    named = {
        name: value
        for name, value in given.items()
        if name not in PLACE_FIELDS and name != "optimizer_args"
    }
    lines = [_difference(name, getattr(saved, name), value) for name, value in named.items()]
    # Only those that were given are asked about, and one may have a field of its own.
    own = dict(saved.optimizer_args or ())
    lines += [
        _difference(name, own.get(name, getattr(saved, name, None)), value)
        for name, value in given.get("optimizer_args") or ()
    ]
    return [line for line in lines if line]


def _difference(name: str, found: object, value: object) -> str:
    """Say how two values differ, or nothing where they agree."""
    return "" if found == value else f"{name}: the run has {found!r}, given {value!r}"
