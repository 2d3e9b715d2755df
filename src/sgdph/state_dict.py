"""Loading an optimizer's state exactly, including states of optimizers with fewer settings.

The last part serves ``torch.distributed.checkpoint``, which fills only keys that already exist in a
state dict. To make a new optimizer create its state, it sets all gradients and all learning rates
to zero and calls ``step()``. Afterwards it expects all keys of a state in mid-training
(``torch.distributed.checkpoint.state_dict._init_optim_state``). Such a step is called a rehearsal
here. No loss precedes it, so there is no curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from itertools import chain
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from sgdph.algorithm import curvature_dtype, start_average
from sgdph.curvature.cycle import TURN, Cycle
from sgdph.distributed.dtensor import assembled, is_dtensor, is_zero, part_of_whole, whole
from sgdph.distributed.sharding import is_sharded
from sgdph.roles import parameter_names
from sgdph.state_matching import check_roles, match_groups, save_roles

Groups = Sequence[dict[str, Any]]
State = MutableMapping[Tensor, dict[str, Any]]

# State of a Newton parameter that is kept exactly: never rounded to the parameter's own dtype.
_AVERAGE = ("hessian", "refreshes")
EXACT_KEYS = (*_AVERAGE, TURN)

_SGD_ONLY = ("differentiable", "fused", "positions")

# Settings of Adam and the like, and not of SGD. SGDPH has an eps with another meaning.
_NOT_OF_SGD = {"betas", "eps"}

_WHOLE_NUMBERS = ("step", "cursor", "refreshes")

_USE_A_STATE_DICT = "Load what state_dict() of SGDPH or torch.optim.SGD returned"


def fit_state(
    saved: Mapping[str, Any],
    groups: Sequence[dict[str, Any]],
    cycle: Cycle,
    positions: Mapping[int, int],
) -> dict[str, Any]:
    """Check a saved state, and fit it to the optimizer that loads it.

    Args:
        saved: A state dict. It is not changed.
        groups: The optimizer's parameter groups.
        cycle: The Newton parameters.
        positions: The position of each parameter in its model, if it is known, by ``id``.

    Returns:
        The state dict, with groups arranged like ``groups`` and refresh counts as tensors.

    Raises:
        ValueError: ``saved`` is not an optimizer's state; its parameters cannot be matched; roles
            differ; or a parameter's state has a wrong type or shape or lacks a key.
    """
    _check_form(saved)
    fitted = match_groups(saved["param_groups"], groups, positions)
    check_roles(fitted, groups, cycle)
    names = parameter_names(groups)
    ids = chain.from_iterable(group["params"] for group in fitted)
    params = chain.from_iterable(group["params"] for group in groups)
    state = dict(saved["state"])
    for saved_id, p in zip(ids, params, strict=True):
        if saved_id in state:
            state[saved_id] = _fit_entry(state[saved_id], p, p in cycle, names[id(p)])
    return {**saved, "param_groups": fitted, "state": state}


def _check_form(saved: Mapping[str, Any]) -> None:
    missing = [key for key in ("state", "param_groups") if key not in saved]
    if missing:
        raise ValueError(
            f"the loaded state lacks {' and '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, saved)) or 'nothing'}. {_USE_A_STATE_DICT}"
        )
    for i, group in enumerate(saved["param_groups"]):
        if not isinstance(group, Mapping) or "params" not in group:
            raise ValueError(
                f"group {i} of the loaded state has no list of parameters, 'params'. "
                f"{_USE_A_STATE_DICT}"
            )
        foreign = sorted(_NOT_OF_SGD & group.keys())
        if foreign and "second_order_lr" not in group:
            raise ValueError(
                f"group {i} of the loaded state has {', '.join(map(repr, foreign))}, so it is "
                f"another optimizer's. {_USE_A_STATE_DICT}. To go on with that optimizer, give it "
                "to sgdph.PartialHessian, which loads its state"
            )
        for key in _WHOLE_NUMBERS:
            value = group.get(key, 0)
            if not isinstance(value, Integral) or value < 0:
                raise ValueError(
                    f"{key!r} in group {i} of the loaded state must be a whole number from 0 up, "
                    f"got {value!r}. {_USE_A_STATE_DICT}"
                )


def _fit_entry(entry: Any, p: Tensor, is_newton: bool, name: str) -> dict[str, Any]:
    """Check the saved state of one parameter, and return it with its refresh count as a tensor."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"the loaded state of parameter {name} must be a dict, got {type(entry).__name__}. "
            f"{_USE_A_STATE_DICT}"
        )
    fitted: dict[str, Any] = {**entry}
    if fitted.get("momentum_buffer") is not None:
        _check_tensor(fitted["momentum_buffer"], "momentum_buffer", p, name)
    if not is_newton:
        return fitted
    present = [key for key in _AVERAGE if key in fitted]
    if len(present) == 1:
        (other,) = set(_AVERAGE) - set(present)
        raise ValueError(
            f"the loaded state of parameter {name} has {present[0]!r} without {other!r}, but the "
            f"curvature average needs both. {_USE_A_STATE_DICT}, or remove both to start a new "
            "average"
        )
    if present:
        _check_tensor(fitted["hessian"], "hessian", p, name)
        fitted["refreshes"] = _count(fitted["refreshes"], name)
    if TURN in fitted:
        turn = fitted[TURN]
        if not isinstance(turn, Tensor) or turn.shape != (3,) or turn.is_floating_point():
            raise ValueError(
                f"{TURN!r} in the loaded state of parameter {name} must be a tensor of three whole "
                f"numbers, got {turn!r}. {_USE_A_STATE_DICT}"
            )
    return fitted


def _check_tensor(value: Any, key: str, p: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{key!r} in the loaded state of parameter {name} must be a tensor, got "
            f"{type(value).__name__}. {_USE_A_STATE_DICT}"
        )
    if is_dtensor(value) and not is_dtensor(p):
        raise ValueError(
            f"{key!r} in the loaded state of parameter {name} is one rank's part of a tensor, but "
            "the parameter is not sharded. Load it with torch.distributed.checkpoint"
        )
    # While a state is loaded, a shard may have another shape.
    if value.shape != p.shape and not is_sharded(p):
        raise ValueError(
            f"{key!r} in the loaded state of parameter {name} has shape {tuple(value.shape)}, the "
            f"parameter {tuple(p.shape)}: the state belongs to another model, or to groups in "
            "another order"
        )


def _count(value: Any, name: str) -> Tensor:
    """Return the number of partial Hessians in an average; a plain number becomes a tensor."""
    if isinstance(value, Real):
        value = torch.tensor(float(value))
    # The value is checked because a negative one would change the sign of the average.
    if not isinstance(value, Tensor) or value.numel() != 1 or not 0 <= float(value) < math.inf:
        raise ValueError(
            f"'refreshes' in the loaded state of parameter {name} must be a number from 0 up, got "
            f"{value!r}. {_USE_A_STATE_DICT}"
        )
    return value.reshape(())


def complete_saved(saved: dict[str, Any], groups: Sequence[dict[str, Any]], cycle: Cycle) -> None:
    """Add roles and turns to a new state dict, in place.

    Args:
        saved: The state dict. The optimizer's own state is not changed.
        groups: The optimizer's parameter groups.
        cycle: The Newton parameters.
    """
    save_roles(saved["param_groups"], groups, cycle)
    turns = {id(p): turn for p, turn in zip(cycle.newton, cycle.turns(groups), strict=True)}
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(group["params"] for group in groups)
    for saved_id, p in zip(ids, params, strict=True):
        if id(p) in turns and saved_id in saved["state"]:
            saved["state"][saved_id] = {**saved["state"][saved_id], TURN: turns[id(p)]}


def complete_group(saved: dict[str, Any], current: Mapping[str, Any]) -> None:
    """Add settings that a saved group lacks from the group it is loaded into, in place.

    So the optimizer keeps its own values for settings that an older state, or one of
    ``torch.optim.SGD``, does not have.
    """
    for name in _SGD_ONLY:
        saved.pop(name, None)
    for name, value in current.items():
        saved.setdefault(name, value)


def restore_exactly(
    state: MutableMapping[Tensor, dict[str, Any]],
    groups: list[dict[str, Any]],
    saved: Mapping[str, Any],
) -> None:
    """Restore tensors of ``saved`` that ``Optimizer.load_state_dict`` has rounded or shared.

    It rounds every tensor to its parameter's dtype, so a bfloat16 parameter would lose its float32
    average. It shares the other tensors with the loaded state, so two optimizers would write into
    the same momentum.

    Args:
        state: The optimizer's state after loading, changed in place.
        groups: The optimizer's parameter groups.
        saved: The state dict that was loaded.
    """
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(group["params"] for group in groups)
    for saved_id, p in zip(ids, params, strict=True):
        for key, value in saved["state"].get(saved_id, {}).items():
            if not isinstance(value, Tensor):
                continue
            if key in EXACT_KEYS:
                # Counts keep their own dtype.
                dtype = curvature_dtype(p) if key == "hessian" else value.dtype
                device = torch.device("cpu") if key == TURN else p.device
                value = whole(value)
                state[p][key] = value.to(device, dtype, copy=True)
            elif is_dtensor(p) and key == "momentum_buffer" and not is_dtensor(value):
                state[p][key] = assembled(part_of_whole(state[p][key], p), p)
            elif state[p][key] is value:
                state[p][key] = value.clone()


def is_without_learning_rate(groups: Groups) -> bool:
    """Return whether all learning rates are 0: in a rehearsal, or a warm-up that begins at 0."""
    return all(bool(group.get("lr") == 0) for group in groups)


def is_without_backward(groups: Groups, newton: Iterable[Tensor]) -> bool:
    """Return whether all gradients exist and those of ``newton`` are zero, as in a rehearsal.

    Waits for the device.

    Args:
        groups: The parameter groups.
        newton: The Newton parameters.
    """
    trainable = (p for group in groups for p in group["params"] if p.requires_grad)
    if any(p.grad is None for p in trainable):
        return False
    gradients = [p.grad for p in newton if p.grad is not None]
    return all(not g.is_sparse and is_zero(g) for g in gradients)


def is_rehearsal(
    groups: Groups, newton: Sequence[Tensor], has_come: Callable[[Sequence[Tensor]], bool]
) -> bool:
    """Return whether a step of an optimizer without state is a rehearsal, only to create it.

    A rehearsal has learning rates of 0, no curvature, and gradients of zero. A warm-up that begins
    at a learning rate of 0 has curvature, even if a head of zeros makes its gradients zero. The
    gradients are checked last, so a step of training waits for the device only if it has no
    learning rate, no curvature and no state.

    Args:
        groups: The parameter groups.
        newton: The Newton parameters. Without any, no step is a rehearsal: an ordinary step then
            creates all the state.
        has_come: Returns whether curvature of any of the given parameters was requested from a
            loss.
    """
    if not newton or not is_without_learning_rate(groups) or has_come(newton):
        return False
    return is_without_backward(groups, newton)


def rehearse(groups: Groups, state: State, newton: Sequence[Tensor]) -> None:
    """Create the state that trainable parameters have in training, where it is missing."""
    for group in groups:
        for p in group["params"]:
            if group["momentum"] != 0 and p.requires_grad:
                state[p].setdefault("momentum_buffer", torch.zeros_like(p))
    complete_averages(state, (p for p in newton if p.requires_grad))


def complete_averages(state: State, newton: Iterable[Tensor]) -> None:
    """Create zero averages for Newton parameters that no partial Hessian has reached yet."""
    with torch.no_grad():
        for p in newton:
            start_average(p, state[p])
