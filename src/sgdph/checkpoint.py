"""Loading an optimizer's state without losing a bit, and from optimizers that know less."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, MutableMapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sgdph.algorithm import curvature_dtype
from sgdph.cycle import TURN

# Of a Newton parameter, and exactly as they were: never rounded to the parameter's own dtype.
EXACT_KEYS = ("hessian", "refreshes", TURN)

_SGD_ONLY = ("dampening", "nesterov", "differentiable", "fused")


def complete_group(saved: dict[str, Any], current: Mapping[str, Any]) -> None:
    """Fill what a saved group lacks from the group it is loaded into, in place.

    So an older state, or one of ``torch.optim.SGD``, keeps the settings it does not know.
    """
    ignored = [name for name in ("dampening", "nesterov") if saved.get(name)]
    if ignored:
        warnings.warn(
            f"the loaded state was trained with {' and '.join(ignored)}, which SGD-PH does not "
            "have; its momentum is kept, the setting is ignored",
            stacklevel=4,
        )
    for name in _SGD_ONLY:
        saved.pop(name, None)
    for name, value in current.items():
        saved.setdefault(name, value)


def restore_exactly(
    state: MutableMapping[Tensor, dict[str, Any]],
    groups: list[dict[str, Any]],
    saved: Mapping[str, Any],
) -> None:
    """Undo what ``Optimizer.load_state_dict`` did to the tensors of ``saved``.

    It rounds every tensor to its parameter's dtype, which would cost a bfloat16 parameter its
    float32 average, and shares the others with the state that was loaded, so that two optimizers
    would go on to write into one momentum.

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
                # A count stays what it is, whatever is counted.
                dtype = curvature_dtype(p) if key == "hessian" else value.dtype
                device = torch.device("cpu") if key == TURN else p.device
                state[p][key] = value.to(device, dtype, copy=True)
            elif state[p][key] is value:
                state[p][key] = value.clone()


def check_still_fits(p: Tensor, state: Mapping[str, Any], name: Callable[[Tensor], str]) -> None:
    """Check that a parameter is still what its state was made for.

    Raises:
        RuntimeError: Its shape, dtype or device has changed since.
    """
    buffer = state.get("momentum_buffer")
    average = state.get("hessian")
    for kept, dtype in ((buffer, p.dtype), (average, curvature_dtype(p))):
        if kept is None or (
            kept.shape == p.shape and kept.dtype == dtype and kept.device == p.device
        ):
            continue
        raise RuntimeError(
            f"parameter {name(p)} is now {tuple(p.shape)}, {p.dtype} on {p.device}, but the "
            f"optimizer's state for it is {tuple(kept.shape)}, {kept.dtype} on {kept.device}: it "
            "was moved or converted after training began. Call model.to(...) before the optimizer "
            "is built, or carry the state over: "
            "optimizer.load_state_dict(optimizer.state_dict())"
        )
