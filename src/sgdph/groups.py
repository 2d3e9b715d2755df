"""The names of parameters in their groups, and what a group that comes later takes over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sgdph.hyperparameters import ONE_FOR_ALL_GROUPS


def parameter_name(groups: Sequence[dict[str, Any]], p: Tensor) -> str:
    """Name ``p``: as its group does, else ``"group.place"``.

    Raises:
        KeyError: ``p`` is in none of the groups.
    """
    for i, group in enumerate(groups):
        for j, other in enumerate(group["params"]):
            if other is p:
                return _name_at(group, i, j)
    raise KeyError(f"a tensor of shape {tuple(p.shape)} is no parameter of this optimizer")


def parameter_names(groups: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Name every parameter as :func:`parameter_name` does, by its ``id``."""
    return {
        id(p): _name_at(group, i, j)
        for i, group in enumerate(groups)
        for j, p in enumerate(group["params"])
    }


def listed(names: Sequence[str]) -> str:
    """Name up to three, and say how many more there are."""
    rest = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{rest}"


def _name_at(group: dict[str, Any], i: int, j: int) -> str:
    # Fewer names than parameters, where somebody has changed the list by hand.
    names = group.get("param_names") or []
    return str(names[j]) if j < len(names) else f"{i}.{j}"


def like_the_others(groups: Sequence[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    """Let a group that comes later fit those that are there, without changing it.

    It takes over what is one for all groups, which may have changed since the optimizer's defaults
    were set, and gets names where the others have some, because torch wants all groups to, or none.
    What is no group with a list of parameters is left to torch to refuse.
    """
    if not isinstance(group, dict):
        return group
    return _named({**{name: groups[0][name] for name in ONE_FOR_ALL_GROUPS}, **group}, groups)


def _named(group: dict[str, Any], groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    params = group.get("params")
    if "param_names" in group or "param_names" not in groups[0]:
        return group
    if params is None or isinstance(params, set):
        return group
    params = [params] if isinstance(params, Tensor) else list(params)
    if any(isinstance(p, tuple) for p in params):
        return {**group, "params": params}
    return {**group, "params": [(f"{len(groups)}.{i}", p) for i, p in enumerate(params)]}
