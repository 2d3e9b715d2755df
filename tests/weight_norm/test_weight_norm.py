"""Applying and folding weight normalisation, on single layers and small networks."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from reference.algorithm1 import ReferenceSGDPH
from reference.drive import WAYS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import sgdph

G, V = "parametrizations.weight.original0", "parametrizations.weight.original1"


class ScaledConv(nn.Conv2d):
    """A subclass with a parameter of its own after the weight and the bias."""

    def __init__(self) -> None:
        super().__init__(2, 4, 3)
        self.gain = nn.Parameter(torch.full((4,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias) * self.gain.view(4, 1, 1)


class LateWeight(nn.Linear):
    """A layer whose weight comes after its bias."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        weight = self.weight
        del self.weight
        self.weight = weight


# Layer, shape of its input, dimension of the output channels.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv1d": (lambda: nn.Conv1d(2, 4, 3), (3, 2, 7), 0),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3), (3, 2, 5, 5), 0),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 3), 0),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 5, 5), 0),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (3, 4, 5, 5), 0),
    "depthwise_1x1": (lambda: nn.Conv2d(4, 4, 1, groups=4), (3, 4, 5, 5), 0),
    "circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (3, 2, 5, 5), 0),
    "transposed1d": (lambda: nn.ConvTranspose1d(2, 5, 3, stride=2), (3, 2, 4), 1),
    "transposed2d": (lambda: nn.ConvTranspose2d(2, 5, 3), (3, 2, 4, 4), 1),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 5, 2, bias=False), (2, 2, 3, 3, 2), 1),
    "linear": (lambda: nn.Linear(5, 3), (4, 5), 0),
    "one_output": (lambda: nn.Linear(5, 1, bias=False), (4, 5), 0),
    "subclass": (ScaledConv, (3, 2, 5, 5), 0),
    "late_weight": (LateWeight, (4, 5), 0),
}


def conv_net() -> nn.Sequential:
    """Plain, transposed and grouped convolutions; smooth, so that every block has curvature."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.Softplus()),
        *(nn.ConvTranspose2d(4, 3, 2), nn.Tanh()),
        *(nn.Conv2d(3, 6, 2, groups=3), nn.Softplus()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 2, 5, 5, generator=torch.Generator().manual_seed(3)).to(dtype)


def loss_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    return functional.cross_entropy(model(images(dtype)), torch.tensor([0, 1, 2, 0, 1]))


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def old_style(layer: nn.Module, name: str = "weight", dim: int = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, name, dim)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_applying_and_folding_keep_outputs_and_restore_the_layer(kind: str) -> None:
    make, shape, dim = KINDS[kind]
    plain, x = make(), torch.randn(shape)
    layer, kept = copy.deepcopy(plain), type(plain)
    assert sgdph.apply_weight_norm(layer) is layer
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-6)
    g = layer.get_parameter(G)
    others = [i for i in range(plain.weight.ndim) if i != dim]
    assert g.numel() == plain.weight.shape[dim] == g.shape[dim]
    torch.testing.assert_close(g, plain.weight.pow(2).sum(others, keepdim=True).sqrt())

    with torch.no_grad():  # move it away from where it started
        g *= 1.5
        layer.get_parameter(V).mul_(0.7)
    before = layer(x)
    assert sgdph.fold_weight_norm(layer) is layer
    assert torch.equal(layer(x), before)
    torch.testing.assert_close(layer.weight, plain.weight * 1.5, rtol=1e-6, atol=1e-6)
    assert type(layer) is kept
    assert names(layer) == names(plain)
    assert [*layer.named_modules()] == [("", layer)]
    plain.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(plain(x), before)
    pickle.dumps(layer)


def test_folding_a_copy_leaves_the_original_intact() -> None:
    """Torch's own way to fold a deep copy breaks the model that was copied."""
    model = sgdph.apply_weight_norm(conv_net())
    expected = model(images())
    folded = sgdph.fold_weight_norm(copy.deepcopy(model))
    assert torch.equal(folded(images()), expected)
    assert torch.equal(model(images()), expected)
    loss_of(model).backward()
    assert all(p.grad is not None for p in model.parameters())


class Half(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return tensor / 2


def test_a_parametrised_bias_stays_parametrised() -> None:
    first = nn.Conv2d(2, 4, 3)
    parametrize.register_parametrization(first, "bias", Half())
    second = copy.deepcopy(first)
    expected = first(images())
    for layer in (first, second):
        sgdph.apply_weight_norm(layer)
        torch.testing.assert_close(first(images()), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(second(images()), expected, rtol=0, atol=1e-6)
    sgdph.fold_weight_norm(first)
    assert names(first) == ["weight", "parametrizations.bias.original"]
    for layer in (first, second):
        torch.testing.assert_close(layer(images()), expected, rtol=0, atol=1e-6)
    parametrize.remove_parametrizations(first, "bias")
    assert type(first) is nn.Conv2d


@pytest.mark.parametrize("dim", [0, 1, None])
def test_folds_weight_norm_that_torch_applied(dim: int | None) -> None:
    new = parametrizations.weight_norm(nn.Linear(5, 3), dim=dim)
    old = old_style(nn.Linear(3, 5), dim=dim)
    old.weight_v.requires_grad_(False)
    model = nn.Sequential(new, nn.Sequential(old, nn.Tanh()))
    with torch.no_grad():  # the old style's weight changes only at the next forward
        new.get_parameter(G).mul_(2)
        old.weight_g.mul_(2)
    expected = copy.deepcopy(new.weight.detach()), 2 * old.weight.detach()
    sgdph.fold_weight_norm(model)
    assert names(model) == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    for layer, weight in zip((new, old), expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-6, atol=1e-6)
        assert layer.weight.requires_grad
    assert not old._forward_pre_hooks
    pickle.dumps(model)


def test_folds_old_style_weight_norm_of_a_recurrent_layer() -> None:
    lstm, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    expected = lstm(x)[0]
    old_style(lstm, "weight_hh_l0")
    torch.testing.assert_close(lstm(x)[0], expected)
    sgdph.fold_weight_norm(lstm)
    torch.testing.assert_close(lstm(x)[0], expected)
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()
    assert not torch.allclose(lstm(x)[0], expected)


def test_folds_two_weights_of_one_layer() -> None:
    layer = parametrizations.weight_norm(nn.Bilinear(2, 3, 4))
    layer.extra = nn.Parameter(torch.randn(4, 2))
    parametrizations.weight_norm(layer, "extra")
    expected = layer(torch.ones(1, 2), torch.ones(1, 3))
    sgdph.fold_weight_norm(layer)
    assert set(names(layer)) == {"weight", "extra", "bias"}
    assert torch.equal(layer(torch.ones(1, 2), torch.ones(1, 3)), expected)
    assert not layer._load_state_dict_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_keeps_dtype_training_mode_and_frozen_parameters(dtype: torch.dtype) -> None:
    model = conv_net().to(dtype)
    model[0].weight.requires_grad_(False)
    model[2].eval()
    modes = [module.training for module in model]
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.no_grad():
        sgdph.apply_weight_norm(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert [module.training for module in model] == modes
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        f"0.{G}",
        f"0.{V}",
    }
    with torch.no_grad():
        sgdph.fold_weight_norm(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_keeps_the_memory_format_and_the_meta_device() -> None:
    model = conv_net().to(memory_format=torch.channels_last)
    sgdph.apply_weight_norm(model)
    assert model[0].get_parameter(V).is_contiguous(memory_format=torch.channels_last)
    with torch.device("meta"):
        empty = sgdph.apply_weight_norm(conv_net())
    assert all(p.is_meta for p in empty.parameters())
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(empty(images()), model(images()))


@pytest.mark.parametrize("kind", ["conv2d", "transposed2d", "linear"])
def test_a_channel_of_zeros_gets_a_direction(kind: str) -> None:
    make, shape, dim = KINDS[kind]
    plain, x = make(), torch.randn(shape)
    with torch.no_grad():
        plain.weight.select(dim, 1).zero_()
    layers = [copy.deepcopy(plain) for _ in range(2)]
    before = torch.random.get_rng_state()
    for layer in layers:
        sgdph.apply_weight_norm(layer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not plain.weight.select(dim, 1).any()
    g, v = (layers[0].get_parameter(name) for name in (G, V))
    torch.testing.assert_close(layers[0](x), plain(x), rtol=0, atol=1e-6)
    assert g.select(dim, 1).item() == 0
    torch.testing.assert_close(v.select(dim, 1).norm(), torch.tensor(1.0))
    assert torch.equal(v.select(dim, 0), plain.weight.select(dim, 0))
    assert torch.equal(v, layers[1].get_parameter(V))
    layers[0](x).square().sum().backward()
    layers[0](x + 1).sum().backward()
    assert g.grad is not None
    assert g.grad.select(dim, 1).item() != 0
    assert g.grad.isfinite().all()
    assert v.grad is not None
    assert v.grad.isfinite().all()
    sgdph.fold_weight_norm(layers[0])
    assert torch.allclose(layers[0].weight, plain.weight, rtol=1e-6, atol=1e-6)


def test_the_original_weight_tensor_is_not_changed() -> None:
    """The new direction does not appear in the old tensor, which other code may still hold."""
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    held = layer.weight
    sgdph.apply_weight_norm(layer)
    assert not held.any()


def test_layers_are_chosen_by_name_pattern_and_type() -> None:
    def chosen(*layers: str | type[nn.Module]) -> list[str]:
        model = sgdph.apply_weight_norm(nn.ModuleDict({"a": conv_net(), "b": conv_net()}), layers)
        return [name.removesuffix(f".{G}") for name in names(model) if name.endswith(G)]

    assert chosen("a.*") == ["a.0", "a.2", "a.4", "a.8"]
    assert chosen("b.8", "a.[02]") == ["a.0", "a.2", "b.8"]
    assert chosen(nn.Linear) == ["a.8", "b.8"]
    assert chosen(nn.ConvTranspose2d, "?.0", "a.0") == ["a.0", "a.2", "b.0", "b.2"]
    assert chosen(nn.Module) == chosen("*")


def test_a_layer_used_twice_is_normalised_once() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(4, 3)
    expected = model(x)
    sgdph.apply_weight_norm(model, ["2"])
    assert names(model) == ["0.bias", f"0.{G}", f"0.{V}"]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    sgdph.fold_weight_norm(model)
    assert model[0] is model[2]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)


def by_hand(model: nn.Sequential, replaced: dict[str, Tensor]) -> Tensor:
    """The loss of ``conv_net``, each channel's weight written out as in Eq. 8."""
    p = {name: tensor.detach() for name, tensor in model.named_parameters()} | replaced

    def weight(layer: int, dim: int = 0) -> Tensor:
        g, v = p[f"{layer}.{G}"].flatten(), p[f"{layer}.{V}"]
        channels = [
            length * w / (w * w).sum().sqrt() for length, w in zip(g, v.unbind(dim), strict=True)
        ]
        return torch.stack(channels, dim)

    x = functional.softplus(functional.conv2d(images(torch.float64), weight(0), p["0.bias"]))
    x = functional.conv_transpose2d(x, weight(2, dim=1), p["2.bias"]).tanh()
    x = functional.softplus(functional.conv2d(x, weight(4), p["4.bias"], groups=3))
    logits = x.mean((2, 3)) @ weight(8).T + p["8.bias"]
    return functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1]))


@pytest.mark.parametrize("way", WAYS)
def test_the_partial_hessian_equals_the_row_sums_of_the_dense_one(way: str) -> None:
    model = sgdph.apply_weight_norm(conv_net().double())
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), refresh="all", hessian_momentum=0.9)
    lengths = [name for name in names(model) if name.endswith(G)]
    assert len(lengths) == 4
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    WAYS[way](optimizer, loss_of(model, torch.float64))
    optimizer.step()
    frozen = {name: p.detach().clone() for name, p in before.items()}
    for name in lengths:
        p = model.get_parameter(name)

        def loss(value: Tensor, name: str = name) -> Tensor:
            return by_hand(model, {**frozen, name: value})

        dense = torch.autograd.functional.hessian(loss, frozen[name]).reshape(p.numel(), p.numel())
        row_sums = dense.sum(1)
        assert row_sums.abs().max() > 1e-5
        held = optimizer.state[p]["hessian"].flatten()
        torch.testing.assert_close(held, 0.1 * row_sums.abs(), rtol=1e-9, atol=1e-12)
        gradient = torch.autograd.functional.jacobian(loss, frozen[name])
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_follows_the_slow_reference_for_100_steps(way: str) -> None:
    settings = {"lr": 2e-3, "weight_decay": 1e-3}
    model = sgdph.apply_weight_norm(conv_net().double())
    other = copy.deepcopy(model)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    groups = [
        {"params": group["params"], "channelwise": group["channelwise"]}
        for group in sgdph.param_groups(other)
    ]
    reference = ReferenceSGDPH(groups, **settings)
    for step in range(100):
        optimizer.zero_grad()
        WAYS[way](optimizer, loss_of(model, torch.float64))
        optimizer.step()
        reference.step([lambda: loss_of(other, torch.float64)])
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            gap = float((p - q).detach().abs().max())
            assert gap < 1e-10, f"{name} is off by {gap:.1e} at step {step}"
