"""A warning for functions that saved a tensor without the history that its derivative needs."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction

from sgdph.autograd.graph import (
    Node,
    Region,
    function_name,
    function_of,
    has_packed_tensors,
    is_leaf,
)
from sgdph.user_warning import warn_user

_warned: weakref.WeakSet[type] = weakref.WeakSet()


def warn_of_lost_history(node: Node, region: Region) -> None:
    """Warn once per Python function if its forward saved computed tensors without a history.

    A forward runs without gradients. Saved inputs and outputs have a history. A saved statistic, a
    gradient computed in advance, or a view of an input has none, so its derivative is lost. Torch
    does not show which saved tensors were inputs. So these may be right, and cause no warning:

    * tensors without a gradient, if there are no more of them than inputs without one; except those
      that are shaped like an input with a gradient and have no other references;
    * masks: tensors of more than two entries with at most two distinct values;
    * all tensors of a function if any went through a pack hook (checkpointed, moved).

    Args:
        node: A node of the region.
        region: The nodes between the loss and the parameters.
    """
    if not isinstance(node, BackwardCFunction) or function_of(node) in _warned:
        return
    saved = _saved_tensors(node)
    edges = region.edges(node)
    leaves = {id(child.variable) for child, _ in edges if child is not None and is_leaf(child)}
    # A view of an input requires a gradient, but has no graph back to the input.
    lost = [
        i
        for i, t in enumerate(saved)
        if t.requires_grad and t.grad_fn is None and id(t) not in leaves and _is_inexact(t)
    ]
    constants = [i for i, t in enumerate(saved) if not t.requires_grad]
    inexact = [i for i in constants if _is_inexact(saved[i])]
    if len(constants) <= sum(child is None for child, _ in edges):
        shapes = {
            tuple(child._input_metadata[place].shape) for child, place in edges if child is not None
        }
        inexact = [i for i in inexact if tuple(saved[i].shape) in shapes and not _is_held(saved, i)]
    candidates = lost + inexact
    if any(not _is_mask(saved[i]) for i in candidates):
        _warned.add(function_of(node))
        warn_user(
            f"{function_name(node)} saved tensors that its forward computed without a graph. If "
            "its backward uses them (a statistic, a precomputed gradient), the curvature is "
            "wrong. Run sgdph.check_curvature(closure, optimizer) once; if it raises, save inputs "
            "and outputs only, or use update_hessian(closure=...)",
        )


def _saved_tensors(node: Any) -> tuple[Tensor, ...]:
    if has_packed_tensors(node):
        return ()
    try:
        saved = node.saved_tensors
    except RuntimeError:
        # The graph was freed, or a saved tensor was changed. Taking the gradients raises the error.
        return ()
    kept = [t for t in (*saved, *_values(vars(node).values())) if isinstance(t, Tensor)]
    return tuple({id(t): t for t in kept}.values())


def _values(attributes: Iterable[Any]) -> Iterator[Any]:
    """Yield values, and the values inside lists, tuples and dicts."""
    for value in attributes:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _is_inexact(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _is_mask(tensor: Tensor) -> bool:
    if tensor.numel() <= 2 or tensor.layout is not torch.strided:
        return False
    values = tensor.detach().flatten()
    first = values[0]
    others = values[values != first]
    return others.numel() == 0 or bool((others == others[0]).all())


def _is_held(tensors: Sequence[Tensor], i: int) -> bool:
    """Return whether anything except the graph and ``tensors`` refers to the tensor."""
    return sys.getrefcount(tensors[i]) > _references_of_a_saved_tensor()


@cache
def _references_of_a_saved_tensor() -> int:
    with torch.enable_grad():
        output = _Saving.apply(torch.zeros((), requires_grad=True))
    tensors = _saved_tensors(output.grad_fn)
    return sys.getrefcount(tensors[0])


class _Saving(Function):
    """A function that saves a tensor without other references."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x + 1)
        return x + 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g
