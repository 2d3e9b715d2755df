"""Small transformers, and networks of other operations with a lean derivative of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from property_graphs import Residual
from property_nets import IMAGES, NETS, Call, Case, conv, conv_bn, every_parameter, head, stem
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8
TOKENS = (2, 5, WIDTH)
BEFORE = set(NETS)


class Attention(nn.Module):
    """Self-attention; ``mask`` builds a mask from the numbers of samples, heads and tokens."""

    def __init__(
        self,
        heads: int = 2,
        key_heads: int | None = None,
        *,
        causal: bool = False,
        scale: float | None = None,
        mask: Callable[[int, int, int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads or heads
        self.causal, self.scale, self.mask = causal, scale, mask
        self.width = WIDTH // heads
        self.qkv = nn.Linear(WIDTH, (heads + 2 * self.key_heads) * self.width)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        heads = self.qkv(x).view(n, tokens, -1, self.width).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.key_heads, self.key_heads], 1)
        mask = None if self.mask is None else self.mask(n, self.heads, tokens)
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            mask,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=self.key_heads != self.heads,
        )
        return self.out(out.transpose(1, 2).reshape(n, tokens, WIDTH))


class GatedUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, 6, bias=False), nn.Linear(WIDTH, 6, bias=False)
        self.down = nn.Linear(6, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def perceptron(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 6), activation, nn.Linear(6, WIDTH))


def normed(norm: nn.Module, body: nn.Module) -> nn.Module:
    return Residual(nn.Sequential(norm, body))


def tokens(name: str, *layers: Callable[[], nn.Module], every: bool = False) -> None:
    def make() -> Case:
        model = nn.Sequential(*(layer() for layer in layers), nn.LayerNorm(WIDTH))
        return Case(model, (torch.randn(TOKENS),), newton_of=every_parameter if every else None)

    NETS[name] = make


def _hidden(n: int, heads: int, length: int) -> Tensor:
    """Hide some keys, and all keys from the second query of the first sample."""
    mask = torch.arange(n * length * length).sin().view(n, 1, length, length) > -0.4
    mask[0, :, 1] = False
    return mask


def _distances(n: int, heads: int, length: int) -> Tensor:
    places = torch.arange(length)
    slopes = 0.3 * torch.arange(1, heads + 1).view(1, heads, 1, 1)
    return -slopes * (places.view(-1, 1) - places).abs().to(torch.get_default_dtype())


tokens(
    "gpt",
    lambda: normed(nn.LayerNorm(WIDTH), Attention(causal=True)),
    lambda: normed(nn.LayerNorm(WIDTH, bias=False), perceptron(nn.GELU())),
    lambda: normed(nn.LayerNorm(WIDTH), Attention(4, causal=True)),
    lambda: normed(nn.LayerNorm(WIDTH, elementwise_affine=False), perceptron(nn.GELU("tanh"))),
)
tokens(
    "llama",
    lambda: normed(nn.RMSNorm(WIDTH), Attention(4, 2, causal=True, scale=0.7)),
    lambda: normed(nn.RMSNorm(WIDTH), GatedUnit()),
    lambda: normed(nn.RMSNorm(WIDTH), Attention(4, 1)),
)
tokens(
    "masked_attention",
    lambda: normed(nn.LayerNorm(WIDTH), Attention(4, 2, mask=_hidden)),
    lambda: normed(nn.LayerNorm(WIDTH), Attention(mask=_distances, scale=1.3)),
    lambda: nn.LayerNorm((5, WIDTH)),
)
tokens(
    "encoder_layers",
    lambda: nn.TransformerEncoderLayer(WIDTH, 2, 6, dropout=0.0, batch_first=True),
    lambda: nn.TransformerEncoderLayer(
        WIDTH, 2, 6, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
    ),
)
tokens("attention_every", lambda: Attention(4, 2), lambda: perceptron(nn.SiLU()), every=True)
tokens(
    "activations",
    lambda: perceptron(nn.SiLU()),
    lambda: perceptron(nn.Mish()),
    lambda: normed(nn.LayerNorm(WIDTH), perceptron(nn.Hardswish())),
    lambda: Call(lambda x: functional.gelu(x.transpose(1, 2)).transpose(1, 2)),
    lambda: perceptron(nn.GELU("tanh")),
)
tokens(
    "softmaxes",
    lambda: normed(nn.LayerNorm(WIDTH), Call(lambda x: 3 * x.softmax(-1))),
    lambda: perceptron(nn.Softmax(1)),
    lambda: Call(lambda x: x + 0.3 * functional.log_softmax(x, 1).sin()),
    lambda: nn.Linear(WIDTH, WIDTH),
)

# Products whose other factor is fixed or is also computed from the data.
_FIXED = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))


def _mixed(x: Tensor) -> Tensor:
    fixed = _FIXED.to(x)
    mixed = torch.bmm(fixed.expand(2, 5, 5), x)
    return torch.baddbmm(x, mixed @ mixed.mT, x.tanh(), beta=0.5, alpha=0.2)


tokens(
    "products",
    lambda: normed(nn.LayerNorm(WIDTH), Call(_mixed)),
    lambda: perceptron(nn.ReLU()),
    lambda: Call(lambda x: torch.addmm(x[0], _FIXED.to(x), x[1], beta=2, alpha=0.3).unsqueeze(0)),
    lambda: Residual(nn.Linear(WIDTH, WIDTH, bias=False)),
)


def _images(name: str, *layers: Callable[[], nn.Module], every: bool = False) -> None:
    def make() -> Case:
        model = nn.Sequential(stem(), *(layer() for layer in layers), head())
        return Case(model, (torch.randn(IMAGES),), newton_of=every_parameter if every else None)

    NETS[name] = make


_images(
    "group_norms",
    lambda: conv(4, 6, bias=True),
    lambda: nn.GroupNorm(3, 6),
    nn.Mish,
    lambda: conv(6, 4),
    lambda: nn.GroupNorm(1, 4, affine=False),
    nn.SiLU,
    lambda: nn.GroupNorm(4, 4),
)
_images(
    "evaluated_batch_norms",
    lambda: conv_bn(4, 4, nn.SiLU()).eval(),
    lambda: nn.BatchNorm2d(4, affine=False).eval(),
    nn.Hardswish,
    lambda: conv(4, 4, bias=True),
    lambda: nn.BatchNorm2d(4).eval(),
    every=True,
)

TRANSFORMERS = [name for name in NETS if name not in BEFORE]
