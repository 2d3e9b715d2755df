"""Optimizers that cannot be the first-order half of PartialHessian raise an error that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small import bn_net
from torch import nn

import sgdph

UNSUITABLE: dict[str, tuple[str, Callable[[Any, nn.Module], object], str]] = {
    "lbfgs": ("torch.optim.LBFGS", lambda cls, m: cls(m.parameters()), "needs a closure"),
    "alig": ("pytorch_optimizer.AliG", lambda cls, m: cls(m.parameters()), "needs a closure"),
    "adahessian": (
        "pytorch_optimizer.AdaHessian",
        lambda cls, m: cls(m.parameters()),
        "create_graph",
    ),
    "sophia": ("pytorch_optimizer.SophiaH", lambda cls, m: cls(m.parameters()), "create_graph"),
    "timm-adahessian": ("timm.optim.Adahessian", lambda cls, m: cls(m.parameters()), "create_gr"),
    "lomo": ("pytorch_optimizer.LOMO", lambda cls, m: cls(m), "during the backward"),
    "sam": (
        "pytorch_optimizer.SAM",
        lambda cls, m: cls(m.parameters(), torch.optim.SGD),
        "wraps another optimizer.*wrap the PartialHessian",
    ),
    "lookahead": (
        "pytorch_optimizer.Lookahead",
        lambda cls, m: cls(torch.optim.SGD(m.parameters())),
        "wraps another optimizer",
    ),
    "timm-lookahead": (
        "timm.optim.Lookahead",
        lambda cls, m: cls(torch.optim.SGD(m.parameters())),
        "wraps another optimizer",
    ),
    "sgdph": ("sgdph.SGDPH", lambda cls, m: cls(m.parameters()), "uses curvature itself"),
    "schedule-free wrapper": (
        "schedulefree.ScheduleFreeWrapper",
        lambda cls, m: cls(torch.optim.SGD(m.parameters())),
        "must be a torch.optim.Optimizer, or several, got ScheduleFreeWrapper",
    ),
    "class": ("torch.optim.AdamW", lambda cls, m: cls, "or several, got the class AdamW"),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_an_unsuitable_optimizer_raises_an_error_that_says_why(name: str) -> None:
    path, make, reason = UNSUITABLE[name]
    module, _, kind = path.rpartition(".")
    model = bn_net()
    unsuitable: Any = make(getattr(pytest.importorskip(module), kind), model)
    held = [len(group["params"]) for group in getattr(unsuitable, "param_groups", ())]
    with pytest.raises((ValueError, TypeError), match=reason):
        sgdph.PartialHessian(unsuitable, sgdph.param_groups(model))
    # No parameter was taken over.
    assert held == [len(group["params"]) for group in getattr(unsuitable, "param_groups", ())]


def test_zero_redundancy_optimizer_raises_value_error() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = bn_net()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW)
        with pytest.raises(ValueError, match="splits the parameters over the ranks"):
            sgdph.PartialHessian(zero, sgdph.param_groups(model))
    finally:
        dist.destroy_process_group()
