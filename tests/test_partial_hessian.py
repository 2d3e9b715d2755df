"""PartialHessian: SGDPH's steps to the bit, one optimizer from outside, errors for bad input."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small import WAYS, assert_same_bits, bn_net, loss_of, stored, train
from torch import nn
from user_warnings import warns_here

import sgdph

SETTINGS: list[dict[str, Any]] = [
    {},
    {"estimator": "hutchinson", "seed": 3, "hessian_interval": 3},
    {"estimator": "hutchinson", "refresh": "all", "hessian_momentum": 0.99},
    {"estimator": "exact", "refresh": "all", "eps": 1e-2, "second_order_lr": 1e-2},
    {"momentum": 0.0, "hessian_momentum": 0.0},
    {"foreach": True, "weight_decay": 1e-2},
    {"maximize": True, "lr": 1e-4},
]
# Settings of the first-order half: another one with each way to take curvature.
FIRST_ORDER: dict[str, dict[str, Any]] = {
    "update_hessian": {},
    "backward": {"nesterov": True},
    "create_graph": {"dampening": 0.3},
}
OF_SGD = ("momentum", "weight_decay", "maximize", "foreach")


def over_sgd(model: nn.Module, by_role: bool = True, **settings: Any) -> sgdph.PartialHessian:
    """The PartialHessian that equals SGDPH with the same settings."""
    settings = {"lr": 0.05, "momentum": 0.9, **settings}
    first = {name: settings.pop(name) for name in ("nesterov", "dampening") if name in settings}
    shared = {name: settings[name] for name in ("lr", *OF_SGD) if name in settings}
    sgd = torch.optim.SGD(model.parameters(), **shared, **first)
    params = sgdph.param_groups(model) if by_role else model.parameters()
    return sgdph.PartialHessian(sgd, params, **settings)


def over_adamw(model: nn.Module, **settings: Any) -> sgdph.PartialHessian:
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return sgdph.PartialHessian(adamw, sgdph.param_groups(model), lr=0.05, **settings)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_over_sgd_it_equals_sgdph_to_the_bit_also_when_resumed(
    way: str, settings: dict[str, Any]
) -> None:
    first = {} if settings.get("momentum") == 0 else FIRST_ORDER[way]
    known, model = bn_net(), bn_net()
    settings = {"lr": 0.05, **settings}
    sgdph_ = sgdph.SGDPH(sgdph.param_groups(known), **settings, **first)
    train(known, sgdph_, range(100), WAYS[way])
    optimizer = over_sgd(model, **settings, **first)
    train(model, optimizer, range(47), WAYS[way])
    resumed = over_sgd(model, lr=9.0)
    resumed.load_state_dict(stored(optimizer.state_dict()))
    train(model, resumed, range(47, 80), WAYS[way])
    model, unpickled = pickle.loads(pickle.dumps((model, resumed)))
    train(model, unpickled, range(80, 100), WAYS[way])
    assert_same_bits(known, model)


def test_unflagged_and_named_parameters_go_by_shape_as_in_sgdph() -> None:
    known, model, named = bn_net(), bn_net(), bn_net()
    train(known, sgdph.SGDPH(known.parameters(), lr=0.05), range(8))
    train(model, over_sgd(model, by_role=False), range(8))
    sgd = torch.optim.SGD(named.named_parameters(), lr=0.05, momentum=0.9)
    optimizer = sgdph.PartialHessian(sgd, named.named_parameters(), lr=0.05)
    train(named, optimizer, range(8))
    assert_same_bits(known, model)
    assert_same_bits(known, named)
    assert list(optimizer.multipliers()) == ["0.bias", "1.weight", "1.bias"]
    assert [g["param_names"] for g in optimizer.param_groups] == [
        ["0.weight", "4.weight", "4.bias"],
        ["0.bias", "1.weight", "1.bias"],
    ]


def test_groups_and_state_are_those_of_the_inner_optimizers() -> None:
    model = bn_net()
    kernel, head = model[0].weight, [model[4].weight, model[4].bias]
    norms = [model[0].bias, *model[1].parameters()]
    muon = torch.optim.SGD([{"params": [kernel]}, {"params": norms}], lr=0.1)
    adamw = torch.optim.AdamW(head, lr=1e-3)
    optimizer = sgdph.PartialHessian([muon, adamw], sgdph.param_groups(model), lr=0.05)
    assert optimizer.first_order == (muon, adamw)

    def check_links() -> None:
        groups = optimizer.param_groups
        inner = [*muon.param_groups, *adamw.param_groups]
        assert [id(g) for g in groups[:3]] == [id(g) for g in inner]
        assert [len(g["params"]) for g in groups] == [1, 0, 2, 3]

    check_links()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    train(model, optimizer, range(4))
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05, 5e-4, 0.025]
    assert adamw.param_groups[0]["lr"] == 5e-4
    assert optimizer.state[head[0]] is adamw.state[head[0]]
    assert "hessian" in optimizer.state[norms[0]]
    assert set(optimizer.state) == {*head, *norms}
    assert len(optimizer.state) == 5
    optimizer.load_state_dict(optimizer.state_dict())
    check_links()
    assert adamw.param_groups[0]["lr"] == 5e-4
    twin, copied = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(4, 8))
    train(twin, copied, range(4, 8))
    assert_same_bits(model, twin)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("over", ["model", "names", "first_order"])
def test_loading_the_state_of_a_bare_optimizer_is_a_warm_start(over: str, as_list: bool) -> None:
    model = bn_net()
    bare_model = copy.deepcopy(model)
    groups = sgdph.param_groups(bare_model)
    first = [p for g in groups if not g["channelwise"] for p in g["params"]]
    params = {
        "model": bare_model.parameters(),
        "names": bare_model.named_parameters(),
        "first_order": first,
    }[over]
    bare = torch.optim.AdamW(params, lr=1e-2)
    for step in range(3):
        bare.zero_grad()
        loss_of(bare_model, step).backward()
        bare.step()
    model.load_state_dict(bare_model.state_dict())
    if over == "first_order":
        mine = [p for g in sgdph.param_groups(model) if not g["channelwise"] for p in g["params"]]
        adamw = torch.optim.AdamW(mine, lr=9.0)
    else:
        named = over == "names"
        adamw = torch.optim.AdamW(model.named_parameters() if named else model.parameters(), lr=9.0)
    optimizer = sgdph.PartialHessian(adamw, sgdph.param_groups(model), lr=0.05)
    saved = stored(bare.state_dict())
    optimizer.load_state_dict([saved] if as_list else saved)
    names = dict(model.named_parameters())
    newton = set(optimizer.newton_parameters)
    for name, p in bare_model.named_parameters():
        mine = names[name]
        if mine in newton:
            assert "exp_avg" not in optimizer.state.get(mine, {})
        else:
            assert torch.equal(optimizer.state[mine]["exp_avg"], bare.state[p]["exp_avg"])
            kept = [entry["exp_avg"] for entry in saved["state"].values()]
            assert not any(optimizer.state[mine]["exp_avg"] is each for each in kept)
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert optimizer.param_groups[-1]["lr"] == 0.05
    train(model, optimizer, range(3, 6))


def test_loading_shares_no_memory_and_a_bad_state_changes_nothing() -> None:
    model = bn_net()
    optimizer = over_adamw(model)
    train(model, optimizer, range(5))
    saved = optimizer.state_dict()
    twin_model = copy.deepcopy(model)
    twin = over_adamw(twin_model)
    twin.load_state_dict(saved)
    before = copy.deepcopy(saved)
    train(twin_model, twin, range(5, 8))
    assert str(saved) == str(before)
    for change, words in (
        (lambda s: s["param_groups"].insert(0, s["param_groups"][0]), "other groups"),
        (lambda s: s["param_groups"][-1].update(first_order=["Lion"]), "Lion"),
        (lambda s: s["param_groups"][-1].update(eps=0.0), "eps"),
        (lambda s: s["param_groups"][0].update(params=[0]), "size"),
        (lambda s: s["state"][4].update(hessian=torch.zeros(9)), "shape"),
        (lambda s: s.pop("state"), "lacks 'state'"),
    ):
        broken = copy.deepcopy(saved)
        change(broken)
        other_model, other = copy.deepcopy((model, optimizer))
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(broken)
        assert str(other.state_dict()) == str(before)
        train(other_model, other, range(5, 8))
        assert_same_bits(other_model, twin_model)


def test_states_of_the_wrong_kind_or_number_raise_errors() -> None:
    model = bn_net()
    optimizer = over_adamw(model)
    of_sgdph = sgdph.SGDPH(sgdph.param_groups(model)).state_dict()
    with pytest.raises(ValueError, match="SGDPH keeps its first-order half"):
        optimizer.load_state_dict(of_sgdph)
    bare = torch.optim.AdamW(bn_net().parameters()).state_dict()
    with pytest.raises(ValueError, match="got 2 states for 1"):
        optimizer.load_state_dict([bare, bare])
    with pytest.raises(ValueError, match="same parameters"):
        optimizer.load_state_dict(torch.optim.AdamW([model[0].weight]).state_dict())
    with pytest.raises(TypeError, match="got int"):
        optimizer.load_state_dict(3)
    pair = sgdph.PartialHessian(
        [torch.optim.SGD([model[0].weight]), torch.optim.AdamW(model[4].parameters())],
        sgdph.param_groups(model),
    )
    with pytest.raises(ValueError, match="got 1 state for 2"):
        pair.load_state_dict(bare)


@pytest.mark.parametrize("prefix", ["", "module", None], ids=["plain", "of DDP", "unnamed"])
def test_a_state_with_named_parameters_in_another_order_raises_an_error(prefix: str | None) -> None:
    """Torch's optimizers go by position, so a layer would get the moments of another."""

    def build(names: str, prefix: str | None = prefix) -> sgdph.PartialHessian:
        layers = {name: nn.Linear(3, 3, bias=False) for name in names}
        model = nn.ModuleDict({**layers, "norm": nn.LayerNorm(3)})
        params = model.parameters() if prefix is None else model.named_parameters(prefix)
        return sgdph.PartialHessian(torch.optim.AdamW(params), sgdph.param_groups(model))

    saved = build("ab", None if prefix is None else "").state_dict()
    build("ab").load_state_dict(saved)
    other = build("ba")
    if prefix is None:
        other.load_state_dict(saved)
        return
    with pytest.raises(ValueError, match=r"AdamW in another order \(a\.weight, b\.weight\)"):
        other.load_state_dict(saved)


def test_a_group_added_later_is_last_and_split_between_the_halves() -> None:
    model = bn_net()
    optimizer = over_adamw(model)
    train(model, optimizer, range(4))
    extra = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    whole = nn.Sequential(*model, extra)
    group = {"params": list(extra.parameters()), "lr": 0.3, "betas": (0.5, 0.9), "amsgrad": True}
    optimizer.add_param_group(group)
    adamw = optimizer.first_order[0]
    first, newton = optimizer.param_groups[2:]
    assert adamw.param_groups[1] is first
    assert first["params"] == [extra[0].weight]
    assert newton["params"] == [extra[0].bias, *extra[1].parameters()]
    assert (first["betas"], first["lr"], first["amsgrad"]) == ((0.5, 0.9), 0.3, True)
    assert (newton["lr"], newton["eps"]) == (0.3, 1e-4)
    assert "estimator" not in first
    assert "betas" not in newton
    assert set(extra[1].parameters()) < set(optimizer.newton_parameters)
    train(whole, optimizer, range(4, 9))
    twin = copy.deepcopy(whole)
    again = over_adamw(twin[:5])
    again.add_param_group({"params": list(twin[5].parameters()), "lr": 0.3})
    again.load_state_dict(stored(optimizer.state_dict()))
    train(whole, optimizer, range(9, 15))
    train(twin, again, range(9, 15))
    assert_same_bits(whole, twin)


@pytest.mark.parametrize("names", ["nowhere", "in the optimizer", "in the group", "everywhere"])
def test_a_group_added_later_has_names_if_the_other_groups_do(names: str) -> None:
    model, extra = bn_net(), nn.Linear(3, 3)
    named = names in ("in the optimizer", "everywhere")
    adamw = torch.optim.AdamW(model.named_parameters() if named else model.parameters())
    optimizer = sgdph.PartialHessian(adamw, sgdph.param_groups(model))
    later = sgdph.param_groups(extra)[0] if names in ("in the group", "everywhere") else None
    optimizer.add_param_group(later or {"params": list(extra.parameters())})
    assert all("param_names" in group for group in adamw.param_groups) is named
    assert all("param_names" in group for group in optimizer.param_groups[1::2])
    train(model, optimizer, range(2))


def test_a_group_that_raises_an_error_is_not_added_to_either_half() -> None:
    model, extra = bn_net(), nn.Linear(3, 3)
    optimizer = over_adamw(model)
    before = str(optimizer)
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"params": [extra.bias], "eps": -1.0}, ValueError, "eps"),
        ({"params": extra.parameters(), "weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"params": extra.parameters(), "eps": 1e-3}, ValueError, "one group for each"),
        ({"params": [3]}, TypeError, "got 3"),
        (
            {"params": extra.parameters(), "estimator": "exact"},
            ValueError,
            "the same in all groups",
        ),
        ({"params": model[4].parameters()}, ValueError, "more than one"),
        ({"params": [model[0].bias]}, ValueError, "more than one"),
        ({"params": set(extra.parameters())}, TypeError, "order"),
    ]
    for group, error, words in refused:
        with pytest.raises(error, match=words):
            optimizer.add_param_group(group)
        assert str(optimizer) == before
    two = sgdph.PartialHessian(
        [torch.optim.SGD([model[0].weight]), torch.optim.AdamW(model[4].parameters())],
        sgdph.param_groups(model),
    )
    two.add_param_group({"params": [extra.bias]})
    with pytest.raises(ValueError, match="2 first-order optimizers"):
        two.add_param_group({"params": [extra.weight]})
    train(model, optimizer, range(3))


def test_bad_arguments_raise_errors_and_take_no_parameters() -> None:
    model = bn_net()
    kernel, head = model[0].weight, list(model[4].parameters())
    adamw = torch.optim.AdamW(model.parameters())
    groups = sgdph.param_groups(model)
    cases: list[tuple[Any, Any, str]] = [
        ([adamw, torch.optim.SGD([kernel])], groups, "also in another"),
        ([adamw, adamw], groups, "twice"),
        ([], groups, "got none"),
        (torch.optim.SGD([kernel]), groups, r"4\.weight, 4\.bias"),
        (torch.optim.LBFGS(model.parameters()), groups, "closure"),
        (sgdph.SGDPH(model.parameters()), groups, "uses curvature itself"),
        (adamw, adamw.param_groups, "once for each"),
        (adamw, [{"params": head, "channelwise": True, "eps": -1.0}], "eps"),
    ]
    for first_order, params, words in cases:
        with pytest.raises(ValueError, match=words):
            sgdph.PartialHessian(first_order, params)
    wrong: list[tuple[Any, str]] = [
        ([model], "Sequential"),
        (torch.optim.SGD, "the class SGD"),
        (groups, "dict"),
    ]
    for first_order, found in wrong:
        with pytest.raises(TypeError, match=f"got {found}"):
            sgdph.PartialHessian(first_order, groups)
    assert len(adamw.param_groups[0]["params"]) == 6


def test_frozen_parameters_need_no_optimizer_and_unused_settings_warn() -> None:
    model = bn_net()
    model[0].weight.requires_grad_(False)
    sgd = torch.optim.SGD(model[4].parameters(), lr=0.1, weight_decay=1e-4)
    with warns_here(r"weight_decay=0\.1 \(there 0\.0001\)"):
        optimizer = sgdph.PartialHessian(sgd, sgdph.param_groups(model, weight_decay=0.1))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-4, 0.1]
    train(model, optimizer, range(3))


def test_replaced_groups_of_an_inner_optimizer_raise_an_error() -> None:
    model = bn_net()
    optimizer = over_adamw(model)
    train(model, optimizer, range(2))
    adamw = optimizer.first_order[0]
    adamw.load_state_dict(adamw.state_dict())
    loss = loss_of(model)
    for call in (lambda: optimizer.backward(loss), optimizer.step):
        with pytest.raises(RuntimeError, match="call those of PartialHessian"):
            call()


def test_diagnostics_accept_a_partial_hessian() -> None:
    model = bn_net()
    optimizer = over_adamw(model, refresh="all")
    train(model, optimizer, range(3))
    model.eval()
    assert set(sgdph.check_curvature(lambda: loss_of(model), optimizer)) == {
        "0.bias",
        "1.weight",
        "1.bias",
    }
    assert optimizer.multiplier_statistics()["1.bias"].refreshes == 3


GROUPINGS: dict[str, Any] = {
    "bare": lambda model: list(model.parameters()),
    "named": lambda model: list(model.named_parameters()),
    "by role": sgdph.param_groups,
    "first-order": lambda model: [g for g in sgdph.param_groups(model) if not g["channelwise"]],
    "two": lambda model: [{"params": model[0].parameters()}, {"params": model[1:].parameters()}],
}


@pytest.mark.parametrize("now", GROUPINGS)
@pytest.mark.parametrize("then", GROUPINGS)
def test_a_warm_start_matches_each_parameter_or_raises_an_error(then: str, now: str) -> None:
    model = bn_net()
    bare = torch.optim.AdamW(GROUPINGS[then](model), lr=1e-2)
    loss_of(model).backward()
    bare.step()
    moments = {id(p): bare.state[p]["exp_avg"] for p in bare.state}
    adamw = torch.optim.AdamW(GROUPINGS[now](model), lr=9.0)
    optimizer = sgdph.PartialHessian(adamw, sgdph.param_groups(model))
    # Without names and without the model's order, parameters cannot be matched.
    unknown = {"two": {"bare", "named", "by role", "first-order"}, "by role": {"bare", "two"}}
    unknown["first-order"] = {"two"}
    if now in unknown.get(then, ()):
        with pytest.raises(ValueError, match="same parameters"):
            optimizer.load_state_dict(bare.state_dict())
        return
    optimizer.load_state_dict(bare.state_dict())
    for p in [model[0].weight, *model[4].parameters()]:
        assert torch.equal(optimizer.state[p]["exp_avg"], moments[id(p)])
    assert all(g["lr"] == 1e-2 for g in adamw.param_groups if g["params"])
    model.zero_grad()
    train(model, optimizer, range(2))


def test_a_state_of_another_kind_of_optimizer_raises_an_error() -> None:
    model = bn_net()
    sgd = torch.optim.SGD(model.parameters(), momentum=0.9)
    loss_of(model).backward()
    sgd.step()
    with pytest.raises(ValueError, match="another kind than AdamW: its groups have dampening"):
        over_adamw(bn_net()).load_state_dict(sgd.state_dict())


def test_using_an_inner_optimizer_alone_or_twice_raises_an_error() -> None:
    model = bn_net()
    optimizer = over_adamw(model)
    (adamw,) = optimizer.first_order
    train(model, optimizer, range(2))
    with pytest.raises(RuntimeError, match=r"Call step\(\) of that PartialHessian"):
        adamw.step()
    with pytest.raises(RuntimeError, match=r"Call zero_grad\(\) of that PartialHessian"):
        adamw.zero_grad()
    with pytest.raises(ValueError, match="already belongs to another PartialHessian"):
        sgdph.PartialHessian(adamw, sgdph.param_groups(model))
    twin, copied = copy.deepcopy((model, optimizer))
    with pytest.raises(RuntimeError, match=r"Call step\(\)"):
        copied.first_order[0].step()
    train(twin, copied, range(2, 4))


@pytest.mark.parametrize("build", [over_adamw, over_sgd])
def test_a_loss_that_is_passed_twice_counts_once(build: Any) -> None:
    model = bn_net()
    optimizer = build(model, refresh="all")
    twin, other = copy.deepcopy((model, optimizer))
    loss = loss_of(model)
    optimizer.update_hessian(loss)
    optimizer.backward(loss)
    optimizer.step()
    train(twin, other, range(1))
    for name, multiplier in optimizer.multipliers().items():
        assert torch.equal(multiplier, other.multipliers()[name])


def test_two_losses_of_one_output_both_count() -> None:
    model = bn_net()
    optimizer = over_adamw(model, refresh="all")
    twin, other = copy.deepcopy((model, optimizer))
    output = loss_of(model)
    first, second = output * 0.25, output * 0.75
    optimizer.update_hessian(first)
    optimizer.update_hessian(second)
    (first + second).backward()
    optimizer.step()
    train(twin, other, range(1))
    for name, multiplier in optimizer.multipliers().items():
        torch.testing.assert_close(multiplier, other.multipliers()[name], rtol=1e-3, atol=0)


def test_unfreezing_a_parameter_that_no_optimizer_has_warns() -> None:
    model = bn_net()
    model[0].weight.requires_grad_(False)
    adamw = torch.optim.AdamW(model[4].parameters())
    optimizer = sgdph.PartialHessian(adamw, sgdph.param_groups(model))
    train(model, optimizer, range(2))
    model[0].weight.requires_grad_(True)
    with warns_here(r"parameter 0\.weight was frozen when"):
        train(model, optimizer, range(2, 4))
    optimizer.add_param_group({"params": [model[0].weight]})
    before = model[0].weight.detach().clone()
    train(model, optimizer, range(4, 6))
    assert not torch.equal(before, model[0].weight)


def test_opposed_halves_raise_an_error_and_an_empty_half_warns() -> None:
    model = bn_net()
    adamw = torch.optim.AdamW(model.parameters(), maximize=True)
    with pytest.raises(ValueError, match="maximize is False for the Newton steps and True"):
        sgdph.PartialHessian(adamw, sgdph.param_groups(model))
    with warns_here("no Newton parameter"):
        sgdph.PartialHessian(adamw, [model[1].weight], maximize=True)


def test_a_first_order_step_that_fails_keeps_the_curvature() -> None:
    model = bn_net()
    optimizer = over_adamw(model, refresh="all")
    optimizer.backward(loss_of(model))
    (adamw,) = optimizer.first_order
    fails = adamw.register_step_pre_hook(lambda *_: (_ for _ in ()).throw(OSError("full")))
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            optimizer.step()
    fails.remove()
    optimizer.step()
    assert {s.refreshes for s in optimizer.multiplier_statistics().values()} == {1}


def test_assigned_groups_go_to_the_optimizers_that_own_them() -> None:
    model = bn_net()
    adamw = torch.optim.AdamW(
        [
            {"params": model[1].parameters()},
            {"params": model[0].parameters()},
            {"params": model[4].parameters()},
        ]
    )
    optimizer = sgdph.PartialHessian(adamw, sgdph.param_groups(model))
    train(model, optimizer, range(2))
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    assert [len(group["params"]) for group in adamw.param_groups] == [1, 2]
    train(model, optimizer, range(2, 4))
    with pytest.raises(ValueError, match="holds Newton parameters"):
        optimizer.param_groups = optimizer.param_groups[:1]
    train(model, optimizer, range(4, 6))


def test_reading_state_makes_no_entry_and_assigning_replaces_it_all() -> None:
    model = bn_net()
    optimizer = over_adamw(model)
    p, q = model[0].weight, model[1].weight
    assert optimizer.state.get(p) is None
    assert optimizer.state.pop(p, 3) == 3
    assert p not in optimizer.state
    assert optimizer.state.setdefault(p, {"a": 1}) == {"a": 1}
    optimizer.state = {p: {"b": 2}, q: {"c": 3}}
    assert optimizer.first_order[0].state == {p: {"b": 2}}
    assert dict(optimizer.state) == {p: {"b": 2}, q: {"c": 3}}


def test_an_older_bad_state_raises_an_error_and_changes_nothing() -> None:
    model = bn_net()
    optimizer = over_adamw(model)
    train(model, optimizer, range(3))
    old = copy.deepcopy(optimizer.state_dict())
    old["param_groups"][-1]["eps"] = 0.0
    train(model, optimizer, range(3, 6))
    before = str(optimizer.state_dict())
    with pytest.raises(ValueError, match="eps"):
        optimizer.load_state_dict(old)
    assert str(optimizer.state_dict()) == before


def test_the_state_is_complete_before_the_first_step_of_a_warm_start() -> None:
    model = bn_net()
    optimizer = over_adamw(model)
    train(model, optimizer, range(5))
    whole = optimizer.state_dict()
    warm = over_adamw(bn_net())
    warm.load_state_dict(optimizer.first_order[0].state_dict())
    assert {i: set(kept) for i, kept in warm.state_dict()["state"].items()} == {
        i: set(kept) for i, kept in whole["state"].items()
    }
