"""Loading a state into an optimizer whose roles or groups differ, and states that are broken."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

import pytest
import torch
from small import assert_same_bits, bn_net, by_update, loss_of, train
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_state_dict
from user_warnings import warns_here

import sgdph


def two_parts(seed: int = 0) -> tuple[nn.Sequential, list[nn.Parameter], list[nn.Parameter]]:
    model = bn_net(seed=seed)
    return model, list(model[:2].parameters()), list(model[2:].parameters())


def built(first: Any, second: Any, *, later: bool) -> sgdph.SGDPH:
    if not later:
        return sgdph.SGDPH([{"params": first}, {"params": second}])
    optimizer = sgdph.SGDPH(first)
    optimizer.add_param_group({"params": second})
    return optimizer


@pytest.mark.parametrize("trained", [0, 4])
@pytest.mark.parametrize(("before", "after"), list(itertools.permutations([False, True])))
def test_exchanged_roles_raise_an_error(trained: int, before: bool, after: bool) -> None:
    """A group added later has no exception; of the first groups, the last parameter is one."""
    model, first, second = two_parts()
    optimizer = built(first, second, later=before)
    train(model, optimizer, range(trained))
    other = built(first, second, later=after)
    state = copy.deepcopy(other.state_dict())
    was, is_now = (r"1\.1", r"0\.3") if before else (r"0\.3", r"1\.1")
    with pytest.raises(
        ValueError,
        match=rf"{was} took Newton steps there.*{is_now} was first-order there.*add_param_group",
    ):
        other.load_state_dict(optimizer.state_dict())
    assert str(other.state_dict()) == str(state)
    # What the message recommends works.
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["channelwise"] = None
    other.load_state_dict(saved)
    train(model, other, range(trained, trained + 4))


@pytest.mark.parametrize("flag", [True, False])
def test_loading_into_the_opposite_flag_raises_an_error(flag: bool) -> None:
    model = bn_net()
    flagged = sgdph.SGDPH([{"params": [model[0].weight], "channelwise": flag}])
    other = sgdph.SGDPH([{"params": [model[0].weight], "channelwise": not flag}])
    with pytest.raises(ValueError, match=r"0\.0"):
        other.load_state_dict(flagged.state_dict())


def test_saving_stores_roles_and_keeps_the_channelwise_flag() -> None:
    optimizer = sgdph.SGDPH(bn_net().parameters())
    seen = []
    optimizer.register_state_dict_post_hook(lambda _, saved: seen.append(saved["param_groups"]))
    roles = optimizer.state_dict()["param_groups"][0]["channelwise"]
    assert roles == [False, True, True, True, False, False]
    assert seen[0][0]["channelwise"] == roles
    assert optimizer.param_groups[0]["channelwise"] is None


def test_loading_after_unfreezing_the_last_parameter_raises_an_error() -> None:
    # The exception is the last trainable parameter, so the resumed optimizer has another one.
    model = bn_net()
    model[4].bias.requires_grad_(False)
    optimizer = sgdph.SGDPH(model.named_parameters())
    model[4].bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"4\.bias took Newton steps there.*1\.bias was first"):
        sgdph.SGDPH(model.named_parameters()).load_state_dict(optimizer.state_dict())


def test_swapped_groups_of_one_role_raise_an_error_if_named() -> None:
    norms = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    groups = [
        {"params": [*norm.named_parameters(prefix=name)], "channelwise": True}
        for name, norm in zip("ab", norms, strict=True)
    ]
    optimizer = sgdph.SGDPH(copy.deepcopy(groups))
    other = sgdph.SGDPH(groups[::-1])
    with pytest.raises(ValueError, match=r"another order.*a\.weight.*same order"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("reordered", ["groups", "parameters"])
def test_torch_distributed_checkpoint_matches_by_name(reordered: str) -> None:
    def groups(model: nn.Sequential, order: int) -> list[dict[str, Any]]:
        return [
            {"params": [*model[:2].named_parameters()][::order]},
            {"params": [*model[2:].named_parameters()], "channelwise": False},
        ]

    model = bn_net()
    optimizer = sgdph.SGDPH(groups(model, 1))
    train(model, optimizer, range(4))
    saved = get_optimizer_state_dict(model, optimizer)
    twin = copy.deepcopy(model)
    order = groups(twin, -1 if reordered == "parameters" else 1)
    other = sgdph.SGDPH(order[::-1] if reordered == "groups" else order)
    if reordered == "parameters":
        # The rule for shapes excepts the last parameter, which is another one now.
        with pytest.raises(ValueError, match=r"0\.bias took Newton steps there.*1\.bias was first"):
            set_state_dict(twin, other, model_state_dict=twin.state_dict(), optim_state_dict=saved)
        return
    set_state_dict(twin, other, model_state_dict=twin.state_dict(), optim_state_dict=saved)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other.state[q][key])


def sgd_state(model: nn.Module, params: Any, **settings: Any) -> dict[str, Any]:
    sgd = torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9, **settings})
    for step in range(3):
        sgd.zero_grad()
        loss_of(model, step).backward()
        sgd.step()
    return sgd.state_dict()


def momenta(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Tensor]:
    return [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]


def split(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices only, as many scripts have it; another order than the model's."""
    named = [*model.named_parameters()]
    return [
        {"params": [(n, p) for n, p in named if p.ndim > 1], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in named if p.ndim <= 1][::-1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    "groups",
    [
        sgdph.param_groups,
        lambda model: sgdph.param_groups(model, 0.1, channelwise_weight_decay=0.0),
        lambda model: [{**g, "lr": 0.3} for g in sgdph.param_groups(model)[::-1]],
    ],
    ids=["two groups", "three groups", "changed and reversed"],
)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.filterwarnings("ignore:the loaded state has one weight_decay")
def test_a_state_of_sgd_over_the_model_loads_into_groups_by_role(groups: Any, named: bool) -> None:
    model = bn_net()
    params = model.named_parameters() if named else model.parameters()
    state = sgd_state(model, params, weight_decay=1e-3)
    optimizer = sgdph.SGDPH(groups(model))
    before = [(g["channelwise"], g["param_names"]) for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for i, kept in enumerate(momenta(optimizer, model)):
        assert torch.equal(kept, state["state"][i]["momentum_buffer"])
        assert kept is not state["state"][i]["momentum_buffer"]
    assert [(g["channelwise"], g["param_names"]) for g in optimizer.param_groups] == before
    for group in optimizer.param_groups:
        assert (group["lr"], group["weight_decay"], group["eps"]) == (0.05, 1e-3, 1e-4)
    # First-order parameters continue as with torch.optim.SGD, to the bit.
    twin = copy.deepcopy(model)
    sgd = torch.optim.SGD(twin.parameters(), lr=1.0)
    sgd.load_state_dict(state)
    optimizer.zero_grad()
    by_update(optimizer, loss_of(model, 3))
    loss_of(twin, 3).backward()
    optimizer.step()
    sgd.step()
    for i in (0, 4):
        assert torch.equal(model[i].weight, twin[i].weight)


def test_a_copied_optimizer_knows_the_models_order() -> None:
    model = bn_net()
    state = sgd_state(model, model.parameters())
    model, optimizer = copy.deepcopy((model, sgdph.SGDPH(sgdph.param_groups(model))))
    optimizer.load_state_dict(state)
    for i, kept in enumerate(momenta(optimizer, model)):
        assert torch.equal(kept, state["state"][i]["momentum_buffer"])


def test_parameters_are_matched_by_name_whatever_the_groups() -> None:
    model = bn_net()
    state = sgd_state(model, split(model))
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    optimizer.load_state_dict(state)
    for (name, _), kept in zip(model.named_parameters(), momenta(optimizer, model), strict=True):
        assert torch.equal(kept, state["state"][names.index(name)]["momentum_buffer"])
    # All Newton parameters come from one group, the others from two with different decays.
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.0, 0.0]
    # Also where the sizes of the groups are the same, and the order is not.
    optimizer = sgdph.SGDPH([*model.named_parameters()][::-1])
    optimizer.load_state_dict(sgd_state(model, model.named_parameters()))
    assert all(
        kept.shape == p.shape
        for kept, p in zip(momenta(optimizer, model), model.parameters(), strict=True)
    )


def test_loading_one_weight_decay_in_place_of_two_warns() -> None:
    model = bn_net()
    state = sgd_state(model, model.parameters(), weight_decay=1e-3)
    groups = sgdph.param_groups(model, 0.1, channelwise_weight_decay=0.0)
    with warns_here(r"one weight_decay .* 0\.001. It replaces 0\.0, 0\.1"):
        sgdph.SGDPH(groups).load_state_dict(state)


@pytest.mark.parametrize("case", ["no order", "some parameters", "two groups", "another model"])
def test_a_state_that_cannot_be_matched_raises_an_error(case: str) -> None:
    model = bn_net()
    groups = sgdph.param_groups(model)
    params: Any = list(model.parameters())
    if case == "no order":
        groups = [{k: v for k, v in g.items() if k != "positions"} for g in groups]
    elif case == "some parameters":
        params = params[:-1]
    elif case == "two groups":
        params = [{"params": params[:1]}, {"params": params[1:]}]
    state = sgd_state(model, params)
    if case == "another model":
        groups = sgdph.param_groups(
            nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
        )
    optimizer = sgdph.SGDPH(groups)
    before = str(optimizer.state_dict())
    message = "has shape" if case == "another model" else "unclear which.*named_parameters"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert str(optimizer.state_dict()) == before


def test_an_sgdph_state_over_other_groups_raises_an_error() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    other = sgdph.SGDPH(sgdph.param_groups(model, 0.1, channelwise_weight_decay=0.0))
    with pytest.raises(ValueError, match=r"2 groups of 3, 3 .*3 groups of 3, 2, 1 .*same order"):
        other.load_state_dict(optimizer.state_dict())


def test_a_state_of_sgd_over_param_groups_loads() -> None:
    """SGD keeps all keys of these groups, so its state loads as it is."""
    model = bn_net()
    state = sgd_state(model, sgdph.param_groups(model))
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    optimizer.load_state_dict(state)
    assert all("positions" not in group for group in optimizer.param_groups)
    train(model, optimizer, range(3))


SCALE = 2  # The index of 1.weight, a Newton parameter.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["state"][SCALE].pop("refreshes"), r"1\.weight has 'hessian' without 'refr"),
        (lambda s: s["state"][SCALE].pop("hessian"), r"1\.weight has 'refreshes' without 'hess"),
        (lambda s: s["state"][SCALE].update(hessian=[1.0] * 4), r"'hessian'.*1\.weight.*got list"),
        (lambda s: s["state"][SCALE].update(hessian=1.0), r"'hessian'.*1\.weight.*got float"),
        (lambda s: s["state"][SCALE].update(hessian=torch.ones(3)), r"'hessian'.*\(3,\).*\(4,\)"),
        (lambda s: s["state"][SCALE].update(refreshes="2"), r"'refreshes'.*1\.weight.*got '2'"),
        (lambda s: s["state"][SCALE].update(refreshes=None), r"'refreshes'.*1\.weight.*got None"),
        (lambda s: s["state"][SCALE].update(refreshes=-1), r"'refreshes'.*1\.weight.*from 0 up"),
        (lambda s: s["state"][SCALE].update(refreshes=torch.ones(2)), r"'refreshes'.*1\.weight"),
        (lambda s: s["state"][SCALE].update(refreshes=float("nan")), r"'refreshes'.*1\.weight"),
        (
            lambda s: s["state"][0].update(momentum_buffer=[0.0]),
            r"momentum_buffer.*0\.weight.*list",
        ),
        (lambda s: s["state"][0].update(momentum_buffer=0), r"momentum_buffer.*0\.weight.*int"),
        (lambda s: s["state"][0].update(momentum_buffer=torch.ones(4)), r"0\.weight has shape \(4"),
        (lambda s: s["state"].update({SCALE: torch.ones(4)}), r"1\.weight must be a dict"),
        (lambda s: s["param_groups"][0].pop("params"), "group 0 .*'params'"),
        (lambda s: s.pop("param_groups"), "lacks 'param_groups'"),
        (lambda s: s.pop("state"), "lacks 'state'"),
        (lambda s: s.clear(), "lacks 'state' and 'param_groups'; it has nothing"),
        (lambda s: s["param_groups"][0].update(step="3"), "'step' in group 0 .*whole number"),
        (lambda s: s["param_groups"][0].update(cursor=1.5), "'cursor' in group 0 .*whole number"),
        (lambda s: s["param_groups"][0].update(refreshes=None), "'refreshes' in group 0"),
        (lambda s: s["param_groups"][0].update(lr=None), "lr must be a number, got None"),
        (lambda s: s["param_groups"][0].update(eps="1e-4"), "eps must be a number, got '1e-4'"),
    ],
)
def test_a_broken_state_raises_an_error_and_changes_nothing(change: Any, message: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.named_parameters())
    train(model, optimizer, range(4))
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    twin, other = copy.deepcopy((model, optimizer))
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    train(model, optimizer, range(4, 8))
    train(twin, other, range(4, 8))
    assert_same_bits(model, twin)


@pytest.mark.parametrize("value", [None, [], "state"])
def test_a_state_that_is_not_a_dict_raises_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match=f"got {re.escape(type(value).__name__)}"):
        sgdph.SGDPH(bn_net().parameters()).load_state_dict(value)


@pytest.mark.parametrize("plain", [int, float])
def test_counts_that_are_plain_numbers_load(plain: type) -> None:
    """``torch.optim.Adam`` accepts a plain number as ``step``, too."""
    model = bn_net()
    optimizer = sgdph.SGDPH(model.named_parameters())
    train(model, optimizer, range(4))
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        if "refreshes" in entry:
            entry["refreshes"] = plain(entry["refreshes"])
    twin = copy.deepcopy(model)
    other = sgdph.SGDPH(twin.named_parameters())
    other.load_state_dict(saved)
    train(model, optimizer, range(4, 9))
    train(twin, other, range(4, 9))
    assert_same_bits(model, twin)
