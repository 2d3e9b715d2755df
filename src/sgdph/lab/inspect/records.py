"""An inspection from Python: results for a run's checkpoints, without a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.inspect.choice import estimate_costs, make_plan
from sgdph.lab.inspect.figures import BlockRecord, InspectSettings
from sgdph.lab.inspect.measure import at_checkpoint, measure_checkpoint
from sgdph.lab.progress import StepLines


def inspect_checkpoints(
    config: RunConfig, data: Dataset, checkpoints: Sequence[Path], settings: InspectSettings
) -> list[BlockRecord]:
    """Choose blocks that fit the budget, and measure them at every checkpoint.

    Args:
        config: Configuration of the run.
        data: Its data set.
        checkpoints: Checkpoint files of the run. Costs are estimated at the last.
        settings: How to measure. The field ``checkpoints`` is ignored.

    Returns:
        One record per checkpoint and parameter. ``figures.FIELDS`` describes its fields.

    Raises:
        LabError: If no block fits the budget, a pattern matches no name, or a checkpoint cannot be
            read.
    """
    run = at_checkpoint(config, data, checkpoints[-1], settings.float64)
    candidates = estimate_costs(run, settings, len(checkpoints))
    plan = make_plan(candidates, settings.budget, settings.layers)
    reporter = StepLines(Console(quiet=True), "blocks")
    return [
        block
        for path in checkpoints
        for block in measure_checkpoint(config, data, path, plan, settings, reporter).blocks
    ]
