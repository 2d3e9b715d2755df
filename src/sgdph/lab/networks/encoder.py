"""A small transformer encoder over token ids, for measuring what a training step costs."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 1000, 64, 256, 4, 12


class Encoder(nn.Module):
    """A transformer encoder that classifies by the mean over positions.

    It has twelve pre-norm layers of width 256 (4 heads, feed-forward 1024).

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids ``(N, 64)`` to logits ``(N, classes)``."""
        x = self.tokens(ids) + self.positions
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.fc(self.norm(x).mean(1)))
