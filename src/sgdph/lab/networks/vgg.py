"""VGG networks for small images (Simonyan & Zhang, ICLR 2015), with or without batch norm.

They have 3x3 convolutions, each with ReLU and with batch norm or a bias, and five max pools. One
linear layer replaces the original's three, as is usual for 32x32 images.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.networks.resnet import initialise

# Five max pools reduce this size to one pixel.
SMALLEST = 32


class VGG(nn.Module):
    """Stages of convolutions, each with a max pool, then the mean over pixels and one linear layer.

    Args:
        in_channels: Channels of the images.
        classes: Number of classes.
        convolutions: Convolutions in each of the five stages.
        norm: ``"batch"``, or ``"none"`` for convolutions with a bias that starts at zero.
        widths: Channels of each stage; by default those of the original.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        convolutions: tuple[int, ...],
        norm: str,
        widths: tuple[int, ...] = (64, 128, 256, 512, 512),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        batch_norm = norm == "batch"
        previous = in_channels
        for width, count in zip(widths, convolutions, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(previous, width, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                previous = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(previous, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_channels, H, W)`` to logits ``(N, classes)``.

        Images smaller than 32x32 are padded with zeros to that size.
        """
        down, right = (max(0, SMALLEST - size) for size in x.shape[2:])
        if down or right:
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return cast(Tensor, self.fc(self.features(x).mean((2, 3))))
