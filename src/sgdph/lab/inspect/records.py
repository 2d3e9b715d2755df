"""An inspection from Python: figures of a run's checkpoints, without a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.inspect.choice import estimate_costs, make_plan
from sgdph.lab.inspect.figures import BlockRecord, InspectSettings
from sgdph.lab.inspect.measure import at_checkpoint, measure_checkpoint


def inspect_checkpoints(
    config: RunConfig, data: Dataset, checkpoints: Sequence[Path], settings: InspectSettings
) -> list[BlockRecord]:
    """Choose blocks that fit the budget, and take them at every checkpoint.

    Args:
        config: What the run is.
        data: Its data set.
        checkpoints: Files of one run; costs are estimated at the last.
        settings: How to measure. Its ``checkpoints`` are not looked at.

    Returns:
        A record per checkpoint and parameter; ``figures.FIELDS`` says what each figure is.

    Raises:
        LabError: No block fits the budget, a pattern of names fits none, or a checkpoint cannot be
            read.
    """
    run = at_checkpoint(config, data, checkpoints[-1], settings.float64)
    candidates = estimate_costs(run, settings, len(checkpoints))
    plan = make_plan(candidates, settings.budget, settings.layers)
    return [
        block
        for path in checkpoints
        for block in measure_checkpoint(config, data, path, plan, settings, _Quiet()).blocks
    ]


class _Quiet:
    """A reporter that says nothing."""

    def cell_started(self, name: str, steps: int) -> None:
        """Say nothing."""

    def step_finished(self) -> None:
        """Say nothing."""

    def cell_finished(self, name: str, message: str) -> None:
        """Say nothing."""
