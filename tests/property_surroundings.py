"""Small networks with unusual inputs, activations, freezing, losses and graph tools."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from property_graphs import Residual, block, middle_bn, norm
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
from torch.autograd.function import once_differentiable
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def images(name: str, prepare: Callable[[Tensor], Tensor]) -> None:
    def make() -> Case:
        return Case(nn.Sequential(stem(), block(), head()), (prepare(torch.randn(IMAGES)),))

    NETS[name] = make


# Inputs.
images("input_wants_a_gradient", lambda x: x.requires_grad_())
images("transposed_input", lambda x: torch.randn(5, 5, 2, 3).permute(3, 2, 0, 1))
images("sliced_input", lambda x: torch.randn(3, 4, 10, 5)[:, ::2, ::2].requires_grad_())
images("expanded_input", lambda x: x[:1].expand(IMAGES))


@net
def channels_last() -> Case:
    model = nn.Sequential(stem(), block(), conv_bn(4, 4, groups=2), head())
    x = torch.randn(IMAGES).to(memory_format=torch.channels_last).requires_grad_()
    return Case(model.to(memory_format=torch.channels_last), (x,))


# Activations, pooling, dropout.
sequential("relu_in_place", IMAGES, stem, middle_bn, lambda: nn.ReLU(inplace=True), block, head)
sequential("activations", IMAGES, stem, nn.SiLU, middle_bn, nn.Softplus, norm, nn.GELU, nn.ELU)
sequential("dropout", IMAGES, stem, lambda: nn.Dropout(0.4), middle_bn, lambda: nn.Dropout2d(0.3))
sequential(
    "pooling",
    (2, 2, 6, 6),
    stem,
    lambda: nn.MaxPool2d(3, 2, 1),
    middle_bn,
    lambda: nn.AvgPool2d(2, 1),
    norm,
    lambda: nn.AdaptiveMaxPool2d(1),
)
sequential("upsampling", IMAGES, stem, lambda: nn.Upsample(scale_factor=2), middle_bn, head)


# Sequences.
class Attention(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4, sparse=sparse)
        self.norm = nn.LayerNorm(4)
        self.places = nn.Embedding(5, 4, sparse=sparse)
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 7))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        q, k, v = self.qkv(self.norm(x) + self.places(torch.arange(5))).chunk(3, dim=-1)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(4)).softmax(dim=-1)
        return self.out(x + weights @ v)


@net
def attention() -> Case:
    return Case(Attention(sparse=False), (torch.randint(7, (2, 5)),))


@net
def sparse_embedding() -> Case:
    return Case(Attention(sparse=True), (torch.randint(7, (2, 5)),))


def _recurrent(kind: type[nn.Module]) -> Case:
    model = nn.ModuleList([nn.Linear(3, 3), nn.LayerNorm(3), kind(3, 4), nn.Linear(4, 2)])

    def loss_of(model: Any, x: Tensor) -> Tensor:
        return curved(model[3](model[2](model[1](model[0](x)))[0]))

    return Case(model, (torch.randn(4, 2, 3),), loss_of)


@net
def lstm() -> Case:
    return _recurrent(nn.LSTM)


@net
def gru() -> Case:
    return _recurrent(nn.GRU)


# Graph tools.
class Checkpointed(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)


def _group_normed() -> nn.Module:
    body = nn.Sequential(conv(4, 4, bias=True), nn.GroupNorm(2, 4), nn.Dropout(0.2), nn.SiLU())
    return Residual(body)


sequential("checkpointed", IMAGES, stem, lambda: Checkpointed(_group_normed()), middle_bn)
sequential(
    "checkpointed_all",
    IMAGES,
    lambda: Checkpointed(nn.Sequential(conv(2, 4), nn.GroupNorm(2, 4), Checkpointed(middle()))),
    lambda: Checkpointed(nn.Sequential(nn.Tanh(), _group_normed())),
)


def _saving(name: str, context: Callable[[], Any]) -> None:
    def loss_of(model: nn.Module, x: Tensor) -> Tensor:
        with context():
            return curved(model(x))

    NETS[name] = lambda: Case(
        nn.Sequential(stem(), block(), head()), (torch.randn(IMAGES),), loss_of
    )


_saving("saved_on_cpu", save_on_cpu)
_saving("saved_by_hooks", lambda: saved_tensors_hooks(lambda t: t.clone(), lambda t: t))
# Lossy: the gradient is computed from what the hooks return, not from what was saved.
_saving(
    "saved_rounded",
    lambda: saved_tensors_hooks(
        lambda t: (t.bfloat16(), t.dtype) if t.ndim == 4 else t,
        lambda t: t[0].to(t[1]) if isinstance(t, tuple) else t,
    ),
)


class Square(torch.autograd.Function):
    """x² with twice its gradient, so that no mistake can hide behind the true derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 4 * gradient * ctx.saved_tensors[0]


sequential("custom_function", IMAGES, stem, middle_bn, lambda: Call(Square.apply), middle_bn, head)


# Frozen and unused parameters.
def _frozen(name: str, *places: int) -> None:
    def make() -> Case:
        model = nn.Sequential(stem(), middle_bn(), block(), conv_bn(4, 4), head())
        for place in places:
            model[place].requires_grad_(False)
        return Case(model, (torch.randn(IMAGES),))

    NETS[name] = make


_frozen("front_frozen", 0, 1)
_frozen("middle_frozen", 2)
_frozen("back_frozen", 3, 4)
_frozen("all_but_one_frozen", 0, 2, 3, 4)


@net
def unused() -> Case:
    model = nn.ModuleList([stem(), middle_bn(), head()])
    return Case(
        model, (torch.randn(IMAGES),), lambda m, x: curved(m[2](m[0](x))) + 0 * m[1][0].weight.sum()
    )


class Once(torch.autograd.Function):
    """A function without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


def _fused_attention(x: Tensor) -> Tensor:
    x = x.flatten(2).unsqueeze(1)
    return functional.scaled_dot_product_attention(x, x, x).reshape(-1, 4, 5, 5)


def _once_in_front(name: str, function: Callable[[Tensor], Tensor]) -> None:
    """The Newton parameters come after the function, so its second derivative is not needed."""

    def make() -> Case:
        model = nn.Sequential(stem(), middle_bn(), Call(function), block(), head())
        return Case(
            model,
            (torch.randn(IMAGES),),
            newton_of=lambda model: [p for p in model[3:].parameters() if p.ndim == 1],
        )

    NETS[name] = make


_once_in_front("once_in_front", Once.apply)
_once_in_front("fused_attention_in_front", _fused_attention)


# Losses.
def _loss(name: str, loss_of: Callable[[nn.Module, Tensor], Tensor], norms: bool = True) -> None:
    def make() -> Case:
        model = nn.Sequential(stem(), middle_bn() if norms else middle(), nn.ReLU(), head())
        return Case(model, (torch.randn(IMAGES),), loss_of, newton_of=every_parameter)

    NETS[name] = make


_loss("penalty", lambda m, x: curved(m(x)) + sum(p.pow(4).sum() for p in m.parameters()))
_loss("partly_linear", lambda m, x: 0.5 * curved(m[:2](x)) + m(x).mean() + m[0][1].bias.sum())
_loss("only_the_parameter", lambda m, x: m[0][1].weight.exp().prod() + m[0][0].weight.sum())
_loss("the_parameter_itself", lambda m, x: m[0][1].bias.sum())
_loss("one_element", lambda m, x: m(x).square().mean().reshape(1, 1))
_loss("a_view", lambda m, x: m(x).tanh()[1, 2])
_loss("minus_a_loss", lambda m, x: -3 * curved(m(x)).log())


@net
def linear_loss() -> Case:
    layers = [conv(2, 3, bias=True), conv(3, 3, bias=True), nn.Flatten(), nn.Linear(75, 2)]
    return Case(nn.Sequential(*layers), (torch.randn(IMAGES),), lambda m, x: m(x).sum())


def _gradient_penalty(model: nn.Module, x: Tensor) -> Tensor:
    loss = curved(model(x))
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return loss + gradient.square().sum()


@net
def gradient_penalty() -> Case:
    """Double backward inside the loss itself; batch norm has no third derivative."""
    layers = conv(2, 4, bias=True), nn.GroupNorm(2, 4), nn.Softplus(), middle(), nn.SiLU(), head()
    return Case(nn.Sequential(*layers), (torch.randn(IMAGES).requires_grad_(),), _gradient_penalty)


@net
def output_norms_apart() -> Case:
    """A loss that also uses intermediate activations."""

    def loss_of(model: Any, x: Tensor) -> Tensor:
        first = model[0](x)
        second = model[1](first)
        return (
            curved(model[2](second))
            + 0.1 * first.pow(3).mean()
            + functional.mse_loss(first, second)
        )

    return Case(nn.ModuleList([stem(), block(), head()]), (torch.randn(IMAGES),), loss_of)
