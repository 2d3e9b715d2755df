"""Small networks drawn at random from building blocks, each from its own seed."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from property_graphs import Concat, Residual
from property_nets import NETS, Call, Case, every_parameter
from property_surroundings import Checkpointed
from torch import nn
from torch.nn.utils import parametrizations

SEEDS = range(14)

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_SIZES = {1: 7, 2: 5, 3: 3}


class Draw:
    """Draws layers that keep the size, by default with 4 channels in and out."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.dimensions = self.random.choice([1, 2, 2, 2, 3])

    def conv(self, inputs: int = 4, outputs: int = 4) -> nn.Module:
        draw = self.random
        groups = draw.choice([g for g in (1, 1, 2, 4) if inputs % g == outputs % g == 0])
        bias = draw.random() < 0.5
        kind = draw.choice(["plain", "plain", "dilated", "even", "pointwise", "transposed"])
        if kind == "transposed":
            make = _TRANSPOSED[self.dimensions]
            layer = make(inputs, outputs, 3, padding=1, groups=groups, bias=bias)
        else:
            mode = draw.choice(["zeros", "zeros", "circular", "replicate"])
            kernel = {"even": 2, "pointwise": 1}.get(kind, 3)
            dilation = 2 if kind == "dilated" and mode == "zeros" else 1
            layer = _CONVS[self.dimensions](
                inputs,
                outputs,
                kernel,
                padding="same",
                dilation=dilation,
                groups=groups,
                bias=bias,
                padding_mode=mode,
            )
        if draw.random() < 0.15:
            parametrizations.weight_norm(layer)
        return layer

    def norm(self, channels: int = 4) -> nn.Module:
        draw = self.random
        kind = draw.choice(["batch", "batch", "batch", "group", "instance", "none"])
        if kind == "batch":
            statistics, affine = draw.random() < 0.8, draw.random() < 0.85
            norm = _BATCH_NORMS[self.dimensions](
                channels, affine=affine, track_running_stats=statistics
            )
            return norm.eval() if draw.random() < 0.15 else norm
        if kind == "group":
            return nn.GroupNorm(channels // 2 or 1, channels)
        if kind == "instance":
            return _INSTANCE_NORMS[self.dimensions](channels, affine=True)
        return nn.Identity()

    def activation(self) -> nn.Module:
        makes: list[Callable[[], nn.Module]] = [
            nn.ReLU,
            nn.ReLU,
            nn.SiLU,
            nn.GELU,
            nn.Softplus,
            lambda: Call(torch.sin),
            lambda: nn.Dropout(0.2),
            lambda: _MAX_POOLS[self.dimensions](3, 1, 1),
        ]
        return self.random.choice(makes)()

    def unit(self, inputs: int = 4, outputs: int = 4) -> nn.Module:
        layers = [self.conv(inputs, outputs), self.norm(outputs), self.activation()]
        if self.random.random() < 0.3 and inputs == outputs:
            layers = [layers[1], layers[2], layers[0]]
        return nn.Sequential(*layers)

    def block(self, depth: int = 0) -> nn.Module:
        kind = self.random.choice(
            ["unit", "unit", "residual", "residual", "concat", "shared", "checkpoint"]
        )
        if depth == 2 or kind == "unit":
            return self.unit()
        if kind == "residual":
            shortcut = self.unit() if self.random.random() < 0.4 else None
            return Residual(self.block(depth + 1), shortcut)
        if kind == "concat":
            return nn.Sequential(Concat(self.block(depth + 1), nn.Identity()), self.unit(8, 4))
        if kind == "shared":
            shared = self.block(depth + 1)
            return nn.Sequential(shared, self.unit(), shared)
        # A checkpoint runs its forward twice, so it contains no running statistics.
        return Checkpointed(nn.Sequential(self.conv(), nn.GroupNorm(2, 4), self.activation()))

    def case(self) -> Case:
        draw = self.random
        blocks = [self.unit(2, 4), *(self.block() for _ in range(draw.choice([1, 2, 2])))]
        model = nn.Sequential(*blocks, self.conv(4, 2))
        if draw.random() < 0.3:
            draw.choice(blocks).requires_grad_(False)
        x = torch.randn(3, 2, *[_SIZES[self.dimensions]] * self.dimensions)
        if draw.random() < 0.3:
            x.requires_grad_()
        every = draw.random() < 0.2
        return Case(model, (x,), newton_of=every_parameter if every else None)


def _register(seed: int) -> None:
    NETS[f"random_{seed}"] = lambda: Draw(seed).case()


for _seed in SEEDS:
    _register(_seed)
