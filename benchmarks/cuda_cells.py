"""The networks, batch sizes and precisions that ``cost_cuda.py`` measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sgdph.lab.cost.figures import CostSettings
from sgdph.lab.cost.step import Workload, build_workload


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., 2021), by default with the shape of ViT-tiny.

    Args:
        size: Height and width of an image.
        patch: Height and width of a patch.
        width: Number of features of a token.
        heads: Number of heads.
        layers: Number of layers.
    """

    def __init__(
        self, size: int = 224, patch: int = 16, width: int = 192, heads: int = 3, layers: int = 12
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.label = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        settings: dict[str, Any] = {"activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, **settings)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, size, size)`` to logits ``(N, 1000)``."""
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.label.expand(len(x), -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.head(self.norm(x)[:, 0]))


@dataclass(frozen=True)
class Cell:
    """One measurement: a network, a batch size and a precision.

    Attributes:
        network: The network's name.
        batch: Number of inputs in the batch.
        precision: ``tf32``, or ``bfloat16`` under autocast. With ``bfloat16``, the laboratory's
            networks are channels last.
        build: Builds the workload from the cell and a device.
    """

    network: str
    batch: int
    precision: str
    build: Callable[[Cell, torch.device], Workload]


def of_laboratory(cell: Cell, device: torch.device) -> Workload:
    """Build one of the laboratory's networks with a batch."""
    half = cell.precision == "bfloat16"
    precision = "bfloat16" if half else "float32"
    settings = CostSettings(systems=(), precision=precision, channels_last=half)
    return build_workload(cell.network, cell.batch, settings, device)


def vision_transformer(cell: Cell, device: torch.device, **shape: int) -> Workload:
    """Build a vision transformer with a batch."""
    torch.manual_seed(0)
    model = ViT(**shape).to(device)
    size = shape.get("size", 224)
    images = torch.randn(cell.batch, 3, size, size).to(device)
    labels = torch.randint(1000, (cell.batch,)).to(device)
    return Workload(model, images, labels, cell.precision == "bfloat16")


CELLS = (
    Cell("resnet18", 128, "tf32", of_laboratory),
    Cell("resnet18", 128, "bfloat16", of_laboratory),
    Cell("encoder12", 128, "tf32", of_laboratory),
    Cell("encoder12", 128, "bfloat16", of_laboratory),
    Cell("vit-tiny", 64, "bfloat16", vision_transformer),
)
QUICK = (
    Cell("resnet8", 2, "tf32", of_laboratory),
    Cell(
        "vit-tiny",
        2,
        "bfloat16",
        lambda cell, device: vision_transformer(cell, device, size=32, width=12, layers=1),
    ),
)
