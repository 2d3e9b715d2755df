"""What is asked of a measurement, and what it measured: plain figures that go to JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgdph.lab.errors import LabError

PRECISIONS = ("float32", "bfloat16")
# The systems whose step is 1.00: always, and where it was measured.
BASE, MATH_BASE = "sgdm", "sgdm-math"


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """Everything that decides a measurement.

    Attributes:
        models: Names of the networks.
        batch_sizes: Sizes of the batches; each pair of network and size is one cell.
        systems: Names of the optimizers.
        device: A torch device, or ``"auto"``.
        precision: ``"float32"``, or ``"bfloat16"``: float32 weights, forward under autocast.
        channels_last: Whether model and images are stored channels last.
        compile: Whether the model is compiled.
        threads: CPU threads of torch.
        rounds: How often every step is timed at each place.
        visits: How many Newton parameters are visited, evenly over the depth; ``None`` is all.
        seed: Of weights, batch and labels.
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
    """Figures of one kind of step of one system.

    Attributes:
        share: The share of these steps in a run.
        wall_seconds: Per round, the mean over the visited places.
        process_seconds: The same by the process's CPU time; ``None`` on CUDA.
        peak_bytes: Per place, the most that was allocated on top of what lived before the step; one
            figure where the place makes no difference, ``None`` where it could not be seen.
        total_peak_bytes: The same with parameters, buffers, optimizer state and batch.
        flops: Per place, as ``peak_bytes``.
    """

    share: float
    wall_seconds: list[float]
    process_seconds: list[float] | None
    peak_bytes: list[int] | None
    total_peak_bytes: list[int] | None
    flops: list[int]


@dataclass(frozen=True)
class SystemFigures:
    """Figures of one system.

    Attributes:
        name: Its name.
        label: Its name in tables.
        interval: Second derivatives at every n-th step.
        floor: The least FLOPs by which a step can take its partial Hessian, as a ratio to SGDM's.
        kinds: By kind of step, ``"refresh"`` or ``"plain"``.
    """

    name: str
    label: str
    interval: int
    floor: float | None
    kinds: Mapping[str, KindFigures]


@dataclass(frozen=True)
class CellFigures:
    """Figures of one network at one batch size.

    Attributes:
        model: The network's name.
        batch_size: Inputs in a batch.
        parameters: Its number of parameters (elements).
        newton: How many Newton parameters (tensors) it has.
        visited: Names of those that were visited.
        systems: SGDM first.
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
    """Turn figures into what JSON can hold."""
    return dataclasses.asdict(value)


def settings_from_plain(plain: Mapping[str, Any]) -> CostSettings:
    """Undo :func:`to_plain` after a way through JSON."""
    # "dtype" is what precision was called before.
    values: dict[str, Any] = {
        "precision" if name == "dtype" else name: tuple(v) if isinstance(v, list) else v
        for name, v in plain.items()
    }
    return CostSettings(**values)


def cell_from_plain(plain: Mapping[str, Any]) -> CellFigures:
    """Undo :func:`to_plain` after a way through JSON."""
    systems = [
        SystemFigures(
            **{**system, "kinds": {k: KindFigures(**v) for k, v in system["kinds"].items()}}
        )
        for system in plain["systems"]
    ]
    return CellFigures(**{**plain, "systems": systems})
