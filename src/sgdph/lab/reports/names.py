"""Display names of systems, data sets, networks and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.registry import DATASETS
from sgdph.lab.networks.registry import NETWORKS
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.reports.layout import SYSTEM, value_of

FIELDS: Mapping[str, str] = {
    "dataset": "data set",
    "model": "network",
    "newton_lr": "Newton lr",
    "second_order_lr": "second-order lr",
    "hessian_momentum": "Hessian momentum",
}
# Fields whose values have labels, as papers write them: ``ResNet18``, ``VGG19-BN``. A value that is
# not in the registry, such as a network from another library, is its own label.
REGISTRIES: Mapping[str, Mapping[str, Any]] = {
    SYSTEM: BASELINES,
    "optimizer": BASELINES,
    "dataset": DATASETS,
    "model": NETWORKS,
}
# Order of optimizers in a table: the reference first, then the others in the registry's order.
ORDER = ("sgdm", *(name for name in BASELINES if name != "sgdm"))


def shown_value(name: str, value: Any) -> str:
    """Format a field's value for display.

    Args:
        name: A field of :class:`RunConfig`, or :data:`SYSTEM`.
        value: Its value.
    """
    if name in REGISTRIES:
        entry = REGISTRIES[name].get(value)
        return str(value) if entry is None else str(entry.label)
    if name == "optimizer_args":
        return ", ".join(f"{key} {shown_value('', item)}" for key, item in value or ()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return " ".join(shown_value("", item) for item in value)
    return "none" if value is None else str(value)


def shown_field(name: str, value: Any) -> str:
    """Format a field's value for display, with the field's name."""
    if name == "label" and value is None:
        return "without a label"
    return f"{field_title(name)} {shown_value(name, value)}"


def field_title(name: str) -> str:
    """Return a field's name for display."""
    return FIELDS.get(name, name.replace("_", " "))


def rank(config: RunConfig, name: str) -> tuple[Any, ...]:
    """Return the sort key of a field's value.

    Optimizers, data sets and networks have the order of their registries.
    """
    value = value_of(config, name)
    if name in (SYSTEM, "optimizer"):
        return _place(config.optimizer, ORDER), config.label or ""
    if name in ("dataset", "model"):
        return _place(value, tuple(DATASETS if name == "dataset" else NETWORKS)), value
    if isinstance(value, (int, float)):
        return 1, float(value), ""
    return (0, 0.0, "") if value is None else (2, 0.0, str(value))


def _place(value: str, order: tuple[str, ...]) -> int:
    return order.index(value) if value in order else len(order)
