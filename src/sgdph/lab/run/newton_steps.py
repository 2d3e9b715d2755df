"""What a run records about its optimizer in each epoch: learning rates, Newton multipliers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch.optim.optimizer import Optimizer

from sgdph import log_multipliers

if TYPE_CHECKING:
    from sgdph.lab.config.run_config import RunConfig


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the learning rate, and ``newton_lr`` if the Newton steps have their own."""
    first = optimizer.param_groups[0]
    rates = {"lr": float(first["lr"])}
    newton = [group for group in optimizer.param_groups if "second_order_lr" in group]
    if newton and "second_order_lr" not in first:
        rates["newton_lr"] = float(newton[0]["lr"])
    return rates


def warn_of_short_run(config: RunConfig, optimizer: Optimizer, steps: int) -> None:
    """Warn if a run ends before every Newton parameter has been refreshed once.

    Args:
        config: The run's configuration; without ``hessian_interval`` it uses no curvature.
        optimizer: Its optimizer.
        steps: The total number of steps of the run.
    """
    interval = config.hessian_interval
    if interval is None or config.refresh != "cyclic":
        return
    count, refreshes = len(getattr(optimizer, "newton_parameters", ())), -(-steps // interval)
    if refreshes < count:
        warnings.warn(
            f"with {steps:,} steps and hessian_interval {interval}, the run refreshes only "
            f"{refreshes:,} of its {count:,} Newton parameters, one per refresh. Train for more "
            f"steps, {'use a smaller interval, ' if interval > 1 else ''}or refresh all at once: "
            "--refresh all --estimator hutchinson --hessian-momentum 0.99",
            UserWarning,
            stacklevel=2,
        )


def multiplier_summary(optimizer: Optimizer) -> dict[str, float | int] | None:
    """Summarise the Newton multipliers, tau / (D + eps), over the refreshed parameters.

    Returns:
        Minimum, median and maximum of the parameters' median multipliers, left out before the first
        refresh, and the number of parameters refreshed at least once. ``None`` for optimizers
        without Newton multipliers.
    """
    if not hasattr(optimizer, "multiplier_statistics"):
        return None
    figures = log_multipliers(optimizer)
    summary: dict[str, float | int] = {
        name: figures[f"sgdph/multiplier_{name}"]
        for name in ("min", "median", "max")
        if f"sgdph/multiplier_{name}" in figures
    }
    return {**summary, "refreshed": int(figures["sgdph/refreshed"])}
