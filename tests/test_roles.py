"""Which parameters are channel-wise: by shape, by role, by the group's own flag."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import sgdph
from sgdph.roles import is_channelwise


def roles(model: nn.Module, **kwargs: Any) -> tuple[set[str], set[str]]:
    """Names of Newton and of first-order parameters, and a check that each appears once."""
    groups = sgdph.param_groups(model, **kwargs)
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    by_name = dict(model.named_parameters())
    for group in groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            assert by_name[name] is p
    newton = {n for g in groups if g["channelwise"] is True for n in g["param_names"]}
    first = {n for g in groups if g["channelwise"] is False for n in g["param_names"]}
    assert len(newton) + len(first) == len(names)
    return newton, first


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5,), True),
        ((5, 1), True),
        ((5, 1, 1, 1), True),
        ((1,), True),
        ((), False),
        ((5, 2), False),
        ((1, 5), False),
        ((2, 3, 4), False),
    ],
)
def test_shape_rule(shape: tuple[int, ...], expected: bool) -> None:
    assert is_channelwise(torch.zeros(shape)) is expected


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.LayerNorm((4, 3, 3)),
        nn.RMSNorm(4),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_parameters_of_norm_layers_are_newton(norm: nn.Module) -> None:
    newton, first = roles(nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Linear(4, 2)))
    assert newton == {"0.bias"} | {f"1.{name}" for name, _ in norm.named_parameters()}
    assert first == {"0.weight", "2.weight", "2.bias"}


class LlamaRMSNorm(nn.Module):
    """A norm as transformer libraries write it, not a subclass of torch's norm layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class NormedProjection(nn.Module):
    """Named like a norm, but it holds a matrix."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, size))


def test_third_party_norms_are_recognised_by_name() -> None:
    model = nn.Sequential(LlamaRMSNorm(4), NormedProjection(4), nn.Linear(4, 2))
    newton, _ = roles(model)
    assert newton == {"0.weight"}


class Misleading(nn.Module):
    """Parameters whose shapes look channel-wise, but most of which are not."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))
        self.single = nn.Linear(1, 4)
        self.depthwise = nn.Conv2d(4, 4, 1, groups=4, bias=False)
        self.slope = nn.PReLU(4)
        self.layer_scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)


def test_roles_take_precedence_over_shapes() -> None:
    newton, _ = roles(Misleading())
    assert newton == {"single.bias"}
    by_shape = sgdph.SGDPH(Misleading().named_parameters())
    assert set(by_shape.multipliers()) == {
        "temperature",
        "layer_scale",
        "single.weight",
        "single.bias",
        "depthwise.weight",
        "slope.weight",
    }


def test_biases_of_recurrent_attention_and_transposed_layers_are_newton() -> None:
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 4),
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "up": nn.ConvTranspose1d(4, 2, 3),
            "head": nn.Linear(4, 2),
        }
    )
    newton, first = roles(model)
    assert newton == {
        "lstm.bias_ih_l0",
        "lstm.bias_hh_l0",
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "up.bias",
    }
    assert {"attention.bias_k", "attention.bias_v", "head.bias"} <= first


def test_weight_norm_lengths_are_newton() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(1, 4, 3)),
        nn.utils.weight_norm(nn.Linear(4, 3)),
        parametrizations.weight_norm(nn.Linear(3, 3), dim=None),
        nn.Linear(3, 2),
    )
    newton, first = roles(model)
    assert newton == {
        "0.bias",
        "0.parametrizations.weight.original0",
        "1.bias",
        "1.weight_g",
        "2.bias",
        "2.parametrizations.weight.original0",
    }
    assert {"0.parametrizations.weight.original1", "1.weight_v", "3.bias"} <= first


@pytest.mark.parametrize(
    ("model", "first_order_bias"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), "1.bias"),
        (nn.Sequential(nn.Linear(2, 3), nn.Conv2d(3, 4, 1), nn.ReLU()), "1.bias"),
        (nn.Sequential(nn.Linear(2, 3), parametrizations.weight_norm(nn.Linear(3, 4))), "1.bias"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "1.bias"),
    ],
)
def test_output_layers_bias_is_first_order(model: nn.Module, first_order_bias: str) -> None:
    _, first = roles(model)
    assert {name for name in first if name.endswith("bias")} == {first_order_bias}


def test_the_output_layers_bias_is_first_order_if_its_parent_owns_it_too() -> None:
    """So it is in BERT's head, where the parent comes first."""
    head = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    head.bias = head[1].bias
    newton, first = roles(head)
    assert newton == {"0.bias"}
    assert "bias" in first


class Shifted(nn.Module):
    """A parametrisation with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.shift


def test_a_parametrisation_is_not_an_output_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    parametrize.register_parametrization(model[1], "weight", Shifted())
    newton, _ = roles(model)
    assert newton == {"0.bias"}


def test_output_layer_without_bias_makes_no_exception() -> None:
    newton, _ = roles(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, bias=False)))
    assert newton == {"0.bias"}


def test_tied_parameters_appear_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    groups = sgdph.param_groups(model)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    sgdph.SGDPH(groups)


def test_frozen_parameters_are_kept() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    assert roles(model)[0] == {"0.weight", "0.bias"}


def test_weight_decay_by_role() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 4))

    def decays(**kwargs: float) -> dict[str, float | None]:
        return {
            name: group.get("weight_decay")
            for group in sgdph.param_groups(model, **kwargs)
            for name in group["param_names"]
        }

    assert set(decays().values()) == {None}
    assert set(decays(weight_decay=0.1).values()) == {0.1}
    apart = decays(weight_decay=0.1, channelwise_weight_decay=0.0)
    assert {name for name, decay in apart.items() if decay == 0.0} == {
        "0.bias",
        "1.weight",
        "1.bias",
        "2.bias",
    }
    newton, first = roles(model, weight_decay=0.1, channelwise_weight_decay=0.0)
    assert "2.bias" in first
    assert newton == {"0.bias", "1.weight", "1.bias"}


def test_param_groups_needs_a_module_with_parameters() -> None:
    with pytest.raises(TypeError, match="got generator"):
        sgdph.param_groups(nn.Linear(2, 2).parameters())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameters"):
        sgdph.param_groups(nn.ReLU())


def newton_of(params: Any) -> list[Tensor]:
    optimizer = sgdph.SGDPH(params)
    names = optimizer.multipliers()
    everything = {
        f"{i}.{j}": p
        for i, group in enumerate(optimizer.param_groups)
        for j, p in enumerate(group["params"])
    }
    return [everything[name] for name in names]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return [id(p) for p in a] == [id(p) for p in b]


def test_the_last_trainable_unflagged_channelwise_one_is_first_order() -> None:
    a, b, c, d = (nn.Parameter(torch.ones(3)) for _ in range(4))
    w = nn.Parameter(torch.ones(3, 2))
    assert same(newton_of([a, w, b, c]), [a, b])
    assert same(newton_of([{"params": [a, b]}, {"params": [w, c]}]), [a, b])
    # A group with a flag is not counted, and its flag wins.
    assert same(newton_of([{"params": [a, b]}, {"params": [c], "channelwise": True}]), [a, c])
    assert same(newton_of([{"params": [a, b]}, {"params": [c], "channelwise": False}]), [a])
    assert same(newton_of([{"params": [w], "channelwise": True}, {"params": [a]}]), [w])
    # A frozen parameter cannot be the last one.
    d.requires_grad_(False)
    assert same(newton_of([a, b, c, d]), [a, b, d])


def test_groups_added_later_are_newton_by_shape_without_exception() -> None:
    a, b, c = (nn.Parameter(torch.ones(3)) for _ in range(3))
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = sgdph.SGDPH([a, b])
    optimizer.add_param_group({"params": [w, c]})
    assert set(optimizer.multipliers()) == {"0.0", "1.1"}
    optimizer.add_param_group({"params": nn.Parameter(torch.ones(2)), "channelwise": False})
    assert set(optimizer.multipliers()) == {"0.0", "1.1"}


def test_a_group_without_names_can_be_added_to_named_ones() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    assert set(optimizer.multipliers()) == {"0.weight", "0.bias", "2.1"}


def test_roles_do_not_change_with_requires_grad() -> None:
    a, b, c = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = sgdph.SGDPH([a, b, c])
    c.requires_grad_(False)
    optimizer.add_param_group({"params": nn.Parameter(torch.ones(2, 2))})
    assert set(optimizer.multipliers()) == {"0.0", "0.1"}
