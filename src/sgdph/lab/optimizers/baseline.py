"""What an optimizer of the comparison is."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, TypeAlias

Setting: TypeAlias = bool | int | float | str | tuple[int | float, ...] | None
"""A value that an optimizer's argument can have on the command line."""

# What the laboratory gives an optimizer itself.
_GIVEN = frozenset({"self", "first_order", "params", "seed", "process_group"})

# Arguments of Newton steps that a first-order optimizer beside them has too, or may have.
_OF_BOTH = frozenset({"lr", "weight_decay", "momentum", "eps", "maximize", "foreach"})


def newton_name(argument: str) -> str:
    """Name an argument of Newton steps where another optimizer takes the first-order ones."""
    return f"newton_{argument}" if argument in _OF_BOTH else argument


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One optimizer of the comparison.

    Attributes:
        label: What tables and plots call it.
        constructor: Dotted path of its class, imported when it is built.
        defaults: Setting to default value; its keys are all the settings that the optimizer has and
            that have a field in a run's configuration.
        arguments: Other arguments of the constructor that are set, to their values.
        build: Name of the function of :mod:`sgdph.lab.optimizers.build` that makes it.
        create_graph: Whether it takes second derivatives from the gradients' graph.
        multiplier: What its Newton steps are multiplied by, of
            :data:`sgdph.lab.optimizers.newton.MULTIPLIERS`; ``None`` where it takes no such steps.
        first_order: What takes the first-order steps beside them, where that is another optimizer.
        requires: The package that it comes from, where that is an optional one.
    """

    label: str
    constructor: str
    defaults: Mapping[str, Any]
    arguments: Mapping[str, Setting] = field(default_factory=dict)
    build: str = "plain"
    create_graph: bool = False
    multiplier: str | None = None
    first_order: Baseline | None = None
    requires: str | None = None

    @property
    def can_be_first_order(self) -> bool:
        """Whether it can take the first-order steps beside Newton steps: it has no curvature."""
        return self.multiplier is None and not self.create_graph

    def load(self) -> Any:
        """Import its class."""
        return resolve_name(self.constructor)

    def constructor_arguments(self) -> tuple[str, ...]:
        """Name the arguments of its constructor that a person may set.

        Arguments that it would swallow unseen (``**kwargs``) are not among them. Beside another
        optimizer, that one's go first.
        """
        parameters = inspect.signature(self.load()).parameters.values()
        own = tuple(
            each.name
            for each in parameters
            if each.name not in _GIVEN and each.kind is not inspect.Parameter.VAR_KEYWORD
        )
        if self.first_order is None:
            return own
        return (*self.first_order.constructor_arguments(), *map(newton_name, own))


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
