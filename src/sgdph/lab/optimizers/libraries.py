"""Optimizers of optional packages: imported when they are built, looked at when asked about."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

# What the laboratory gives an optimizer itself.
_GIVEN = frozenset({"self", "params", "seed", "process_group"})


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def import_from(path: str) -> Callable[..., Any]:
    """Import what a dotted path names, like ``"torch.optim.SGD"``."""
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def arguments_of(path: str) -> tuple[str, ...]:
    """Name the arguments that a person may set of the optimizer at a dotted path.

    Arguments that it would swallow unseen (``**kwargs``) are not among them.
    """
    parameters = inspect.signature(import_from(path)).parameters.values()
    return tuple(
        each.name
        for each in parameters
        if each.name not in _GIVEN and each.kind is not inspect.Parameter.VAR_KEYWORD
    )
