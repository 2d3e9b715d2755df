"""What a run is: one flat, frozen, fully resolved configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sgdph.lab.data.registry import DatasetName
from sgdph.lab.errors import LabError
from sgdph.lab.networks.registry import canonical, check_model
from sgdph.lab.optimizers.baseline import Setting
from sgdph.lab.optimizers.registry import OptimizerName
from sgdph.validation import Estimator

ScheduleName = Literal["cosine", "step", "constant"]
RefreshName = Literal["cyclic", "all"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
PrecisionName = Literal["float32", "bfloat16", "float16"]
SplitName = Literal["test", "validation"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides one training run.

    The optimizer's settings stand beside the rest, under the names of the command's flags; a
    setting that the optimizer does not have is ``None``.

    Attributes:
        dataset: Name of the data set.
        data_dir: Where downloaded data lie; ``None`` for the sets that come with a package.
        train_size: Number of training images, a stratified subset; ``None`` for all.
        validation_size: Number of training images held out, a stratified subset of those. The run
            is then evaluated on them, and never sees the test images; ``None`` holds out none.
        image_size: Height and width in pixels to which a set of image files is resized.
        model: Name of the network: one of :data:`sgdph.lab.networks.registry.NETWORKS`,
            ``torchvision:NAME`` or ``timm:NAME``. Of a network's two names the shorter is kept.
        optimizer: Name of the optimizer.
        epochs: Passes over the training images.
        batch_size: Images per step, over all processes.
        processes: Processes that share each batch (``torchrun``); batch statistics are each one's
            own, so a run's figures depend on it.
        precision: Of the forward's arithmetic; weights and optimizer state stay float32.
        channels_last: Whether images and weights lie channels last in memory.
        schedule: How the learning rate falls over the epochs.
        schedule_every: Epochs between the falls of ``step``; ``None`` for 30% of the epochs.
        seed: All randomness of the run comes from it.
        device: A torch device, or ``"auto"``.
        threads: CPU threads of torch; ``None`` leaves torch's own choice.
        data_workers: Processes that read image files; ``None`` for a number that fits the machine.
        track: Tracker that the metrics are sent to as well; ``None`` and ``"none"`` for none.
        lr: Initial learning rate.
        weight_decay: Weight decay, in the optimizer's own sense.
        momentum: Momentum of SGDM, SGD-PH and Muon.
        second_order_lr: SGD-PH's tau.
        hessian_momentum: SGD-PH's beta_2.
        eps: Damping: SGD-PH's epsilon, or what the others add to their denominators.
        estimator: SGD-PH's estimator of the partial Hessian.
        refresh: SGD-PH's order of refreshes.
        hessian_interval: SGD-PH refreshes at every n-th step.
        betas: The two averaging factors of Adam and its kin.
        optimizer_args: The optimizer's arguments that have no field of their own here, as sorted
            pairs of name and value.
        label: What the run is called in tables, where its optimizer's name does not say it all
            (``SGDM+WN``); it decides nothing.
        keep_checkpoints: Epochs whose checkpoint is kept beside the last one; 0 is before the first
            step.
    """

    dataset: DatasetName
    data_dir: str | None = None
    train_size: int | None = None
    validation_size: int | None = None
    image_size: int | None = None
    model: str
    optimizer: OptimizerName
    epochs: int
    batch_size: int
    processes: int = 1
    precision: PrecisionName = "float32"
    channels_last: bool = True
    schedule: ScheduleName
    schedule_every: int | None = None
    seed: int
    device: str = "auto"
    threads: int | None = None
    data_workers: int | None = None
    track: TrackerName | None = None
    lr: float
    weight_decay: float
    momentum: float | None = None
    second_order_lr: float | None = None
    hessian_momentum: float | None = None
    eps: float | None = None
    estimator: Estimator | None = None
    refresh: RefreshName | None = None
    hessian_interval: int | None = None
    betas: tuple[float, float] | None = None
    optimizer_args: tuple[tuple[str, Setting], ...] | None = None
    label: str | None = None
    keep_checkpoints: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        hints = field_types()
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), hints[field.name])
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LabError(f"{name} must be at least 1; got {value}")
        check_model(self.model)
        object.__setattr__(self, "model", canonical(self.model))
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise LabError(f"{name} must be at least 0 and finite; got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise LabError(f"seed must lie between 0 and 2**63 - 1; got {self.seed}")
        for epoch in self.keep_checkpoints or ():
            if not 0 <= epoch <= self.epochs:
                raise LabError(
                    f"keep_checkpoints must lie between 0 and the {self.epochs} epochs; got {epoch}"
                )

    @property
    def evaluated(self) -> SplitName:
        """Which images the run is evaluated on."""
        return "test" if self.validation_size is None else "validation"


AT_LEAST_ONE = (
    "train_size",
    "validation_size",
    "image_size",
    "epochs",
    "batch_size",
    "processes",
    "schedule_every",
    "threads",
    "hessian_interval",
)
# Where a run is computed, not what it computes: these may change when a run is resumed.
PLACE_FIELDS = frozenset({"data_dir", "device", "threads", "data_workers", "track"})


@cache
def field_types() -> dict[str, Any]:
    """Resolve the annotations once: a report reads thousands of configurations."""
    return get_type_hints(RunConfig)


def _check_type(name: str, value: object, hint: Any) -> None:
    """Raise LabError unless ``value`` is of the annotated type (a float field takes an int too)."""
    if hint is Any or _matches(value, hint):
        return
    raise LabError(f"{name} must be {_describe(hint)}; got {value!r}")


def _matches(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        return len(value) == len(kinds) and all(
            _matches(item, kind) for item, kind in zip(value, kinds, strict=True)
        )
    if origin is not None:
        return any(_matches(value, kind) for kind in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    """Say in words which values a type takes."""
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is tuple:
        kinds = get_args(hint)
        return "whole numbers" if kinds[-1] is Ellipsis else f"{len(kinds)} numbers"
    if origin is not None:
        return " or ".join(_describe(kind) for kind in get_args(hint))
    names = {int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}
    return names.get(hint, str(hint))


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
