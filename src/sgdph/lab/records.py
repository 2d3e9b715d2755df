"""Runs read back from their directories, in groups that differ in nothing but the seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdph.lab.baselines import BASELINES
from sgdph.lab.config import PLACE_FIELDS, LabError, RunConfig
from sgdph.lab.runs import CONFIG, RunDirectory


@dataclass(frozen=True)
class RunRecord:
    """What one run's directory says.

    Attributes:
        path: The directory.
        config: What the run is.
        summary: Its outcome; empty where it had not begun to train.
        metrics: Its epochs' lines.
        env: The machine of its first session; may be empty like the summary.
    """

    path: Path
    config: RunConfig
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    env: dict[str, Any]

    def figure(self, kind: str) -> float | None:
        """Return ``"final"`` or ``"best"`` accuracy on the images it was evaluated on, 0 to 1."""
        value = self.summary.get(f"{kind}_{self.config.evaluated}_accuracy")
        return None if value is None else float(value)

    @property
    def status(self) -> str:
        """The recorded status; ``"running"`` where none was recorded yet."""
        return str(self.summary.get("status", "running"))


@dataclass(frozen=True)
class Group:
    """Runs of one configuration over several seeds.

    Attributes:
        label: The optimizer's name, with the settings that tell it from another group of that name.
        runs: All its runs, by seed.
    """

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that came to their end with a finite loss."""
        return tuple(run for run in self.runs if run.status == "finished")

    def count(self, status: str) -> int:
        """Count the runs of a status."""
        return sum(run.status == status for run in self.runs)


def load_runs(directory: Path) -> list[RunRecord]:
    """Read every run that lies directly under a directory.

    Raises:
        LabError: If none does, or a run's configuration cannot be read.
    """
    records = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if not (path / CONFIG).is_file():
            continue
        run = RunDirectory(path)
        records.append(
            RunRecord(
                path, run.read_config(), run.read_summary(), run.read_metrics(), run.read_env()
            )
        )
    if not records:
        raise LabError(f"{directory} holds no run; name the directory that --out named")
    return records


def group_runs(records: Sequence[RunRecord]) -> list[Group]:
    """Put runs together that differ in seed and place only.

    Returns:
        The groups, in the order in which their optimizers stand in the list of baselines, SGDM
        first.
    """
    groups: dict[RunConfig, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_key(record.config), []).append(record)
    order = ["sgdm", *(name for name in BASELINES if name != "sgdm")]
    keys = sorted(groups, key=lambda key: order.index(key.optimizer))
    return [
        Group(_label(key, keys), tuple(sorted(groups[key], key=lambda run: run.config.seed)))
        for key in keys
    ]


def _key(config: RunConfig) -> RunConfig:
    """Make runs equal that differ in seed and place only."""
    defaults: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.name in PLACE_FIELDS
    }
    return dataclasses.replace(config, seed=0, keep_checkpoints=None, **defaults)


def _label(key: RunConfig, keys: Sequence[RunConfig]) -> str:
    """Name a group by its optimizer, and by whatever tells it from others of that optimizer."""
    rivals = [other for other in keys if other.optimizer == key.optimizer]
    differing = [
        field.name
        for field in dataclasses.fields(key)
        if len({getattr(rival, field.name) for rival in rivals}) > 1
    ]
    details = ", ".join(f"{name}={getattr(key, name)}" for name in differing)
    return f"{key.optimizer} ({details})" if details else key.optimizer


def shared_fields(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the fields, other than seed and place, that all the runs have in common."""
    fields = [
        field.name
        for field in dataclasses.fields(RunConfig)
        if field.name not in PLACE_FIELDS | {"seed"}
    ]
    values = {name: {getattr(record.config, name) for record in records} for name in fields}
    return {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
