"""The optimizer's running averages and Newton multipliers at a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sgdph.algorithm import corrected_average
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.inspect.figures import MultiplierRecord
from sgdph.lab.inspect.parameters import NewtonParameter
from sgdph.lab.inspect.sketch import BlockSketch
from sgdph.lab.optimizers.baseline import newton_name
from sgdph.lab.optimizers.newton import CURVATURE, SETTINGS
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.run.start import PreparedRun

QUANTILES = {
    "min": 0.0,
    "p05": 0.05,
    "p25": 0.25,
    "median": 0.5,
    "p75": 0.75,
    "p95": 0.95,
    "max": 1,
}


def held_averages(
    optimizer: torch.optim.Optimizer, parameters: Sequence[NewtonParameter], config: RunConfig
) -> dict[str, tuple[Tensor, int]]:
    """Return the optimizer's bias-corrected averages and numbers of visits.

    Parameters that were not visited are left out.
    """
    held = {}
    for each in parameters:
        state: Mapping[str, Any] = optimizer.state.get(each.tensor, {})
        if "hessian" in state and (visits := int(state["refreshes"])) > 0:
            beta2 = hyperparameter(config, "hessian_momentum")
            held[each.name] = (
                corrected_average(state["hessian"], state["refreshes"], beta2),
                visits,
            )
    return held


def hyperparameter(config: RunConfig, name: str) -> float:
    """Return a setting of the run's Newton steps, or SGD-PH's default if it has no such setting."""
    optimizer = BASELINES[config.optimizer]
    value = None
    if optimizer.multiplier is not None:
        value = config.setting(name if optimizer.first_order is None else newton_name(name))
    return float(SETTINGS[name] if value is None else value)


def multiplier_records(
    run: PreparedRun,
    parameters: Sequence[NewtonParameter],
    held: Mapping[str, tuple[Tensor, int]],
    sketches: Mapping[str, BlockSketch],
) -> list[MultiplierRecord]:
    """Summarise the Newton multipliers of every parameter that has them.

    An optimizer with Newton steps, or a control of these, has its own multipliers. Those of Newton
    steps are 1 before a parameter's first visit. For other optimizers, the multipliers are
    ``tau / (D + eps)`` with SGD-PH's defaults. ``D`` is then the average of row sums over B visits,
    and only the chosen parameters have multipliers.
    """
    optimizer, config = run.state.optimizer, run.config
    own: Mapping[str, Tensor] | None = None
    if hasattr(optimizer, "multipliers"):
        own = optimizer.multipliers()
    tau, eps = hyperparameter(config, "second_order_lr"), hyperparameter(config, "eps")
    beta2 = hyperparameter(config, "hessian_momentum")
    records = []
    for each in parameters:
        if own is not None:
            values, refreshes = own[each.name], held.get(each.name, (None, 0))[1]
        elif each.name in sketches:
            values = tau / (sketches[each.name].row_sum_average(beta2) + eps)
            refreshes = None
        else:
            continue
        values = values.double().flatten().cpu()
        summary = {name: values.quantile(q).item() for name, q in QUANTILES.items()}
        records.append(
            MultiplierRecord(
                epoch=run.state.epoch,
                name=each.name,
                label=each.label,
                kind=each.kind,
                size=each.size,
                source=source_of(config, refreshes),
                refreshes=refreshes,
                mean=values.mean().item(),
                **summary,
            )
        )
    return records


def source_of(config: RunConfig, refreshes: int | None) -> str:
    """Return what a multiplier is; see ``source`` in :data:`~sgdph.lab.inspect.figures.FIELDS`.

    Args:
        config: Configuration of the run.
        refreshes: Number of the parameter's visits; ``None`` if the optimizer has no multipliers.
    """
    if refreshes is None:
        return "row_sum_average"
    if BASELINES[config.optimizer].multiplier != CURVATURE:
        return "control"
    return "held" if refreshes else "unvisited"
