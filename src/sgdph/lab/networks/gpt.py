"""A decoder shaped like GPT-2 (Radford et al., 2019), for measuring what a training step costs."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects


class Attention(nn.Module):
    """Causal self-attention with torch's default kernel and a joint projection to q, k and v.

    Args:
        width: Features per position.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, T, width)`` to the same shape."""
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.projection(y.transpose(1, 2).flatten(2)))


class Layer(nn.Module):
    """A pre-norm decoder layer with a feed-forward part that is four times as wide.

    Args:
        width: Features per position.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, T, width)`` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return cast(Tensor, x + self.feed_forward(self.norm2(x)))


class GPT(nn.Module):
    """A pre-norm decoder without dropout whose output layer shares the embedding's weight.

    Args:
        vocabulary: Number of tokens.
        length: Maximum length of a text, in tokens.
        width: Features per position.
        heads: Number of heads.
        layers: Number of layers.
    """

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        # The default initialisation of an embedding is too large for an output layer.
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids ``(N, T)`` to logits of the next tokens ``(N, T, vocabulary)``."""
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        return cast(Tensor, self.head(self.norm(self.layers(x))))
