"""The definition of an optimizer in the comparison."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, TypeAlias

Setting: TypeAlias = bool | int | float | str | tuple[int | float, ...] | None
"""A value that an optimizer's argument can have on the command line."""

# Types of an argument that is true, false or left to the optimizer, as signatures have them.
_OPTIONAL_BOOL = (bool | None, "bool | None", "Optional[bool]")

# Constructor arguments that the laboratory sets itself.
_GIVEN = frozenset({"self", "first_order", "params", "seed", "process_group"})

# Arguments of Newton steps that a first-order optimizer beside them may have too.
_OF_BOTH = frozenset({"lr", "weight_decay", "momentum", "eps", "maximize", "foreach"})


def newton_name(argument: str) -> str:
    """Return an argument's name for the Newton steps that are taken beside another optimizer."""
    return f"newton_{argument}" if argument in _OF_BOTH else argument


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One optimizer in the comparison.

    Attributes:
        label: What tables and plots call it.
        constructor: Dotted path of its class, which is imported when it is built.
        defaults: Setting to default value. The keys are all settings of the optimizer that are
            fields of a run's configuration.
        arguments: Other constructor arguments that are set, to their values.
        build: Name of the function in :mod:`sgdph.lab.optimizers.build` that makes it.
        create_graph: Whether it takes second derivatives from the gradients' graph.
        multiplier: Name of the multiplier of its Newton steps, a key of
            :data:`sgdph.lab.optimizers.newton.MULTIPLIERS`; ``None`` if it takes no Newton steps.
        first_order: The optimizer that takes the first-order steps, if that is another one.
        requires: The package that it comes from, if that is an optional package.
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
        """Whether it can take the first-order steps beside Newton steps: it uses no curvature."""
        return self.multiplier is None and not self.create_graph

    def load(self) -> Any:
        """Import its class."""
        return resolve_name(self.constructor)

    def constructor_arguments(self) -> dict[str, inspect.Parameter]:
        """Return its constructor arguments that a user may set, by name.

        Arguments that the constructor would ignore (``**kwargs``) are left out. If another
        optimizer takes the first-order steps, the arguments of that one come first.
        """
        own = {
            name: each
            for name, each in inspect.signature(self.load()).parameters.items()
            if name not in _GIVEN and each.kind is not inspect.Parameter.VAR_KEYWORD
        }
        if self.first_order is None:
            return own
        newton = {newton_name(name): each for name, each in own.items()}
        return {**self.first_order.constructor_arguments(), **newton}

    def boolean_arguments(self) -> dict[str, bool]:
        """Return its true-or-false constructor arguments, each with whether it may be ``None``."""
        return {
            name: each.default is None
            for name, each in self.constructor_arguments().items()
            if isinstance(each.default, bool)
            or (each.default is None and each.annotation in _OPTIONAL_BOOL)
        }


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
