"""The options of the commands that train.

An option that was not given is absent or ``None``. It then takes its default or, if a run is
resumed, the value of that run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from sgdph.lab.config.option import (
    DATA,
    MACHINE,
    MEASUREMENT,
    OPTIMIZER,
    OUTPUT,
    TRAINING,
    Option,
    options_of,
)
from sgdph.lab.config.run_config import Count, RunConfig
from sgdph.lab.config.yaml import as_pairs
from sgdph.lab.errors import LabError
from sgdph.lab.networks.registry import canonical
from sgdph.lab.optimizers.newton import CURVATURE, MultiplierName
from sgdph.lab.optimizers.registry import check_name, with_partial_hessian
from sgdph.lab.options.optimizer_args import parse_arguments

DEFAULT_OPTIMIZERS = ("sgdm", "sgdph")
DEFAULT_SEEDS = (0, 1, 2)
# torchrun sets how many processes there are.
ALL = frozenset(options_of(RunConfig)) - {"processes"}


# Parsers of the run's fields whose text has a special form.
READ: Mapping[str, Callable[[Any], Any]] = {
    "data_dir": lambda text: str(Path(text).expanduser().resolve()),
    "model": canonical,
    "keep_checkpoints": lambda text: parse_epochs(text, "--keep-checkpoints"),
    "optimizer_args": lambda words: as_pairs(parse_arguments(words)),
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a command that takes fields of :class:`RunConfig` as options.

    Attributes:
        TAKES: The fields that it takes.
        SHOWN: What the help shows as their default, if it differs from a run's.
        INSTEAD: Flag of another command to a hint on what to write here instead.
        run_fields: The fields that were given, by name.
    """

    TAKES: ClassVar[frozenset[str]] = frozenset()
    SHOWN: ClassVar[str] = ""
    INSTEAD: ClassVar[Mapping[str, str]] = {}

    run_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """Return the given values of a run, by the names of :class:`RunConfig`'s fields.

        Options that a command parses itself are returned as they were written.
        """
        names = options_of(RunConfig)
        own = {name: each for name, each in vars(self).items() if name in names}
        return {**self.run_fields, **{name: v for name, v in own.items() if v is not None}}


@dataclass(frozen=True, kw_only=True)
class CommonOptions(RunOptions):
    """The options that all training commands have in common."""

    download: Annotated[bool, Option(DATA)] = False
    """Let torchvision download CIFAR or Fashion-MNIST into --data-dir if missing."""
    out: Annotated[
        Path | None, Option(OUTPUT, "a name made of the options, in runs/", metavar="DIR")
    ] = None
    """Directory for what is measured."""
    resume: Annotated[bool, Option(OUTPUT)] = False
    """Continue the run in --out; options that are not given keep the values of its first call."""
    overwrite: Annotated[bool, Option(OUTPUT)] = False
    """Delete the files of an earlier call in --out (no others), and start again."""


@dataclass(frozen=True, kw_only=True)
class OneRunOptions(CommonOptions):
    """The options of a command that trains one run."""

    partial_hessian: Annotated[
        MultiplierName | None,
        Option(OPTIMIZER, "none; curvature without a word", before="newton_lr", alone=CURVATURE),
    ] = None
    """Train the channel-wise parameters by Newton steps and all others by --optimizer, like
    --optimizer adamw --partial-hessian. The value says what multiplies the steps: curvature, or
    a control."""

    def given(self) -> dict[str, Any]:
        """Return the given values of a run; with ``--partial-hessian``, the combined optimizer.

        Raises:
            LabError: If the optimizer cannot be combined with Newton steps.
        """
        given = super().given()
        if self.partial_hessian is None:
            return given
        name = with_partial_hessian(given.get("optimizer"), self.partial_hessian)
        return {**given, "optimizer": name}


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OneRunOptions):
    """The options of ``sgdph train``."""

    TAKES: ClassVar[frozenset[str]] = ALL


@dataclass(frozen=True, kw_only=True)
class ManyRunsOptions(CommonOptions):
    """The options of a command that trains many runs."""

    jobs: Annotated[Count | None, Option(MACHINE, "the cores / a run's threads; 1 on a GPU")] = None
    """How many runs train at the same time; each has its own cores, or one of the GPUs."""
    ray: Annotated[str | None, Option(MACHINE, "this machine", metavar="local|auto|HOST:PORT")] = (
        None
    )
    """Address of a Ray cluster to train on (a run whose machine is lost is retried); local starts
    one here."""


@dataclass(frozen=True, kw_only=True)
class SeveralOptions(ManyRunsOptions):
    """The options of a command that trains several optimizers."""

    INSTEAD: ClassVar[Mapping[str, str]] = {
        "--optimizer": "use --optimizers",
        "--partial-hessian": "write adamw-ph in --optimizers for adamw beside the partial Hessian",
    }

    optimizers: Annotated[
        str | None, Option(OPTIMIZER, ",".join(DEFAULT_OPTIMIZERS), metavar="NAMES")
    ] = None
    """Optimizers, separated by commas; adamw-ph is adamw with --partial-hessian, adamw-ph-shuffled
    one of its controls."""
    optimizer_args: Annotated[
        tuple[str, ...] | None, Option(OPTIMIZER, metavar="NAME=VALUE", nargs="+")
    ] = None
    """Any other argument of an optimizer's constructor, like adahessian.update_each=2; without the
    optimizer's name, for all that have it."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SeveralOptions):
    """The options of ``sgdph compare``."""

    TAKES: ClassVar[frozenset[str]] = ALL - {"optimizer", "seed", "keep_checkpoints"}
    INSTEAD: ClassVar[Mapping[str, str]] = {
        **SeveralOptions.INSTEAD,
        "--seed": "use --seeds",
    }

    lr: Annotated[str | None, Option(OPTIMIZER, metavar="X")] = None
    """Initial learning rate: one for all, or one each like sgdm=0.1,sgdph=0.01."""
    weight_decay: Annotated[str | None, Option(OPTIMIZER, metavar="X")] = None
    """Weight decay: one for all, or one each like sgdm=5e-4,sgdph=5e-3."""
    newton_lr: Annotated[str | None, Option(OPTIMIZER, metavar="X")] = None
    """Initial learning rate of the Newton steps beside another optimizer: one for all, or one each
    like adamw-ph=0.05,muon-ph=0.01."""
    settings: Annotated[Path | None, Option(OPTIMIZER, "none", metavar="FILE")] = None
    """Settings of each optimizer, as sgdph tune writes them; options given here take precedence."""
    seeds: Annotated[str | None, Option(TRAINING, "0-2", metavar="SEEDS")] = None
    """Seeds: a range like 0-2, a list like 0,3,7, or both."""
    dry_run: Annotated[bool, Option(MEASUREMENT)] = False
    """Print what would be trained and how long it would take here, without writing a file."""


def parse_optimizers(text: str) -> tuple[str, ...]:
    """Parse ``"sgdm,sgdph"``.

    Raises:
        LabError: If a name is unknown or given twice.
    """
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        check_name(name)
    if len(set(names)) < len(names):
        raise LabError(f"--optimizers names one twice: {text!r}; name each once")
    return names


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse ``"0-2"``, ``"0,3,7"`` or a mixture.

    Raises:
        LabError: If the text has another form, a range runs backwards, or a seed is given twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise LabError(f"--seeds must be like 0-2 or 0,3,7; got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise LabError(
                f"--seeds has a range whose end is before its start: {part!r}; write {last}-{first}"
            )
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) < len(seeds):
        raise LabError(f"--seeds names one twice: {text!r}; name each once")
    return tuple(seeds)


def parse_epochs(text: str, name: str) -> tuple[int, ...]:
    """Parse ``"0,3,12"``.

    Args:
        text: The text.
        name: The flag, for error messages.

    Returns:
        The epochs, each once, in order.

    Raises:
        LabError: If the text has another form.
    """
    words = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", word) for word in words):
        raise LabError(f"{name} must be epochs like 0,3,12; got {text!r}")
    return tuple(sorted({int(word) for word in words}))
