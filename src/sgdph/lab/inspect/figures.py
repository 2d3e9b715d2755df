"""Settings and results of an inspection, with conversion to and from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError
from sgdph.lab.inspect.sketch import ESTIMATES, MEASURES

ERRORS = tuple(f"{name}_{measure}" for name in ESTIMATES for measure in MEASURES)

FIELDS: Mapping[str, str] = {
    "epoch": "finished epochs at the checkpoint; 0 is before the first step",
    "name": "the parameter's name in the model",
    "label": "its name in tables and pictures",
    "kind": "what it is: bn scale, bn shift, bias, weight-norm length ...",
    "shape": "its shape",
    "size": "its entries, n; the block is n x n",
    "batches": "B: batches of the estimates, and as many others of the reference",
    "batch_size": "examples in a batch",
    "seconds": "wall-clock seconds that its 2B dense blocks took",
    "off_diagonal_share_batch": "share of the Frobenius norm of one batch's block that lies off "
    "the diagonal, sqrt(sum of squared off-diagonal entries / sum of all squared entries), 0 to 1; "
    "mean over 2B batches",
    "off_diagonal_share_mean": "the same of the mean block over 2B batches",
    "negative_share_batch": "share of diagonal entries of one batch's block below 0, 0 to 1; mean "
    "over 2B batches",
    "negative_share_mean": "the same of the mean block over 2B batches",
    "diagonal": "mean |d| over entries, in nats per squared unit of the parameter; d is the "
    "diagonal of the mean block over the reference's B batches",
    "ESTIMATE_relative_error": "|| |h| - |d| || / ||d||, Euclidean; see estimates",
    "ESTIMATE_cosine": "cosine of the angle between |h| and |d|, 0 to 1",
    "refreshes": "how many partial Hessians the optimizer's own average holds; null where it has "
    "none",
    "examples": "training examples that the batches are drawn from",
    "warnings": "what keeps the figures from being what they are meant to be",
    "source": "what a multiplier is: held is tau / (D + eps) of the optimizer's own average D; "
    "unvisited is 1 by definition, before the parameter's first visit; control is what a control "
    "of SGD-PH takes in its place; row_sum_average is tau / (D + eps) of the average over B visits "
    "at SGD-PH's defaults, of an optimizer that has no multipliers",
    "min, p05, p25, median, p75, p95, max, mean": "of the Newton multipliers over the parameter's "
    "entries: how many times SGD's step they take; see source",
}
ESTIMATE_FIELDS: Mapping[str, str] = {
    "row_sum_one": "|row sum| of one batch's block (the paper's); mean over B batches",
    "hutchinson_one": "z * (Hz) of one batch with one Rademacher probe; mean over B batches and "
    "all probes",
    "exact_one": "the exact diagonal of one batch: what batches alone do; mean over B batches",
    "row_sum_average": "running average of |row sum| over B batches, one visit each, "
    "bias-corrected",
    "hutchinson_average": "the same of signed Hutchinson estimates, one probe per visit, rectified "
    "after; mean over the probes' sequences",
    "exact_average": "the same of |exact diagonal|",
    "held": "the average that the optimizer holds at the checkpoint, from visits on its way there",
    "constant": "one number for all entries, mean |d|, told from the reference itself",
}


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """How to inspect a run.

    Attributes:
        checkpoints: Epochs whose checkpoints are inspected.
        batches: B. The dense blocks are computed on 2B batches.
        budget: Seconds for dense blocks over all checkpoints. Decides which blocks are computed.
        layers: Patterns of parameter names whose blocks to compute, separated by commas. ``None``
            leaves the choice to the budget.
        float64: Whether model and data are in double precision.
        probes: Number of Rademacher probes per batch, over which Hutchinson's error is averaged.

    Raises:
        LabError: If a value is out of bounds.
    """

    checkpoints: tuple[int, ...]
    batches: int = 8
    budget: float = 300.0
    layers: str | None = None
    float64: bool = False
    probes: int = 16

    def __post_init__(self) -> None:
        for name in ("batches", "probes"):
            if getattr(self, name) < 1:
                raise LabError(f"--{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.budget < float("inf"):
            raise LabError(f"--budget must be above 0 seconds and finite; got {self.budget:g}")


@dataclass(frozen=True)
class Candidate:
    """A block that could be computed.

    Attributes:
        name: The parameter's name.
        label: Its name in tables.
        kind: Its kind, such as ``"bn scale"``.
        size: Number of rows of the block.
        estimated_seconds: Estimated time for its dense blocks, on all batches of all checkpoints.
    """

    name: str
    label: str
    kind: str
    size: int
    estimated_seconds: float


@dataclass(frozen=True)
class Plan:
    """Which blocks are computed, and which are drawn.

    Attributes:
        chosen: Names of the parameters whose blocks are computed, in registration order.
        pictured: Names of those whose blocks are also drawn.
        candidates: All Newton parameters.
    """

    chosen: tuple[str, ...]
    pictured: tuple[str, ...]
    candidates: tuple[Candidate, ...]

    @property
    def left_out(self) -> list[Candidate]:
        """The parameters whose blocks are not computed."""
        return [each for each in self.candidates if each.name not in self.chosen]


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """Results for one parameter's block at one checkpoint; :data:`FIELDS` describes the fields."""

    epoch: int
    name: str
    label: str
    kind: str
    shape: tuple[int, ...]
    size: int
    batches: int
    batch_size: int
    seconds: float
    off_diagonal_share_batch: float | None
    off_diagonal_share_mean: float | None
    negative_share_batch: float
    negative_share_mean: float
    diagonal: float
    refreshes: int | None
    errors: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class MultiplierRecord:
    """One parameter's Newton multipliers at one checkpoint; :data:`FIELDS` describes the fields."""

    epoch: int
    name: str
    label: str
    kind: str
    size: int
    source: str
    refreshes: int | None
    min: float
    p05: float
    p25: float
    median: float
    p75: float
    p95: float
    max: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class CheckpointFigures:
    """Results for one checkpoint.

    Attributes:
        epoch: Number of finished epochs.
        step: Number of finished optimizer steps.
        seconds: Wall-clock seconds of the measurement.
        environment: Versions and machine.
        examples: Number of training examples that the batches were drawn from.
        blocks: Results for the chosen parameters.
        multipliers: Multipliers of all Newton parameters if the optimizer has multipliers,
            otherwise of the chosen ones.
        pictures: Mean blocks ``(n, n)`` of the pictured parameters, by name. They are stored in
            another file.
    """

    epoch: int
    step: int
    seconds: float
    environment: Mapping[str, Any]
    examples: int
    blocks: list[BlockRecord]
    multipliers: list[MultiplierRecord]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Inspection:
    """The state of an inspection.

    Attributes:
        config: Configuration of the inspected run.
        run: The run's directory; ``None`` if the inspection trains the run itself.
        settings: How the run is inspected.
        plan: Which blocks are computed; ``None`` until it is decided.
        checkpoints: Results for the finished checkpoints, by epoch.
    """

    config: RunConfig
    run: str | None
    settings: InspectSettings
    plan: Plan | None = None
    checkpoints: list[CheckpointFigures] = field(default_factory=list)

    @property
    def task(self) -> str:
        """Network, data set, optimizer, batch size and seed in one line."""
        c = self.config
        return f"{c.model} on {c.dataset}, {c.optimizer}, batch {c.batch_size}, seed {c.seed}"

    @property
    def warnings(self) -> list[str]:
        """Warnings about results that do not mean what they should."""
        drawn = 2 * self.settings.batches * self.config.batch_size
        if not self.checkpoints or drawn <= (examples := self.checkpoints[0].examples):
            return []
        return [
            f"Warning: the batches hold {drawn} examples, but there are only {examples} to train "
            "on: estimates and reference share examples, so they are not independent and the "
            "errors look smaller than they are. Take fewer --batches."
        ]


def record_to_plain(record: BlockRecord | MultiplierRecord) -> dict[str, Any]:
    """Convert a record to one flat mapping."""
    plain = dataclasses.asdict(record)
    errors = plain.pop("errors", {})
    return {**plain, **errors}


def block_from_plain(plain: Mapping[str, Any]) -> BlockRecord:
    """Parse a block that :func:`record_to_plain` wrote, after a round trip through JSON."""
    values = dict(plain)
    errors = {name: values.pop(name) for name in ERRORS}
    return BlockRecord(**{**values, "shape": tuple(values["shape"])}, errors=errors)


def plan_to_plain(plan: Plan) -> dict[str, Any]:
    """Convert a plan to a mapping that JSON can represent."""
    return {
        "chosen": list(plan.chosen),
        "pictured": list(plan.pictured),
        "left_out": [each.name for each in plan.left_out],
        "candidates": [dataclasses.asdict(each) for each in plan.candidates],
    }


def plan_from_plain(plain: Mapping[str, Any]) -> Plan:
    """Parse a plan that :func:`plan_to_plain` wrote."""
    candidates = tuple(Candidate(**each) for each in plain["candidates"])
    return Plan(tuple(plain["chosen"]), tuple(plain["pictured"]), candidates)
