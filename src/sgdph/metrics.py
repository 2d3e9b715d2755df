"""Newton multipliers and refresh counts as named numbers, for a logger."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim.optimizer import Optimizer

from sgdph.wrappers import wrapped_sgdph


def log_multipliers(
    optimizer: Optimizer, to: Any = None, step: int | None = None, *, prefix: str = "sgdph"
) -> dict[str, float]:
    """Read the Newton multipliers and refresh counts, and send them to a logger.

    The figures, by name (none has a unit):

    ==================================  ========================================================
    ``sgdph/refreshed``                 how many Newton parameters were refreshed at least once
    ``sgdph/multiplier_min``            smallest of these parameters' median multipliers; like
                                        the next two, left out before the first refresh
    ``sgdph/multiplier_median``         median of them (the upper one if their number is even)
    ``sgdph/multiplier_max``            largest of them
    ``sgdph_multiplier/NAME``           median multiplier of the parameter NAME: its step as a
                                        multiple of SGD's; 1 before its first refresh
    ``sgdph_refreshes/NAME``            how many partial Hessians entered its average
    ==================================  ========================================================

    Reading waits for the device twice, so do not log at every step. No collective is run, so one
    rank can log alone.

    Args:
        optimizer: An :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian`, or a wrapper around one
            (Accelerate, Lightning, ``Lookahead``).
        to: Where to send them: a TensorBoard ``SummaryWriter``; ``wandb``, one of its runs, or any
            object with the same ``log(figures, step=…)`` (Accelerate, Trackio); an object with
            ``log_metrics(figures, step=…)`` (Lightning's loggers, MLflow, Comet) or
            ``log_dict(figures, step=…)`` (Fabric). ``None`` sends nothing.
        step: The number of the training step; required with ``to``.
        prefix: The prefix of the names. Give each optimizer in one log a prefix of its own.

    Returns:
        The figures.

    Raises:
        TypeError: ``optimizer`` contains no :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian`;
            or ``to`` is none of the above.
        ValueError: ``to`` was given without ``step``.
        RuntimeError: Newton parameters were replaced inside ``param_groups``.

    Example:
        >>> sgdph.log_multipliers(optimizer, writer, step)  # TensorBoard
        >>> sgdph.log_multipliers(optimizer, wandb, step)  # Weights & Biases
        >>> figures = sgdph.log_multipliers(optimizer)  # a dict
    """
    send = None if to is None else _sender(to)
    if send is not None and step is None:
        raise ValueError("log_multipliers needs `step`, the number of the step, to send figures")
    statistics = wrapped_sgdph(optimizer).multiplier_statistics()
    refreshed = sorted(each.median for each in statistics.values() if each.refreshes > 0)
    figures = {f"{prefix}/refreshed": float(len(refreshed))}
    if any(map(math.isnan, refreshed)):
        # Sorting numbers with a NaN among them gives no meaningful order.
        refreshed = [math.nan] * len(refreshed)
    if refreshed:
        figures[f"{prefix}/multiplier_min"] = refreshed[0]
        figures[f"{prefix}/multiplier_median"] = refreshed[len(refreshed) // 2]
        figures[f"{prefix}/multiplier_max"] = refreshed[-1]
    for name, each in statistics.items():
        figures[f"{prefix}_multiplier/{name}"] = each.median
        figures[f"{prefix}_refreshes/{name}"] = float(each.refreshes)
    if send is not None and step is not None:
        send(figures, step)
    return figures


def _sender(to: Any) -> Callable[[dict[str, float], int], object]:
    # Fabric also has log(name, value), so log is tried last.
    for name in ("log_metrics", "log_dict", "log"):
        method = getattr(to, name, None)
        if callable(method) and _takes_figures_and_step(method):
            return partial(_send, method)
    if callable(getattr(to, "add_scalar", None)):

        def add(figures: dict[str, float], step: int) -> None:
            for name, value in figures.items():
                to.add_scalar(name, value, step)

        return add
    raise TypeError(
        "log_multipliers sends to a SummaryWriter, to wandb, or to an object whose log_metrics, "
        f"log_dict or log takes (figures, step=...); got {type(to).__name__}. Without `to` it "
        "returns the figures as a dict, for a LightningModule's log_dict and others"
    )


def _send(method: Callable[..., object], figures: dict[str, float], step: int) -> None:
    method(figures, step=step)


def _takes_figures_and_step(method: Callable[..., Any]) -> bool:
    try:
        inspect.signature(method).bind({}, step=0)
    except TypeError:
        return False
    except ValueError:
        # Its signature is not available.
        return True
    return True
