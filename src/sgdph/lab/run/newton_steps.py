"""What a run records of its optimizer after each epoch: learning rates and Newton multipliers."""

from __future__ import annotations

from torch.optim.optimizer import Optimizer


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the learning rate, and ``newton_lr`` where Newton steps have one of their own."""
    first = optimizer.param_groups[0]
    rates = {"lr": float(first["lr"])}
    newton = [group for group in optimizer.param_groups if "second_order_lr" in group]
    if newton and "second_order_lr" not in first:
        rates["newton_lr"] = float(newton[0]["lr"])
    return rates


def multiplier_summary(optimizer: Optimizer) -> dict[str, float | int] | None:
    """Summarise SGD-PH's Newton multipliers, tau / (D + eps), over the refreshed parameters.

    Returns:
        Smallest, middle and largest of the parameters' medians, and how many parameters were
        refreshed at least once; ``None`` for other optimizers.
    """
    statistics = getattr(optimizer, "multiplier_statistics", None)
    if statistics is None:
        return None
    medians = sorted(each.median for each in statistics().values() if each.refreshes > 0)
    if not medians:
        return {"refreshed": 0}
    return {
        "min": medians[0],
        "median": medians[len(medians) // 2],
        "max": medians[-1],
        "refreshed": len(medians),
    }
