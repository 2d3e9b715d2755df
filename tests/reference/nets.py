"""Tiny networks, one per kind of channel-wise parameter, and batches for them.

With three or four channels and 4×4 pixels, a dense block has only a few rows, and 100 steps take
about a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

CLASSES = 3


class BasicBlock(nn.Module):
    """A residual block with a projection, so that the graph is not a chain."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.projection = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.bn3(self.projection(x)))


class Gated(nn.Module):
    """A LayerNorm network with a branch that can be left out of a step's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)
        self.side = nn.Linear(4, 4)
        self.side_norm = nn.LayerNorm(4)
        self.last = nn.Linear(4, CLASSES)
        self.open = True

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm(self.first(x)))
        if self.open:
            x = x + torch.tanh(self.side_norm(self.side(x)))
        return self.last(x)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def bn_resnet() -> nn.Module:
    stem = [nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()]
    return nn.Sequential(*stem, BasicBlock(3, 4), *head(4))


def conv_bias() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Softplus()),
        *(nn.Conv2d(4, 4, 2, groups=2), nn.Tanh()),
        *head(4),
    )


def layer_norm_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(16, 4), nn.LayerNorm(4), nn.GELU()),
        *(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()),
        nn.Linear(4, CLASSES),
    )


def group_norm() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.SiLU()),
        *(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.SiLU()),
        *head(4),
    )


def instance_norm() -> nn.Module:
    # The last norm needs a nonlinearity: the mean of a normalised plane is its shift, for any x.
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.InstanceNorm2d(4, affine=True), nn.ReLU()),
        *(nn.Conv2d(4, 3, 3, padding=1, bias=False), nn.InstanceNorm2d(3, affine=True), nn.ELU()),
        *head(3),
    )


def weight_normed() -> nn.Module:
    return nn.Sequential(
        *(weight_norm(nn.Conv2d(1, 3, 3, padding=1)), nn.Tanh()),
        *(weight_norm(nn.Conv2d(3, 4, 3, padding=1)), nn.Softplus()),
        *(*head(4)[:-1], weight_norm(nn.Linear(4, CLASSES))),
    )


def rms_norm() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(16, 4, bias=False), nn.RMSNorm(4), nn.SiLU()),
        *(nn.Linear(4, 4), nn.RMSNorm(4), nn.SiLU()),
        nn.Linear(4, CLASSES),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "bn_resnet": bn_resnet,
    "conv_bias": conv_bias,
    "layer_norm_mlp": layer_norm_mlp,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "weight_norm": weight_normed,
    "rms_norm": rms_norm,
    "gated": Gated,
}


@dataclass(frozen=True)
class Batch:
    """Inputs and labels."""

    inputs: Tensor
    labels: Tensor


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network ``name``, always with the same weights, none of them at a special value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETS[name]().to(dtype)
        with torch.no_grad():  # scales of exactly 1 and shifts of exactly 0 hide mistakes
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model


def batches(
    name: str, count: int = 5, size: int = 5, dtype: torch.dtype = torch.float64
) -> list[Batch]:
    """A few fixed batches that suit the network ``name``."""
    shape = (6,) if name == "gated" else (1, 4, 4)
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randn(size, *shape, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, the mean over the batch."""
    return functional.cross_entropy(model(batch.inputs), batch.labels)


def flat(model: nn.Module) -> Tensor:
    """A copy of all parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
