"""The first-order half of a compound: optimizers whose Newton parameters it takes over."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from sgdph.compound.ownership import is_owned
from sgdph.optimizer import SGDPH
from sgdph.roles import is_newton, listed, parameter_names, refuse_model

# The attributes in which wrappers hold the optimizer inside.
_INSIDE = ("optimizer", "base_optimizer", "_base_optimizer", "optim")

# Optimizers of pytorch_optimizer whose step needs a closure, although its signature does not show
# this.
_NEED_CLOSURE = ("AliG", "BSAM")

# The keys of a group whose values are lists with one entry per parameter.
_PER_PARAMETER = ("params", "param_names", "positions")

# The settings that a group of the Newton half may have.
_OF_NEWTON_STEPS = inspect.signature(SGDPH).parameters.keys()

# Keys of a group that are not settings of a step.
_NO_SETTING = (*_PER_PARAMETER, "channelwise", "first_order")


def suitable(first_order: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """Check that optimizers can take the first-order steps.

    Args:
        first_order: One optimizer or several.

    Returns:
        All of them.

    Raises:
        TypeError: An element is not an optimizer.
        ValueError: There is none, or one twice; a parameter is in two of them; or one needs a
            closure or a graph of its own, steps in the backward, splits the parameters over ranks,
            wraps another optimizer, uses curvature itself, or belongs to another PartialHessian.
    """
    given: Any = first_order
    one = isinstance(given, Optimizer) or not isinstance(given, Iterable)
    optimizers = (given,) if one else tuple(given)
    if not optimizers:
        raise ValueError("first_order must be one optimizer or more; got none")
    owners: dict[int, int] = {}
    for i, optimizer in enumerate(optimizers):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "first_order must be a torch.optim.Optimizer, or several, got "
                f"{_described(optimizer)}"
            )
        if reason := _unsuitable(optimizer):
            raise ValueError(f"{type(optimizer).__name__} cannot take first-order steps: {reason}")
        if optimizer in optimizers[:i]:
            raise ValueError(f"the same {type(optimizer).__name__} is twice in first_order")
        for p in parameters_of(optimizer):
            if owners.setdefault(id(p), i) != i:
                raise ValueError(
                    f"parameter {parameter_names(optimizer.param_groups)[id(p)]} of "
                    f"{type(optimizer).__name__} is also in another first-order optimizer, and "
                    "would be stepped twice: give each parameter to one of them"
                )
    return optimizers


def _described(found: object) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__


def _unsuitable(optimizer: Optimizer) -> str | None:
    """Return why an optimizer cannot take first-order steps, or ``None`` if it can."""
    settings = inspect.signature(optimizer.step).parameters
    closure = settings.get("closure")
    needs_closure = closure is not None and closure.default is inspect.Parameter.empty
    if needs_closure or type(optimizer).__name__ in _NEED_CLOSURE:
        return "its step needs a closure that computes the loss again during the step"
    if is_owned(optimizer):
        return "it already belongs to another PartialHessian. Build a new one over all parameters"
    if hasattr(optimizer, "update_hessian"):
        return (
            "it uses curvature itself. Use it alone, or give PartialHessian a first-order optimizer"
        )
    if "hessian" in settings or getattr(optimizer, "is_second_order", False):
        return (
            "it needs backward(create_graph=True) for its own curvature. Use it alone, or give "
            "PartialHessian a first-order optimizer"
        )
    if hasattr(optimizer, "fused_backward"):
        return "it steps during the backward, and steps all parameters of the model"
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        return (
            "it splits the parameters over the ranks and broadcasts the stepped ones. Give "
            "PartialHessian the optimizer that it wraps, built over all parameters"
        )
    if any(isinstance(getattr(optimizer, name, None), Optimizer) for name in _INSIDE):
        return (
            "it wraps another optimizer. Give PartialHessian the optimizer inside, and wrap the "
            "PartialHessian (not possible if the wrapper builds that optimizer itself, as SAM)"
        )
    return None


def own_entries(params: ParamsT, optimizers: Sequence[Optimizer]) -> list[Any]:
    """Return the entries of ``params`` as a list, with groups copied.

    Raises:
        TypeError: ``params`` is a model.
        ValueError: A group belongs to a first-order optimizer, or is a copy of such a group, with
            that optimizer's settings in it.
    """
    refuse_model(params)
    theirs = {id(group) for optimizer in optimizers for group in optimizer.param_groups}
    entries: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    for entry in entries:
        if id(entry) in theirs or any(_has_settings_of(o, entry) for o in optimizers):
            raise ValueError(
                "PartialHessian got the same group dicts as the first-order optimizer, which has "
                "put its own lr and weight decay into them. Make the groups twice: call "
                "sgdph.param_groups(model) once for each of the two"
            )
    return [copied(entry) if isinstance(entry, dict) else entry for entry in entries]


def _has_settings_of(optimizer: Optimizer, entry: object) -> bool:
    """Return whether a group has all settings of an optimizer, some unknown to the Newton half.

    A user would not write all of them by hand, so the optimizer has added them.
    """
    names = optimizer.defaults.keys()
    return isinstance(entry, dict) and names <= entry.keys() and not names <= _OF_NEWTON_STEPS


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield an optimizer's parameters, in the order of its groups."""
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def check_held(
    params: Collection[Tensor], optimizers: Sequence[Optimizer], names: Mapping[int, str]
) -> dict[str, Tensor]:
    """Check that an optimizer holds each trainable first-order parameter.

    Args:
        params: The first-order parameters.
        optimizers: The first-order optimizers.
        names: The parameters' names, by ``id``.

    Returns:
        The frozen parameters that no optimizer holds, by name.

    Raises:
        ValueError: A trainable parameter is held by none of the optimizers.
    """
    held = {id(p) for optimizer in optimizers for p in parameters_of(optimizer)}
    unheld = {names[id(p)]: p for p in params if id(p) not in held}
    if missing := [name for name, p in unheld.items() if p.requires_grad]:
        raise ValueError(
            f"no first-order optimizer holds parameter {listed(missing)}, so it would not be "
            f"trained. Give it to {' or '.join(type(o).__name__ for o in optimizers)}, or "
            "freeze it"
        )
    return unheld


def contradictions(
    group: Mapping[str, Any], given: Collection[str], optimizers: Sequence[Optimizer]
) -> list[str]:
    """Describe settings given for first-order parameters that differ from their optimizer's.

    Args:
        group: A group with first-order parameters.
        given: The names of the settings that the user gave it.
        optimizers: The first-order optimizers.
    """
    owned = {id(p): g for o in optimizers for g in o.param_groups for p in g["params"]}
    own = [owned[id(p)] for p in group["params"] if id(p) in owned]
    return sorted(
        {
            f"{name}={group[name]} (there {held[name]})"
            for held in own
            for name in given
            if name not in _NO_SETTING and name in held and bool(held[name] != group[name])
        }
    )


def keep_only(group: dict[str, Any], keep: Sequence[bool]) -> None:
    """Remove parameters from a group, in place, with their names and positions.

    Args:
        group: A parameter group.
        keep: For each of its parameters, whether to keep it.
    """
    for name in _PER_PARAMETER:
        if name in group and len(group[name]) == len(keep):
            # In place, because schedulers and other code hold these lists.
            group[name][:] = [each for each, stays in zip(group[name], keep, strict=True) if stays]


def take_over(params: Collection[Tensor], optimizers: Sequence[Optimizer]) -> None:
    """Remove parameters and their state from optimizers. Emptied groups stay."""
    taken = {id(p) for p in params}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            keep_only(group, [id(p) not in taken for p in group["params"]])
        for p in params:
            optimizer.state.pop(p, None)


def copied(group: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a group, with its lists of parameters, names and positions."""
    lists = {n: list(group[n]) for n in _PER_PARAMETER if isinstance(group.get(n), list)}
    return {**group, **lists}


def tensors_of(group: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors of a group, whose parameters may be ``(name, tensor)`` pairs."""
    return [each[1] if isinstance(each, tuple) else each for each in group["params"]]


def by_role(group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a user's group into its first-order and its Newton parameters.

    Raises:
        TypeError: It is not a dict, or its parameters are a set or are not tensors.
    """
    if not isinstance(group, dict):
        raise TypeError(f"param_group must be a dict, but got {type(group)}")
    params = group["params"]
    if isinstance(params, set):
        raise TypeError(
            "the parameters of a group must be a list, because their order matters; got a set"
        )
    members = [params] if isinstance(params, Tensor) else list(params)
    for p in tensors_of({"params": members}):
        if not isinstance(p, Tensor):
            raise TypeError(f"a group holds tensors, or pairs of a name and one, got {p!r}")
    roles = [is_newton(p, group) for p in tensors_of({"params": members})]
    parts = []
    for role in (False, True):
        part = copied({**group, "params": members})
        keep_only(part, [r is role for r in roles])
        parts.append(part)
    parts[1]["channelwise"] = True
    return parts[0], parts[1]
