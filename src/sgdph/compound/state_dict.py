"""One state dict for several optimizers: joining, splitting, and loading bare states."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from torch.optim.optimizer import Optimizer

from sgdph.roles import listed
from sgdph.state_matching import match_groups, names_of, out_of_order, rearranged

StateDict = dict[str, Any]

_OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")

# A key that only Newton groups have, from the place in the cycle.
NEWTON = "cursor"

# In saved Newton groups, the classes of the first-order optimizers; other groups are not ours, so
# they get no further key. In the joined state dict, what they save besides groups and state.
FIRST_ORDER = "first_order"

# The prefix of a state key that is not a parameter; an optimizer's number and the key follow.
_OWN_KEY = f"{FIRST_ORDER}."


def joined(
    parts: Sequence[Mapping[str, Any]], layout: Sequence[int], kinds: list[str]
) -> StateDict:
    """Join the state dicts of several optimizers into one, numbered as torch would.

    Args:
        parts: The state dicts; the last is that of the Newton parameters.
        layout: For each group of the whole, the index of its part.
        kinds: The classes of the first-order optimizers.
    """
    groups_of = [iter(part["param_groups"]) for part in parts]
    numbers: list[dict[Any, int]] = [{} for _ in parts]
    number, groups = count(), []
    for k in layout:
        group = dict(next(groups_of[k]))
        numbers[k].update((i, next(number)) for i in group["params"])
        group["params"] = [numbers[k][i] for i in group["params"]]
        if k == len(parts) - 1:
            group[FIRST_ORDER] = list(kinds)
        groups.append(group)
    state = {
        numbers[k].get(i, f"{_OWN_KEY}{k}.{i}" if isinstance(i, str) else i): kept
        for k, part in enumerate(parts)
        for i, kept in part["state"].items()
    }
    whole = {"state": state, "param_groups": groups}
    more = [_beside(part) for part in parts[:-1]]
    return {**whole, FIRST_ORDER: more} if any(more) else whole


def taken_apart(
    saved: Mapping[str, Any], layout: Sequence[int], owners: Sequence[Optimizer]
) -> list[StateDict]:
    """Split a state dict that :func:`joined` made.

    Args:
        saved: The state dict of the whole. It is not changed.
        layout: The layout of the optimizer that loads it.
        owners: The optimizers of the parts; the last is that of the Newton parameters.

    Returns:
        One state dict for each part. Their states share no tensors with ``saved``.

    Raises:
        ValueError: It is not a joined state, or has other first-order optimizers or groups, or the
            same parameters in another order.
    """
    groups, kinds = _groups_of(saved), [*_kinds(owners[:-1])]
    last = len(kinds)
    was_newton = [NEWTON in group for group in groups]
    # If torch.distributed.checkpoint flattens states, it keeps only keys that live groups have too.
    kinds_then = next((list(group[FIRST_ORDER]) for group in groups if FIRST_ORDER in group), kinds)
    if all(was_newton):
        raise ValueError(
            "the loaded state is not that of a PartialHessian (SGDPH keeps its first-order half "
            "in the same groups). Load what state_dict() of a PartialHessian returned, or the "
            f"states of {', '.join(kinds)}, {'alone' if last == 1 else 'as a list'}"
        )
    if kinds_then != kinds:
        raise ValueError(
            f"the loaded state has the first-order optimizers {', '.join(kinds_then)}, this "
            f"optimizer has {', '.join(kinds)}. Build it with the same optimizers in the same "
            "order"
        )
    if was_newton != [k == last for k in layout]:
        raise ValueError(
            f"the loaded state belongs to other groups: it has {len(groups)}, of which "
            f"{sum(was_newton)} take Newton steps; this optimizer has {len(layout)}, of which "
            f"{sum(k == last for k in layout)} do. Build the optimizer from the groups that the "
            "saved one was built from, and add later ones by add_param_group"
        )
    parts: list[StateDict] = [{"state": {}, "param_groups": []} for _ in range(last + 1)]
    home: dict[Any, int] = {}
    for group, k in zip(groups, layout, strict=True):
        parts[k]["param_groups"].append({n: v for n, v in group.items() if n != FIRST_ORDER})
        home.update((i, k) for i in group["params"])
    for part, owner in zip(parts, owners, strict=True):
        _check_order(part["param_groups"], owner)
    for i, kept in saved["state"].items():
        k, key = _owner_of(i) or (home.get(i, last), i)
        # Copied, because torch's optimizers later write into the tensors that they load.
        parts[k]["state"][key] = copy.deepcopy(kept)
    for part, more in zip(parts, saved.get(FIRST_ORDER, ()), strict=False):
        part.update(copy.deepcopy(more))
    return parts


def _check_order(saved: Sequence[Mapping[str, Any]], owner: Optimizer) -> None:
    """Check that named parameters of a part are in this order: torch's optimizers go by position.

    Raises:
        ValueError: The order differs.
    """
    moved = out_of_order(saved, owner.param_groups)
    if moved:
        raise ValueError(
            f"the loaded state has the parameters of {type(owner).__name__} in another order "
            f"({listed(moved)}). Build the model and the optimizer in the order in which the saved "
            "ones were built"
        )


def _owner_of(key: Any) -> tuple[int, str] | None:
    """Return the optimizer's number and its own key, for a joined state key with the prefix."""
    if not isinstance(key, str) or not key.startswith(_OWN_KEY):
        return None
    number, _, own = key.removeprefix(_OWN_KEY).partition(".")
    return int(number), own


def _beside(part: Mapping[str, Any]) -> StateDict:
    """Return what an optimizer saves besides groups and state, such as a counter."""
    return {name: kept for name, kept in part.items() if name not in ("state", "param_groups")}


def bare_states(saved: Any, optimizers: Sequence[Optimizer]) -> list[Mapping[str, Any]] | None:
    """Return the states of bare first-order optimizers, or ``None`` for a joined state.

    Args:
        saved: The argument of ``load_state_dict``.
        optimizers: The first-order optimizers.

    Raises:
        TypeError: It is neither a state dict nor a sequence of state dicts.
        ValueError: There are not as many states as optimizers.
    """
    if isinstance(saved, Mapping):
        if any(NEWTON in group for group in _groups_of(saved)):
            return None
        states: list[Mapping[str, Any]] = [saved]
    elif isinstance(saved, Sequence) and all(isinstance(each, Mapping) for each in saved):
        states = list(saved)
    else:
        raise TypeError(
            "load_state_dict takes what state_dict() returned, or the states of the first-order "
            f"optimizers, got {type(saved).__name__}"
        )
    if len(states) != len(optimizers):
        raise ValueError(
            f"got {len(states)} state{'s' if len(states) > 1 else ''} for {len(optimizers)} "
            f"first-order optimizers: load [{', '.join(_kinds(optimizers))}]'s, one each"
        )
    return states


def without_taken(
    saved: Mapping[str, Any],
    optimizer: Optimizer,
    before: Sequence[dict[str, Any]],
    positions: Mapping[int, int],
) -> StateDict:
    """Fit the state of a bare optimizer to one whose Newton parameters were removed.

    Args:
        saved: The state dict.
        optimizer: The optimizer that loads it.
        before: Its groups before the parameters were removed.
        positions: The position of each parameter in its model, if it is known, by ``id``.

    Returns:
        A state dict for the present parameters of ``optimizer``.

    Raises:
        ValueError: The state fits neither the present nor the former groups.
    """
    groups, now = _groups_of(saved), optimizer.param_groups
    _check_kind(groups, optimizer)
    whole: Sequence[dict[str, Any]] = now
    try:
        fitted = match_groups(groups, now, positions)
    except ValueError as error:
        order = _order(groups, now, positions)
        if order is not None:
            fitted = rearranged(groups, now, order)
        elif [*map(_size, groups)] == [*map(_size, before)]:
            whole, fitted = before, match_groups(groups, before, positions)
        else:
            raise ValueError(
                f"the loaded state has groups of {_sizes(groups)} parameters, and "
                f"{type(optimizer).__name__} has {_sizes(now)}; before its Newton parameters were "
                f"taken over it had {_sizes(before)}. A state loads that was saved over the same "
                "parameters, in the same order or under the same names"
            ) from error
    own = {id(p) for group in now for p in group["params"]}
    ids = set()
    for group, old in zip(fitted, whole, strict=True):
        pairs = zip(group["params"], old["params"], strict=True)
        group["params"] = [i for i, p in pairs if id(p) in own]
        group.pop("param_names", None)
        ids |= set(group["params"])
    state = {i: kept for i, kept in saved["state"].items() if i in ids or isinstance(i, str)}
    return {**_beside(saved), "state": state, "param_groups": fitted}


def _order(
    saved: Sequence[Mapping[str, Any]],
    groups: Sequence[dict[str, Any]],
    positions: Mapping[int, int],
) -> list[int] | None:
    """Find each parameter's place in a state, by name or by the model's order, or ``None``."""
    names, own_names = names_of(saved), names_of(groups)
    if names is not None and own_names is not None and set(own_names) <= set(names):
        return [names.index(name) for name in own_names]
    order = [positions.get(id(p), -1) for group in groups for p in group["params"]]
    is_of_model = len(saved) == 1 and _size(saved[0]) == len(positions) and -1 not in order
    return order if is_of_model else None


def _check_kind(groups: Sequence[Mapping[str, Any]], optimizer: Optimizer) -> None:
    """Check that a bare state comes from the same kind of optimizer.

    Raises:
        ValueError: Its groups have other settings.
    """
    known = {*optimizer.defaults, *_OF_SCHEDULERS, "params", "param_names", "positions"}
    for group in groups:
        missing, foreign = optimizer.defaults.keys() - group.keys(), group.keys() - known
        # A state of an older version lacks some settings, but has no unknown ones.
        if missing and foreign - {"channelwise"}:
            raise ValueError(
                f"the loaded state is of another kind than {type(optimizer).__name__}: its groups "
                f"have {', '.join(sorted(foreign))}, and lack {', '.join(sorted(missing))}"
            )


def _groups_of(saved: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    missing = [key for key in ("state", "param_groups") if key not in saved]
    if missing:
        raise ValueError(
            f"the loaded state lacks {' and '.join(map(repr, missing))}; load what state_dict() of "
            "an optimizer returned"
        )
    groups: Sequence[Mapping[str, Any]] = saved["param_groups"]
    for i, group in enumerate(groups):
        if not isinstance(group, Mapping) or "params" not in group:
            raise ValueError(f"group {i} of the loaded state has no list of parameters, 'params'")
    return groups


def _kinds(optimizers: Sequence[Optimizer]) -> Iterator[str]:
    return (type(optimizer).__name__ for optimizer in optimizers)


def _size(group: Mapping[str, Any]) -> int:
    return len(group["params"])


def _sizes(groups: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(map(str, map(_size, groups)))
