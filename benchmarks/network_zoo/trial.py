"""Runs of one network from the same state, in double precision where it can be had."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from network_zoo.network import Built

SEED = 3


class Trial:
    """A network that can be run several times from the same state.

    Args:
        built: The network.
        dtype: Of its weights and inputs.
    """

    def __init__(self, built: Built, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._model = built.model.train().to(dtype)
        spread(self._model)
        self._loss = built.loss
        self._inputs = tree_map_only(Tensor, self._converted, built.inputs)

    def _converted(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) if x.is_floating_point() else x

    def model(self) -> nn.Module:
        """Copy the network: a run changes statistics and caches."""
        return copy.deepcopy(self._model)

    def loss(self, model: nn.Module) -> Tensor:
        """Run a copy forward, with the same random numbers each time."""
        seed_everything()
        with same_each_time(self.dtype):
            return self._loss(model, self._inputs)


def spread(model: nn.Module) -> None:
    """Spread out parameters that start with equal entries.

    Some networks start with a head or with layer scales of zero, or nearly so: the product would be
    zero, and right whatever is wrong with it.
    """
    seed_everything()
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() and (p == p.flatten()[0]).all():
                p.add_(torch.randn_like(p), alpha=0.1)


def seed_everything() -> None:
    """Start every generator that networks draw from."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  the masks of some networks are numpy's
    random.seed(SEED)


class _SameEachTime(TorchFunctionMode):
    """Lets a network compute the same under any attention kernel, and in double precision.

    Dropout draws its mask in the order of memory, and that depends on the kernel of the attention
    before it. What asks for float32 by name, where half precision would not do, gets float64.
    """

    def __init__(self, double: bool) -> None:
        super().__init__()
        self.double = double

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (torch.dropout, nn.functional.dropout):
            args = (args[0].contiguous(), *args[1:])
        if self.double:
            func = Tensor.double if func is Tensor.float else func
            args = tuple(map(_doubled, args))
            given = {name: _doubled(value) for name, value in given.items()}
        return func(*args, **given)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextlib.contextmanager
def same_each_time(dtype: torch.dtype) -> Iterator[None]:
    """Let what asks for float32, or for no dtype, have this one; and dropout the same masks."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _SameEachTime(double=dtype == torch.float64):
            yield
    finally:
        torch.set_default_dtype(before)


def graph_nodes(loss: Tensor) -> Iterator[Any]:
    """Yield every node of a loss's graph once."""
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead.extend(following for following, _ in node.next_functions)
            yield node


def computes_in(loss: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether a gradient of this dtype passes through the loss's graph."""
    return any(each.dtype == dtype for node in graph_nodes(loss) for each in node._input_metadata)


def fused_attentions(loss: Tensor) -> int:
    """Count the fused attentions of a loss's graph."""
    return sum(type(node).__name__.startswith("ScaledDotProduct") for node in graph_nodes(loss))
