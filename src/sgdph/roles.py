"""The roles of parameters in a saved state: which takes Newton steps, which is first-order.

They stand in each saved group under ``channelwise``: one bool where all its parameters have one
role, a list of bools otherwise. In the groups of an optimizer the same key is the user's own word,
``None`` where shapes decide; shapes alone do not tell the roles, because the last channel-wise
parameter of those that the optimizer was built with is first-order. No further key, because
``torch.distributed.checkpoint`` refuses checkpoints that lack one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgdph.cycle import Cycle
from sgdph.groups import listed, parameter_names

Groups = Sequence[dict[str, Any]]


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
            f"the loaded state has other roles: {'; '.join(findings)}. Build the optimizer "
            "from the groups that the saved one was built from, in the same order, and add later "
            "ones by add_param_group (sgdph.param_groups(model) gives roles that depend on "
            "neither). To load the state nevertheless, set 'channelwise' to None in its groups"
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
