"""First-order optimizers that belong to a compound: only the compound may step or clear them.

Called directly, their ``step`` or ``zero_grad`` would miss the Newton parameters, which they no
longer hold. The marks are attributes of the optimizers, and are lost when these are copied or
pickled.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.optim.optimizer import Optimizer

_OWNED, _STEPPING = "_in_partial_hessian", "_stepped_by_partial_hessian"


def is_owned(optimizer: Optimizer) -> bool:
    """Return whether an optimizer belongs to a compound."""
    return bool(getattr(optimizer, _OWNED, False))


def own(optimizer: Optimizer) -> None:
    """Mark an optimizer as belonging to a compound."""
    if is_owned(optimizer):
        return
    setattr(optimizer, _OWNED, True)
    optimizer.register_step_pre_hook(_refuse_step)
    optimizer.zero_grad = partial(_zero_grad, optimizer)  # type: ignore[method-assign]


def step(optimizer: Optimizer) -> None:
    """Step an optimizer that belongs to a compound."""
    setattr(optimizer, _STEPPING, True)
    try:
        optimizer.step()
    finally:
        setattr(optimizer, _STEPPING, False)


def _refuse_step(optimizer: Optimizer, *_: Any) -> None:
    if not getattr(optimizer, _STEPPING, False):
        raise _belongs(optimizer, "step")


def _zero_grad(optimizer: Optimizer, *arguments: Any, **named: Any) -> None:
    if not getattr(optimizer, _STEPPING, False):
        raise _belongs(optimizer, "zero_grad")
    type(optimizer).zero_grad(optimizer, *arguments, **named)


def _belongs(optimizer: Optimizer, method: str) -> RuntimeError:
    return RuntimeError(
        f"{type(optimizer).__name__} belongs to a PartialHessian, which has taken over its Newton "
        f"parameters. Call {method}() of that PartialHessian"
    )
