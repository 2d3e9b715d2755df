"""Transformer blocks with torch's default attention: checkpoints, autocast, AdamW, penalties."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from small import WAYS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import sgdph
from sgdph.autograd.attention import make_attention_twice_differentiable
from sgdph.autograd.graph import Region
from sgdph.step import SecondOrderOptimizer

WIDTH, LENGTH, HEADS = 16, 12, 4


class Block(nn.Module):
    """A pre-norm, causal block, as in a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.first(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.checkpointed = checkpointed
        self.inwards, self.blocks = nn.Linear(3, WIDTH), nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        with torch.no_grad():
            for p in self.parameters():
                # Otherwise attention is nearly uniform over the tokens, and has little effect.
                p.add_(0.2 * torch.randn_like(p))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inwards(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(self.norm(x))


def loss_of(model: nn.Module, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, LENGTH, 3, generator=generator)
    y = torch.randint(0, 5, (4, LENGTH), generator=generator)
    return functional.cross_entropy(
        model(x.to(next(model.parameters()))).flatten(0, 1), y.flatten()
    )


def is_fused(loss: Tensor, model: nn.Module) -> bool:
    nodes = Region(loss, [*model.parameters()]).nodes
    return any("FlashAttention" in type(node).__name__ for node in nodes)


def averages(optimizer: SecondOrderOptimizer) -> list[Tensor]:
    return [state["hessian"] for state in optimizer.state.values() if "hessian" in state]


def attention(fused: bool) -> AbstractContextManager[object]:
    """Torch's default, or math attention, whose derivatives are torch's alone."""
    context: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext() if fused else context


def by_closure(optimizer: SecondOrderOptimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.update_hessian(closure=loss)
    loss().backward()


@pytest.mark.parametrize("refresh", ["cyclic", "all"])
@pytest.mark.parametrize("way", [*WAYS, "closure"])
def test_checkpointed_blocks_train_like_plain_ones(way: str, refresh: str) -> None:
    trained = []
    for again in (False, True):
        model = Transformer(checkpointed=again).double()
        optimizer = sgdph.SGDPH(
            sgdph.param_groups(model),
            lr=0.05,
            estimator="hutchinson",
            refresh=refresh,
            hessian_momentum=0.99,
        )
        for step in range(6):
            optimizer.zero_grad()
            with attention(fused=again):
                if way == "closure":
                    by_closure(optimizer, lambda m=model, s=step: loss_of(m, s))
                else:
                    loss = loss_of(model, step)
                    assert is_fused(loss, model) == again
                    WAYS[way](optimizer, loss)
            optimizer.step()
        trained.append([*model.parameters(), *averages(optimizer)])
    assert len(trained[0]) == len(trained[1])
    # Differences of gradients have rounding errors of their own.
    tolerance = 1e-6 if way == "closure" else 1e-10
    for plain, found in zip(*trained, strict=True):
        torch.testing.assert_close(found, plain, rtol=0, atol=tolerance)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_curvature_under_bfloat16_autocast_is_close_to_float32(
    way: str, checkpointed: bool
) -> None:
    found = []
    for half in (False, True):
        model = Transformer(checkpointed=checkpointed and half)
        optimizer = sgdph.SGDPH(
            sgdph.param_groups(model), estimator="hutchinson", refresh="all", hessian_momentum=0.99
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=half), attention(fused=half):
            loss = loss_of(model)
        assert is_fused(loss, model) == half
        WAYS[way](optimizer, loss)
        optimizer.step()
        found.append(averages(optimizer))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert float((rounded - exact).norm()) < 0.06 * float(exact.norm())


def beside_adamw(model: nn.Module, estimator: str) -> sgdph.PartialHessian:
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    return sgdph.PartialHessian(adamw, sgdph.param_groups(model), lr=0.05, estimator=estimator)


@pytest.mark.parametrize("estimator", ["row_sum", "hutchinson"])
def test_newton_steps_beside_adamw_equal_those_with_math_attention(estimator: str) -> None:
    trained = []
    for fused in (True, False):
        model = Transformer().double()
        optimizer = beside_adamw(model, estimator)
        with attention(fused):
            # Each Newton parameter is refreshed once.
            for step in range(len(optimizer.multipliers())):
                optimizer.zero_grad()
                loss = loss_of(model, step)
                assert is_fused(loss, model) == fused
                optimizer.backward(loss)
                optimizer.step()
        trained.append([*model.parameters(), *averages(optimizer)])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.fixture
def unregistered() -> Iterator[None]:
    """Remove the derivative from torch, as in a process that has built no optimizer."""
    make_attention_twice_differentiable()._destroy()
    make_attention_twice_differentiable.cache_clear()
    yield
    make_attention_twice_differentiable()


def penalty(model: nn.Module) -> Tensor:
    """A gradient penalty, whose own gradients are second derivatives."""
    gradients = torch.autograd.grad(loss_of(model), [*model.parameters()], create_graph=True)
    return sum((g.square().sum() for g in gradients), torch.zeros(()))


@pytest.mark.parametrize("kind", ["SGDPH", "PartialHessian"])
@pytest.mark.usefixtures("unregistered")
def test_the_first_optimizer_makes_attention_twice_differentiable(kind: str) -> None:
    model = Transformer().double()
    with pytest.raises(RuntimeError, match="not implemented"):
        penalty(model).backward()
    if kind == "SGDPH":
        sgdph.SGDPH(sgdph.param_groups(model))
    else:
        beside_adamw(model, "row_sum")
    found = []
    for fused in (True, False):
        model.zero_grad()
        with attention(fused):
            penalty(model).backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
