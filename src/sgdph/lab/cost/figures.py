"""Settings and results of a measurement, with conversion to and from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgdph.lab.errors import LabError

PRECISIONS = ("float32", "bfloat16")
# The base systems, whose step is 1.00. The second is a base only if it was measured.
BASE, MATH_BASE = "sgdm", "sgdm-math"


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """Everything that decides a measurement.

    Attributes:
        models: Names of the networks.
        batch_sizes: Sizes of the batches; each pair of network and size is one cell.
        systems: Names of the optimizers.
        device: A torch device, or ``"auto"``.
        precision: ``"float32"``, or ``"bfloat16"``: float32 weights, forward pass under autocast.
        channels_last: Whether model and images are stored channels last.
        compile: Whether the model is compiled.
        threads: Number of CPU threads of torch.
        rounds: How many times each step is timed at each visited parameter.
        visits: Number of Newton parameters to visit, spread evenly over the depth; ``None`` for
            all.
        seed: Seed of weights, batch and labels.

    Raises:
        LabError: If a value is out of bounds, or a network or batch size is given twice.
    """

    models: tuple[str, ...] = ("resnet18",)
    batch_sizes: tuple[int, ...] = (16,)
    systems: tuple[str, ...]
    device: str = "cpu"
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    threads: int = 1
    rounds: int = 5
    visits: int | None = 8
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"threads": self.threads, "rounds": self.rounds, "visits": self.visits}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise LabError(f"--{name} must be at least 1; got {value}")
        if min(self.batch_sizes) < 1:
            raise LabError(f"--batch-size must be at least 1; got {min(self.batch_sizes)}")
        for flag, values in (("--model", self.models), ("--batch-size", self.batch_sizes)):
            if len(set(values)) < len(values):
                raise LabError(f"{flag} names one twice: {','.join(map(str, values))}")
        if self.precision not in PRECISIONS:
            raise LabError(
                f"--precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}"
            )
        if not 0 <= self.seed < 2**63:
            raise LabError(f"--seed must lie between 0 and 2**63 - 1; got {self.seed}")

    @property
    def cells(self) -> list[tuple[str, int]]:
        """The pairs of network and batch size."""
        return [(model, size) for model in self.models for size in self.batch_sizes]


@dataclass(frozen=True)
class KindFigures:
    """Results for one kind of step of one system.

    A *place* is a visited Newton parameter. Lists over places have a single element if the place
    makes no difference.

    Attributes:
        share: Share of these steps in a run.
        wall_seconds: Wall time for each round, the mean over places.
        process_seconds: CPU time of the process for each round; ``None`` unless run on the CPU.
        peak_bytes: Peak of bytes allocated on top of those live before the step, for each place;
            ``None`` if it could not be measured.
        total_peak_bytes: Like ``peak_bytes``, plus parameters, buffers, optimizer state and batch.
        flops: FLOPs for each place.
    """

    share: float
    wall_seconds: list[float]
    process_seconds: list[float] | None
    peak_bytes: list[int] | None
    total_peak_bytes: list[int] | None
    flops: list[int]


@dataclass(frozen=True)
class SystemFigures:
    """Results for one system.

    Attributes:
        name: Its name.
        label: Its name in tables.
        interval: It takes second derivatives at every ``interval``-th step.
        floor: The least FLOPs of a step with its partial Hessian, as a ratio to SGDM's; ``None``
            without a partial Hessian.
        kinds: Maps each kind of step, ``"refresh"`` or ``"plain"``, to its results.
    """

    name: str
    label: str
    interval: int
    floor: float | None
    kinds: Mapping[str, KindFigures]


@dataclass(frozen=True)
class CellFigures:
    """Results for one network at one batch size.

    Attributes:
        model: The network's name.
        batch_size: Number of inputs in a batch.
        parameters: Number of parameters (elements).
        newton: Number of Newton parameters (tensors).
        visited: Names of the Newton parameters that were visited.
        systems: Results of the systems, SGDM first.
        environment: Versions and machine.
    """

    model: str
    batch_size: int
    parameters: int
    newton: int
    visited: list[str]
    systems: list[SystemFigures]
    environment: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Network and batch size."""
        return f"{self.model}, batch {self.batch_size}"


def to_plain(value: CostSettings | CellFigures) -> dict[str, Any]:
    """Convert settings or results to a mapping that JSON can represent."""
    return dataclasses.asdict(value)


def settings_from_plain(plain: Mapping[str, Any]) -> CostSettings:
    """Parse settings that :func:`to_plain` wrote, after a round trip through JSON."""
    # "dtype" is the former name of "precision".
    values: dict[str, Any] = {
        "precision" if name == "dtype" else name: tuple(v) if isinstance(v, list) else v
        for name, v in plain.items()
    }
    return CostSettings(**values)


def cell_from_plain(plain: Mapping[str, Any]) -> CellFigures:
    """Parse a cell that :func:`to_plain` wrote, after a round trip through JSON."""
    systems = [
        SystemFigures(
            **{**system, "kinds": {k: KindFigures(**v) for k, v in system["kinds"].items()}}
        )
        for system in plain["systems"]
    ]
    return CellFigures(**{**plain, "systems": systems})
