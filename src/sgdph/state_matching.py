"""Whether a saved state fits an optimizer: the same parameters, in the same roles.

``Optimizer.load_state_dict`` goes by place alone. A state of ``torch.optim.SGD`` over
``model.parameters()`` has one group, in the model's order, and those of
:func:`sgdph.param_groups` go by role.

The roles stand in each saved group under ``channelwise``: one bool where all its parameters have
one role, a list of bools otherwise. In the groups of an optimizer the same key is the user's own
word, ``None`` where shapes decide; shapes alone do not tell the roles, because the last
channel-wise parameter of those that the optimizer was built with is first-order. No further key,
because ``torch.distributed.checkpoint`` refuses checkpoints that lack one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sgdph.curvature.cycle import Cycle
from sgdph.roles import listed, parameter_names

SavedGroups = Sequence[Mapping[str, Any]]
Groups = Sequence[dict[str, Any]]

# What says which parameter is which; all else in a group is a setting.
_IDENTITY = ("params", "param_names", "positions", "channelwise")


def match_groups(
    saved: SavedGroups, groups: SavedGroups, positions: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Arrange the groups of a saved state as an optimizer's are.

    Groups of the same sizes match as they stand, unless names contradict. Otherwise parameters are
    matched by name, or by their places in the model where the state has one group. The settings of
    a parameter's saved group go to its new one.

    Args:
        saved: The groups of the state.
        groups: The optimizer's.
        positions: The place in its model of each parameter that has one, by ``id``.

    Raises:
        ValueError: It is not known which parameter is which.
    """
    params = [p for group in groups for p in group["params"]]
    names, own_names = names_of(saved), names_of(groups)
    same_names = names is not None and own_names is not None and set(names) == set(own_names)
    in_order = not same_names or names == own_names
    same_sizes = [len(g["params"]) for g in saved] == [len(g["params"]) for g in groups]
    # Saved under names: torch.distributed.checkpoint has put them in order already.
    by_checkpoint = all(isinstance(i, str) for g in saved for i in g["params"])
    if same_sizes and (in_order or by_checkpoint):
        return [dict(group) for group in saved]
    if any("second_order_lr" in group for group in saved):
        raise ValueError(_other_groups(saved, groups, names, own_names, same_sizes))
    if names is not None and own_names is not None and same_names:
        place = {name: i for i, name in enumerate(names)}
        order = [place[name] for name in own_names]
    else:
        order = [positions.get(id(p), -1) for p in params]
        count = sum(len(group["params"]) for group in saved)
        if len(saved) != 1 or sorted(order) != list(range(count)):
            raise ValueError(_unknown(saved, groups))
    return rearranged(saved, groups, order)


def names_of(groups: SavedGroups) -> list[str] | None:
    """List the names of all parameters; ``None`` unless each has one of its own."""
    names = [str(name) for group in groups for name in group.get("param_names") or []]
    count = sum(len(group["params"]) for group in groups)
    return names if len(names) == count == len(set(names)) else None


def rearranged(
    saved: SavedGroups, groups: SavedGroups, order: Sequence[int]
) -> list[dict[str, Any]]:
    """Arrange the groups of a saved state as others are.

    Args:
        saved: The groups of the state.
        groups: The others.
        order: For each of their parameters its place in the state.
    """
    entries = [(i, group) for group in saved for i in group["params"]]
    places = iter(order)
    arranged: list[dict[str, Any]] = []
    for group in groups:
        own = [entries[next(places)] for _ in group["params"]]
        arranged.append({**_common_settings([g for _, g in own]), "params": [i for i, _ in own]})
    _warn_of_equalised(arranged, groups)
    return arranged


def _common_settings(sources: SavedGroups) -> dict[str, Any]:
    """Return the settings that all the saved groups have, and have alike."""
    distinct = list({id(group): group for group in sources}.values())
    return {
        key: value
        for key, value in (distinct[0].items() if distinct else ())
        if key not in _IDENTITY and all(_same(value, g.get(key)) for g in distinct)
    }


def _warn_of_equalised(arranged: SavedGroups, groups: SavedGroups) -> None:
    """Warn where settings in which the groups differ are replaced by one of the state's."""
    for key in ("lr", "momentum", "weight_decay"):
        now, then = [g.get(key) for g in groups], [g.get(key) for g in arranged]
        if _all_same(then) and then[0] is not None and not _all_same(now):
            warnings.warn(
                f"the loaded state has one {key} for all parameters, {then[0]}. It replaces "
                f"{', '.join(map(str, now))} of this optimizer's groups; set these again after "
                "loading to keep them",
                stacklevel=6,
            )


def _all_same(values: Sequence[Any]) -> bool:
    return all(_same(value, values[0]) for value in values)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.equal(b)
    return bool(a == b)


def _sizes(groups: SavedGroups) -> str:
    sizes = [str(len(group["params"])) for group in groups]
    return f"{len(sizes)} group{'s' if len(sizes) > 1 else ''} of {', '.join(sizes)} parameters"


def _other_groups(
    saved: SavedGroups,
    groups: SavedGroups,
    names: list[str] | None,
    own_names: list[str] | None,
    same_sizes: bool,
) -> str:
    if same_sizes and names is not None and own_names is not None:
        moved = [a for a, b in zip(names, own_names, strict=True) if a != b]
        finding = f"it has the same parameters in another order ({listed(moved)})"
    else:
        finding = f"it has {_sizes(saved)}, this optimizer has {_sizes(groups)}"
    return (
        f"the loaded state belongs to other groups: {finding}. Build the optimizer from the groups "
        "that the saved one was built from, in the same order, and add later ones by "
        "add_param_group"
    )


def _unknown(saved: SavedGroups, groups: SavedGroups) -> str:
    return (
        f"the loaded state has {_sizes(saved)}, this optimizer has {_sizes(groups)}, so it is "
        "unclear which parameter is which. Three kinds of states can be loaded: a state of "
        "torch.optim.SGD over all model.parameters() into SGDPH(sgdph.param_groups(model)); a "
        "state with the same parameter names (torch.optim.SGD(model.named_parameters())); a state "
        "over the same groups"
    )


def save_roles(saved: Groups, groups: Groups, cycle: Cycle) -> None:
    """Write the roles into saved groups, in place.

    Args:
        saved: The groups of a state dict.
        groups: The optimizer's, from which they were made.
        cycle: The Newton parameters.
    """
    for packed, group in zip(saved, groups, strict=True):
        roles = [p in cycle for p in group["params"]]
        if roles:
            packed["channelwise"] = roles[0] if len(set(roles)) == 1 else roles


def check_roles(saved: Groups, groups: Groups, cycle: Cycle) -> None:
    """Check that the parameters of a saved state have the roles that they have here.

    Groups that tell no roles (older states, ``torch.optim.SGD``'s) pass.

    Args:
        saved: The groups of a state dict, of the same sizes as ``groups``.
        groups: The optimizer's.
        cycle: The Newton parameters.

    Raises:
        ValueError: A role differs.
    """
    names = parameter_names(groups)
    newton_there: list[str] = []
    newton_here: list[str] = []
    for packed, group in zip(saved, groups, strict=True):
        for p, was_newton in zip(group["params"], _saved_roles(packed), strict=True):
            if was_newton is None or was_newton == (p in cycle):
                continue
            (newton_there if was_newton else newton_here).append(names[id(p)])
    findings = []
    if newton_there:
        findings.append(f"{listed(newton_there)} took Newton steps there and is first-order here")
    if newton_here:
        findings.append(f"{listed(newton_here)} was first-order there and takes Newton steps here")
    if findings:
        raise ValueError(
            f"the loaded state has other roles: {'; '.join(findings)}. Build the optimizer from "
            "the groups that the saved one was built from, in the same order, and add later ones "
            "by add_param_group (roles from sgdph.param_groups(model) do not depend on the "
            "order). To load the state anyway, set 'channelwise' to None in its groups"
        )


def _saved_roles(packed: Mapping[str, Any]) -> list[bool | None]:
    """Return the role of each parameter of a saved group, ``None`` where it is not told."""
    # torch.optim.SGD over the groups of param_groups keeps their word, and means nothing by it.
    roles = packed.get("channelwise") if "second_order_lr" in packed else None
    params = packed["params"]
    if not isinstance(roles, Sequence) or isinstance(roles, str):
        return [None if roles is None else bool(roles)] * len(params)
    names = packed.get("param_names") or []
    if len(names) == len(roles) and all(isinstance(p, str) for p in params):
        # torch.distributed.checkpoint has put the parameters in this optimizer's order, by name.
        by_name = dict(zip(names, roles, strict=True))
        return [by_name.get(p) for p in params]
    return list(roles) if len(roles) == len(params) else [None] * len(params)
