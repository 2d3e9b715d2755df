"""``torch.distributed.checkpoint``: a resumed PartialHessian run equals the uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from small import assert_same_bits, bn_net, train
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.optim.lr_scheduler import CosineAnnealingLR

import sgdph

NEWTON: dict[str, Any] = {"lr": 0.05, "weight_decay": 1e-2, "second_order_lr": 1e-2, "eps": 1e-2}


def over_adamw(model: nn.Module) -> sgdph.PartialHessian:
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return sgdph.PartialHessian(adamw, sgdph.param_groups(model), **NEWTON)


def over_an_emptied_group(model: nn.Module) -> sgdph.PartialHessian:
    """The Newton parameters are in a group of their own, without decay."""
    newton = [model[0].bias, model[1].weight, model[1].bias]
    first = [model[0].weight, model[4].weight, model[4].bias]
    groups = [{"params": newton, "weight_decay": 0.0}, {"params": first, "weight_decay": 0.1}]
    return sgdph.PartialHessian(torch.optim.AdamW(groups, lr=3e-3), model.parameters(), **NEWTON)


def over_first_order_groups(model: nn.Module) -> sgdph.PartialHessian:
    """AdamW never gets the Newton parameters, so none of its groups is emptied."""
    groups = [group for group in sgdph.param_groups(model) if not group["channelwise"]]
    return sgdph.PartialHessian(torch.optim.AdamW(groups), sgdph.param_groups(model), **NEWTON)


def over_two(model: nn.Module) -> sgdph.PartialHessian:
    body, head = torch.optim.AdamW([model[0].weight]), torch.optim.RMSprop(model[4].parameters())
    return sgdph.PartialHessian([body, head], sgdph.param_groups(model), **NEWTON)


WHOLE = StateDictOptions()
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
# Torch cannot load a flattened state if a group has no parameters.
CASES = [(WHOLE, over_an_emptied_group)] + [
    (options, build)
    for options in (WHOLE, FLAT, FULL)
    for build in (over_adamw, over_first_order_groups, over_two)
]


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize(("options", "build"), CASES)
@pytest.mark.parametrize("steps", [0, 5])
def test_resuming_a_distributed_checkpoint_gives_the_same_bits(
    options: StateDictOptions, build: Any, steps: int, tmp_path: Path
) -> None:
    whole, resumed = bn_net(), bn_net(seed=1)
    optimizer, other = build(whole), build(resumed)
    for each in (optimizer, other):
        CosineAnnealingLR(each, T_max=7)
    train(whole, optimizer, range(steps))
    names = ("model_state_dict", "optim_state_dict")
    saved = dict(zip(names, get_state_dict(whole, optimizer, options=options), strict=True))
    dcp.save(saved, checkpoint_id=tmp_path)
    saved = dict(zip(names, get_state_dict(resumed, other, options=options), strict=True))
    dcp.load(saved, checkpoint_id=tmp_path)
    set_state_dict(resumed, other, **saved, options=options)
    assert other.param_groups[-1]["step"] == steps
    train(whole, optimizer, range(steps, steps + 7))
    train(resumed, other, range(steps, steps + 7))
    assert_same_bits(whole, resumed)


@pytest.mark.parametrize("options", [WHOLE, FLAT])
def test_resuming_the_distributed_state_of_the_optimizer_alone(options: StateDictOptions) -> None:
    whole = bn_net()
    optimizer = over_adamw(whole)
    train(whole, optimizer, range(5))
    saved = get_optimizer_state_dict(whole, optimizer, options=options)
    resumed = bn_net()
    resumed.load_state_dict(whole.state_dict())
    other = over_adamw(resumed)
    set_optimizer_state_dict(resumed, other, optim_state_dict=saved, options=options)
    train(whole, optimizer, range(5, 12))
    train(resumed, other, range(5, 12))
    assert_same_bits(whole, resumed)


def test_getting_a_distributed_state_is_not_a_training_step() -> None:
    asked, plain = bn_net(), bn_net()
    optimizer, other = over_two(asked), over_two(plain)
    get_optimizer_state_dict(asked, optimizer)
    assert optimizer.param_groups[-1]["step"] == 0
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-2, 0.05]
    # Optimizers like Adam count it as a step, also without PartialHessian.
    assert optimizer.state[asked[0].weight]["step"] == 1
    for p in (asked[0].weight, *asked[4].parameters()):
        optimizer.state[p]["step"] -= 1
    train(asked, optimizer, range(4))
    train(plain, other, range(4))
    assert_same_bits(asked, plain)
