"""Repeated runs of one network from the same state, in double precision if possible."""

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
from sgdph.autograd.graph import graph_nodes

SEED = 3


class Trial:
    """A network that can be run several times from the same state.

    Args:
        built: The network.
        dtype: Dtype of its weights and inputs.
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
        """Return a copy of the network, because a run changes statistics and caches."""
        return copy.deepcopy(self._model)

    def loss(self, model: nn.Module) -> Tensor:
        """Run a copy forward and return the loss, with the same random numbers each time."""
        seed_everything()
        with same_each_time(self.dtype):
            return self._loss(model, self._inputs)


def spread(model: nn.Module) -> None:
    """Add noise to parameters whose entries are all equal.

    Some networks start with a head or layer scales that are zero, or nearly zero. The product would
    then be zero, and errors in it would not be noticed.
    """
    seed_everything()
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() and (p == p.flatten()[0]).all():
                p.add_(torch.randn_like(p), alpha=0.1)


def seed_everything() -> None:
    """Seed every random generator that networks use."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  the masks of some networks are numpy's
    random.seed(SEED)


class _SameEachTime(TorchFunctionMode):
    """Makes a network compute the same with any attention kernel, and in double precision.

    Dropout draws its mask in memory order, which depends on the attention kernel before it. So its
    input is made contiguous. Some networks request float32 explicitly, because half precision would
    not suffice. In double precision, they get float64 instead.
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
    """Make ``dtype`` the default and fix dropout masks; if float64, it also replaces float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _SameEachTime(double=dtype == torch.float64):
            yield
    finally:
        torch.set_default_dtype(before)


def computes_in(loss: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a gradient of this dtype passes through the loss's graph."""
    return any(each.dtype == dtype for node in graph_nodes([loss]) for each in node._input_metadata)


def fused_attentions(loss: Tensor) -> int:
    """Count the fused attention operations in a loss's graph."""
    return sum(type(node).__name__.startswith("ScaledDotProduct") for node in graph_nodes([loss]))
