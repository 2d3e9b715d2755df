"""Whether a saved state fits an optimizer: the same parameters, in the same roles.

``Optimizer.load_state_dict`` matches parameters by position only. But a state of
``torch.optim.SGD`` over ``model.parameters()`` has one group, in the model's order, while
:func:`sgdph.param_groups` orders parameters by role.

The roles are saved in each group under ``channelwise``: one bool if all its parameters have the
same role, else a list of bools. In an optimizer's own groups, the same key is the user's flag, and
``None`` means that shapes decide. Shapes alone do not give the roles, because the last channel-wise
parameter among those that the optimizer was built with is first-order. There is no further key,
because ``torch.distributed.checkpoint`` rejects checkpoints that lack a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sgdph.curvature.cycle import Cycle
from sgdph.roles import listed, parameter_names
from sgdph.user_warning import warn_user

SavedGroups = Sequence[Mapping[str, Any]]
Groups = Sequence[dict[str, Any]]

# The keys that identify parameters. All other keys of a group are settings.
_IDENTITY = ("params", "param_names", "positions", "channelwise")


def match_groups(
    saved: SavedGroups, groups: SavedGroups, positions: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Arrange the groups of a saved state like an optimizer's.

    Groups of the same sizes are matched in order, unless names contradict. Otherwise parameters are
    matched by name or, if the state has one group, by their positions in the model; but not those
    of a state of SGDPH. The settings of a parameter's saved group go to its new group.

    Args:
        saved: The groups of the state.
        groups: The optimizer's groups.
        positions: The position of each parameter in its model, if it is known, by ``id``.

    Raises:
        ValueError: The parameters cannot be matched; or the state is one of SGDPH, with other
            groups.
    """
    params = [p for group in groups for p in group["params"]]
    names, own_names = names_of(saved), names_of(groups)
    same_sizes = [len(g["params"]) for g in saved] == [len(g["params"]) for g in groups]
    if same_sizes and not out_of_order(saved, groups):
        return [dict(group) for group in saved]
    if any("second_order_lr" in group for group in saved):
        raise ValueError(_other_groups(saved, groups, same_sizes))
    if names is not None and own_names is not None and set(names) == set(own_names):
        place = {name: i for i, name in enumerate(names)}
        order = [place[name] for name in own_names]
    else:
        order = [positions.get(id(p), -1) for p in params]
        count = sum(len(group["params"]) for group in saved)
        if len(saved) != 1 or sorted(order) != list(range(count)):
            raise ValueError(_unknown(saved, groups))
    return rearranged(saved, groups, order)


def names_of(groups: SavedGroups) -> list[str] | None:
    """Return the names of all parameters, or ``None`` unless each has a unique name."""
    names = [_unwrapped(name) for group in groups for name in group.get("param_names") or []]
    count = sum(len(group["params"]) for group in groups)
    return names if len(names) == count == len(set(names)) else None


def out_of_order(saved: SavedGroups, groups: SavedGroups) -> list[str]:
    """Return the saved names that stand at other places in the groups.

    It is empty if not all parameters have the same names in both, or if the state is from
    ``torch.distributed.checkpoint``, which numbers parameters by name and has ordered them.
    """
    names, own_names = names_of(saved), names_of(groups)
    by_checkpoint = all(isinstance(i, str) for g in saved for i in g["params"])
    if by_checkpoint or names is None or own_names is None or set(names) != set(own_names):
        return []
    return [a for a, b in zip(names, own_names, strict=True) if a != b]


def _unwrapped(name: object) -> str:
    """Remove what DistributedDataParallel and torch.compile add to a parameter's name."""
    return ".".join(part for part in str(name).split(".") if part not in ("module", "_orig_mod"))


def rearranged(
    saved: SavedGroups, groups: SavedGroups, order: Sequence[int]
) -> list[dict[str, Any]]:
    """Arrange the groups of a saved state like other groups.

    Args:
        saved: The groups of the state.
        groups: The groups that give the arrangement.
        order: The position in the state of each parameter of ``groups``.
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
    """Return the settings that all the saved groups have with the same value."""
    distinct = list({id(group): group for group in sources}.values())
    return {
        key: value
        for key, value in (distinct[0].items() if distinct else ())
        if key not in _IDENTITY and all(_same(value, g.get(key)) for g in distinct)
    }


def _warn_of_equalised(arranged: SavedGroups, groups: SavedGroups) -> None:
    """Warn if a setting that differs between the groups is replaced by one value of the state."""
    for key in ("lr", "momentum", "weight_decay"):
        now, then = [g.get(key) for g in groups], [g.get(key) for g in arranged]
        if _all_same(then) and then[0] is not None and not _all_same(now):
            warn_user(
                f"the loaded state has one {key} for all parameters, {then[0]}. It replaces "
                f"{', '.join(map(str, now))} of this optimizer's groups; set these again after "
                "loading to keep them",
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


def _other_groups(saved: SavedGroups, groups: SavedGroups, same_sizes: bool) -> str:
    if same_sizes:
        moved = out_of_order(saved, groups)
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
        groups: The optimizer's groups, from which ``saved`` was made.
        cycle: The Newton parameters.
    """
    for packed, group in zip(saved, groups, strict=True):
        roles = [p in cycle for p in group["params"]]
        if roles:
            packed["channelwise"] = roles[0] if len(set(roles)) == 1 else roles


def check_roles(saved: Groups, groups: Groups, cycle: Cycle) -> None:
    """Check that the parameters of a saved state have the same roles as in this optimizer.

    Groups without saved roles (older states, ``torch.optim.SGD``'s) pass.

    Args:
        saved: The groups of a state dict, of the same sizes as ``groups``.
        groups: The optimizer's groups.
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
    """Return the role of each parameter of a saved group, ``None`` if it was not saved."""
    # torch.optim.SGD over groups of param_groups keeps this key too, without using it.
    roles = packed.get("channelwise") if "second_order_lr" in packed else None
    params = packed["params"]
    if not isinstance(roles, Sequence) or isinstance(roles, str):
        return [None if roles is None else bool(roles)] * len(params)
    names = packed.get("param_names") or []
    if len(names) == len(roles) and all(isinstance(p, str) for p in params):
        # torch.distributed.checkpoint has ordered the parameters as in this optimizer, by name.
        by_name = dict(zip(names, roles, strict=True))
        return [by_name.get(p) for p in params]
    return list(roles) if len(roles) == len(params) else [None] * len(params)
