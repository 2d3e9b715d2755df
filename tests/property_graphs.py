"""Small networks that test the shape of the graph: junctions, pieces, shared weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from property_nets import (
    IMAGES,
    NETS,
    Call,
    Case,
    conv,
    conv_bn,
    curved,
    every_parameter,
    head,
    middle,
    net,
    sequential,
    stem,
)
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """``shortcut(x) + body(x)``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Concat(nn.Module):
    """Concatenates the outputs of all branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Wired(nn.Module):
    """Layers, and a function that connects them."""

    def __init__(self, wiring: Callable[..., Tensor], layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(x, **self.layers)


def wired(name: str, wiring: Callable[..., Tensor], **layers: Callable[[], nn.Module]) -> None:
    def make() -> Case:
        model = Wired(wiring, {key: layer() for key, layer in layers.items()})
        return Case(model, (torch.randn(IMAGES),))

    NETS[name] = make


def middle_bn() -> nn.Module:
    return conv_bn(4, 4)


def norm() -> nn.Module:
    return nn.BatchNorm2d(4)


def block() -> nn.Module:
    return nn.Sequential(Residual(nn.Sequential(conv_bn(4, 4, nn.ReLU()), middle_bn())), nn.ReLU())


def normed_block(channels: int = 4) -> nn.Module:
    layers = nn.GroupNorm(2, channels), nn.SiLU(), conv(channels, channels, bias=True)
    return Residual(nn.Sequential(*layers))


# Junctions.
sequential("residual", IMAGES, stem, block, block, head)
sequential(
    "projection",
    IMAGES,
    stem,
    lambda: Residual(
        nn.Sequential(conv_bn(4, 6, nn.ReLU(), stride=2), conv_bn(6, 6)),
        conv_bn(4, 6, kernel=1, stride=2),
    ),
    nn.Softplus,
)
sequential(
    "nested",
    IMAGES,
    stem,
    lambda: Residual(nn.Sequential(block(), nn.Tanh(), Residual(middle_bn())), middle_bn()),
    head,
)
sequential("pre_activation", IMAGES, stem, normed_block, nn.ReLU, normed_block, head)
sequential(
    "dense",
    IMAGES,
    stem,
    lambda: Concat(nn.Identity(), conv_bn(4, 2, nn.ReLU())),
    lambda: Concat(nn.Identity(), conv_bn(6, 3, nn.ReLU()), conv_bn(6, 2, kernel=1)),
)
sequential("many_paths", (4, 3), lambda: nn.LayerNorm(3), *[lambda: Residual(Call(torch.sin))] * 40)
sequential(
    "long_chain", (4, 3), lambda: nn.LayerNorm(3), *[lambda: Call(lambda x: x + 0.001)] * 1050
)


@net
def without_batch_statistics() -> Case:
    """Two ranks with half a batch each compute the same as one process with the whole batch."""
    first = nn.Sequential(conv(2, 4, bias=True), nn.GroupNorm(2, 4), nn.SiLU())
    model = nn.Sequential(first, normed_block(), norm().eval(), normed_block(), nn.ReLU(), head())
    return Case(model, (torch.randn(IMAGES),))


@net
def zero_gamma() -> Case:
    body = nn.Sequential(conv_bn(4, 4, nn.ReLU()), middle_bn())
    nn.init.zeros_(body[1][1].weight)
    model = nn.Sequential(stem(), Residual(body), nn.ReLU(), head())
    return Case(model, (torch.randn(IMAGES),), as_is=True)


def _unet(
    x: Tensor, into: nn.Module, down: nn.Module, deep: nn.Module, up: nn.Module, out: nn.Module
) -> Tensor:
    high = into(x)
    low = deep(down(high).relu())
    return out(torch.cat([x, high, up(low).relu()], dim=1))


wired(
    "unet",
    _unet,
    into=lambda: conv_bn(2, 3, nn.ReLU()),
    down=lambda: conv_bn(3, 4, stride=2),
    deep=normed_block,
    up=lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1),
    out=lambda: conv_bn(8, 2),
)
wired(
    "uneven_paths", lambda x, a, b, c: c(b(a(x)).relu()) * a(x), a=stem, b=middle_bn, c=normed_block
)
wired("gated", lambda x, a, b, c: b(a(x)).sigmoid() * c(a(x).tanh()), a=stem, b=middle_bn, c=middle)


# Pieces: several outputs of one node, some unused; views; complex numbers.
wired(
    "pieces",
    lambda x, a, b: torch.cat([t * (i + 1) for i, t in enumerate(b(a(x)).split(2, 1))][::-1], 1),
    a=stem,
    b=middle_bn,
)
wired("unused_piece", lambda x, a, b: b(a(x)).unbind(1)[2].tanh(), a=stem, b=middle_bn)
wired("moments", lambda x, a, b: sum(torch.var_mean(b(a(x)).sin(), (2, 3))), a=stem, b=middle_bn)


def _write(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    x = a(x) * 1.5
    x[:, 1:3] = b(x[:, 1:3].clone())
    x[:, 0].mul_(2)
    return c(functional.relu(x, inplace=True))


def _filter(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    spectrum = torch.fft.rfft2(functional.pad(a(x), (0, 1)))
    return b(torch.fft.irfft2(spectrum * (0.3 + 0.2j))[..., :5].sin())


wired("written_in_place", _write, a=stem, b=lambda: conv_bn(2, 2), c=middle_bn)
wired("fourier", _filter, a=stem, b=middle_bn)


# Shared weights.
wired("conv_twice", lambda x, a, b, c: c(b(b(a(x)).relu())), a=stem, b=middle, c=middle_bn)
wired("block_thrice", lambda x, a, b: b(b(b(a(x)))), a=stem, b=block)
wired("norm_twice", lambda x, a, b, c: c(b(c(b(a(x))).relu())), a=stem, b=middle, c=norm)
wired(
    "norm_on_two_paths",
    lambda x, a, b, c: c(b(a(x))) + c(b(a(x * 0.5))).sin(),
    a=stem,
    b=middle_bn,
    c=norm,
)


# Weights and scales that are computed from the data.
def _dynamic(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    features = a(x)
    weight = b(features.mean((0, 2, 3))).view(4, 4, 3, 3)
    return c(functional.conv2d(features, weight, weight.sum((1, 2, 3)), padding=1))


def _filtered(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """The image itself does not depend on any parameter; the filter does."""
    return b(functional.conv2d(x, a(x)[:, :2, 1:4, 1:4].tanh(), padding=1)[:, :2])


def _modulated(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    features = a(x)
    scale, shift = b(features).mean((0, 2, 3)), b(features.sin()).mean((0, 2, 3))
    return c(functional.batch_norm(features, None, None, scale, shift, training=True))


wired("dynamic", _dynamic, a=stem, b=lambda: nn.Linear(4, 144), c=middle_bn)
wired("filtered", _filtered, a=stem, b=lambda: conv_bn(2, 3))
wired("modulated", _modulated, a=stem, b=middle_bn, c=middle_bn)
wired("correlated", lambda x, a, b: functional.conv2d(b(a(x)), b(a(x)) * 0.1), a=stem, b=middle_bn)
wired(
    "straight_through",
    lambda x, a, b: b((y := a(x)) + (y.sign() - y).detach()),
    a=stem,
    b=middle_bn,
)


class SharedWeight(nn.Module):
    """One weight and one bias in three convolutions with different strides and dilations.

    One of them also uses the sum of the bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(4, 4, 3, 3))
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.weight, self.bias, padding=1).relu()
        x = functional.conv2d(x, self.weight, self.bias, padding=2, dilation=2) + self.bias.sum()
        return functional.conv_transpose2d(x.tanh(), self.weight, self.bias, stride=2)


@net
def weight_in_three_convs() -> Case:
    model = nn.Sequential(stem(), SharedWeight(), norm(), head())
    return Case(model, (torch.randn(IMAGES),), newton_of=every_parameter)


@net
def tied_linear() -> Case:
    """The last layer shares the first layer's weight, as in autoencoders and language models."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 4))
    model[3].weight = model[0].weight
    return Case(model, (torch.randn(5, 4),), newton_of=every_parameter)


@net
def one_bias_for_two_norms() -> Case:
    model = nn.Sequential(stem(), middle_bn(), nn.ReLU(), middle_bn())
    model[3][1].bias = model[1][1].bias
    return Case(model, (torch.randn(IMAGES),))


@net
def two_losses() -> Case:
    trunk, first, second = nn.Sequential(stem(), block()), middle_bn(), normed_block()

    def both(model: nn.ModuleList, x: Tensor) -> Tensor:
        features = model[0](x)
        return curved(model[1](features)) + 0.5 * curved(model[2](features.relu()))

    return Case(nn.ModuleList([trunk, first, second]), (torch.randn(IMAGES),), both)


# Weights that take Newton steps too.
def _with_every_parameter(name: str) -> None:
    make = NETS[name]
    NETS[f"{name}_every"] = lambda: replace(make(), newton_of=every_parameter)


for _name in ("grouped", "parametrised", "standardised", "weight_norm", "transposed"):
    _with_every_parameter(_name)
