"""Networks other than image classifiers train, and their curvature equals the dense Hessian's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import sgdph

WIDTH, LENGTH, CHARACTERS = 16, 12, 128


def text(step: int) -> tuple[Tensor, Tensor]:
    """Windows of the Python language reference, and the character after each one."""
    chapter = topics["assignment"].encode("ascii", "replace")
    codes = torch.frombuffer(bytearray(chapter), dtype=torch.uint8).long()
    starts = torch.randint(
        len(codes) - LENGTH - 1, (16,), generator=torch.Generator().manual_seed(step)
    )
    windows = torch.stack([codes[i : i + LENGTH + 1] for i in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


class Attention(nn.Module):
    """Causal self-attention, by torch's default kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards, self.outwards = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        # One head: the fused kernels take four dimensions.
        q, k, v = (part.unsqueeze(1) for part in self.inwards(x).chunk(3, -1))
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.outwards(h.squeeze(1))


class Transformer(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, WIDTH)
        self.attention, self.first, self.second, self.last = (
            Attention(),
            norm(WIDTH),
            norm(WIDTH),
            norm(WIDTH),
        )
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        x = x + self.attention(self.first(x))
        x = x + self.mlp(self.second(x))
        return self.head(self.last(x))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, WIDTH)
        self.layers = kind(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(x))[0])


def next_character(model: nn.Module, step: int) -> Tensor:
    x, y = text(step)
    return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _stage(inwards: int, outwards: int) -> nn.Sequential:
    convolution = nn.Conv2d(inwards, outwards, 3, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(2, outwards), nn.SiLU())


class UNet(nn.Module):
    """A U-Net with one skip connection (Ronneberger, Fischer & Brox, 2015), with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom, self.up = _stage(1, 4), _stage(4, 8), _stage(12, 4)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = self.down(x)
        low = self.bottom(functional.max_pool2d(across, 2))
        return self.out(
            self.up(torch.cat([across, functional.interpolate(low, scale_factor=2)], 1))
        )


def denoise(model: nn.Module, step: int) -> Tensor:
    """Find the discs in a noisy image."""
    generator = torch.Generator().manual_seed(step)
    centres = torch.rand(8, 2, 1, 1, generator=generator) * 8 + 2
    row, column = torch.arange(12.0).view(12, 1), torch.arange(12.0).view(1, 12)
    inside = ((row - centres[:, :1]) ** 2 + (column - centres[:, 1:]) ** 2 < 6).float()
    noisy = inside + 0.5 * torch.randn(8, 1, 12, 12, generator=generator)
    return functional.binary_cross_entropy_with_logits(
        model(noisy.to(next(model.parameters()).dtype)),
        inside.to(next(model.parameters()).dtype),
    )


class Messages(nn.Module):
    """Sums over neighbours by ``index_add`` (Gilmer et al., 2017), then a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.own = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sums = torch.zeros_like(x).index_add(0, edges[1], self.message(x)[edges[0]])
        return functional.silu(self.norm(self.own(x) + sums))


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inwards = nn.Linear(1, WIDTH)
        self.first, self.second = Messages(), Messages()
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.out(self.second(self.first(self.inwards(x), edges), edges))


def sums_of_neighbours(model: nn.Module, step: int) -> Tensor:
    """Predict the sum over each node's neighbours' neighbours."""
    generator = torch.Generator().manual_seed(step)
    edges = torch.randint(24, (2, 48), generator=generator)
    x = torch.randn(24, 1, generator=generator)
    target = x
    for _ in range(2):
        target = torch.zeros_like(x).index_add(0, edges[1], target[edges[0]])
    dtype = next(model.parameters()).dtype
    return functional.mse_loss(model(x.to(dtype), edges), torch.tanh(target).to(dtype))


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], Tensor]
    factor: float
    """What part of its first loss the network must fall below in 100 steps."""
    settings: dict[str, Any]


HUTCHINSON = {"lr": 0.1, "estimator": "hutchinson"}
CASES = {
    "layer_norm": Case(lambda: Transformer(nn.LayerNorm), next_character, 0.7, HUTCHINSON),
    "rms_norm": Case(lambda: Transformer(nn.RMSNorm), next_character, 0.7, HUTCHINSON),
    "lstm": Case(lambda: Recurrent(nn.LSTM), next_character, 0.75, {"lr": 0.3}),
    "gru": Case(lambda: Recurrent(nn.GRU), next_character, 0.75, {"lr": 0.3}),
    "unet": Case(UNet, denoise, 0.5, {"lr": 0.1}),
    "graph": Case(GraphNet, sums_of_neighbours, 0.7, {"lr": 0.05}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_network_trains(case: Case) -> None:
    torch.manual_seed(0)
    model = case.model()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **case.settings)
    losses = []
    for step in range(100):
        optimizer.zero_grad()
        loss = case.loss(model, step)
        optimizer.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    late, early = sum(losses[-10:]), sum(losses[:3]) / 3 * 10
    assert late < case.factor * early, (late / early, losses[::20])
    statistics = optimizer.multiplier_statistics().values()
    assert all(each.refreshes > 0 for each in statistics)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_curvature_equals_the_diagonal_of_the_dense_hessian(case: Case) -> None:
    torch.manual_seed(0)
    model = case.model().double()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), estimator="exact", refresh="all", lr=0.0)
    names = list(optimizer.multipliers())
    params = dict(model.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):
        expected = {
            name: sgdph.hessian_block(case.loss(model, 0), params[name]).diagonal().abs()
            for name in names
        }
    optimizer.backward(case.loss(model, 0))
    optimizer.step()
    assert len(names) >= 2
    for name in names:
        hessian = optimizer.state[params[name]]["hessian"].flatten() / (1 - 0.9)
        torch.testing.assert_close(hessian, expected[name], rtol=1e-9, atol=1e-12, msg=name)
