"""A small causal transformer over characters, with layer norm (Vaswani et al., NeurIPS 2017)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

# LENGTH is the number of positions, and of characters in a window of text.
LENGTH, WIDTH, HEADS, FEED_FORWARD, LAYERS = 64, 32, 2, 64, 2


class Transformer(nn.Module):
    """Two pre-norm layers of width 32 (2 heads, feed-forward 64) and one linear layer.

    Args:
        vocabulary: Number of characters, which is also the number of classes.
    """

    mask: Tensor

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH,
                HEADS,
                FEED_FORWARD,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, vocabulary)
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, characters: Tensor) -> Tensor:
        """Map characters ``(N, T)``, T at most 64, to logits ``(N, vocabulary, T)``."""
        length = characters.shape[1]
        x = self.characters(characters) + self.positions[:length]
        mask = self.mask[:length, :length].to(x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return cast(Tensor, self.fc(self.norm(x)).transpose(1, 2))


def for_characters(characters: int, classes: int) -> Transformer:
    """Make the transformer for a text; each character is a class."""
    return Transformer(classes)
