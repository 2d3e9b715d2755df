"""What an optimizer of the comparison is."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, TypeAlias

Setting: TypeAlias = bool | int | float | str | tuple[float, ...] | None
"""A value that an optimizer's argument can have on the command line."""

# What the laboratory gives an optimizer itself.
_GIVEN = frozenset({"self", "params", "seed", "process_group"})


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
        requires: The package that it comes from, where that is an optional one.
    """

    label: str
    constructor: str
    defaults: Mapping[str, Any]
    arguments: Mapping[str, Setting] = field(default_factory=dict)
    build: str = "plain"
    create_graph: bool = False
    requires: str | None = None

    def load(self) -> Any:
        """Import its class."""
        return resolve_name(self.constructor)

    def constructor_arguments(self) -> tuple[str, ...]:
        """Name the arguments of its constructor that a person may set.

        Arguments that it would swallow unseen (``**kwargs``) are not among them.
        """
        parameters = inspect.signature(self.load()).parameters.values()
        return tuple(
            each.name
            for each in parameters
            if each.name not in _GIVEN and each.kind is not inspect.Parameter.VAR_KEYWORD
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
