"""Residual networks for small images, with batch norm.

* ``resnet8`` and ``resnet20``: the CIFAR family with ``6 n + 2`` layers, 16/32/64 channels and
  parameter-free shortcuts (zero-padded channels), n = 1 and 3 (He, Zhang, Ren & Sun, "Deep Residual
  Learning for Image Recognition", CVPR 2016, section 4.2).
* ``resnet18``: the ImageNet network's four stages behind a 3x3 stem of stride 1 and without the max
  pool, as is usual for 32x32 images; 11,173,962 parameters with 3 channels and 10 classes.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.config import LabError


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: every second pixel, and zeros for the missing channels.

    It halves height and width (rounding up) and adds ``extra_channels`` channels, half of them in
    front.
    """

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.front = extra_channels // 2
        self.back = extra_channels - self.front

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C + extra_channels, ceil(H / 2), ceil(W / 2))``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.back))


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A 1x1 convolution with batch norm (He et al., 2016, option B)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm, beside a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of :class:`BasicBlock`, the mean over pixels and one linear layer.

    Args:
        in_channels: Channels of the images.
        classes: Number of classes.
        widths: Channels of each stage; every stage but the first halves the resolution.
        blocks: Blocks in each stage.
        projection: Whether a changed shape passes a 1x1 convolution or :class:`PaddedShortcut`.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        widths: tuple[int, ...],
        blocks: int,
        projection: bool,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        previous = widths[0]
        for index, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                shortcut: nn.Module = nn.Identity()
                if stride != 1 or width != previous:
                    shortcut = (
                        projection_shortcut(previous, width, stride)
                        if projection
                        else PaddedShortcut(width - previous)
                    )
                stages.append(BasicBlock(previous, width, stride, shortcut))
                previous = width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(previous, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_channels, H, W)`` to logits ``(N, classes)``."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.blocks(x)
        # The mean, not adaptive_avg_pool2d, whose backward on CUDA is not deterministic.
        return cast(Tensor, self.fc(x.mean((2, 3))))


def initialise(module: nn.Module) -> None:
    """Draw convolutions from He's normal distribution, fan-out mode (He et al., ICCV 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


_FAMILIES: dict[str, dict[str, Any]] = {
    "resnet8": {"widths": (16, 32, 64), "blocks": 1, "projection": False},
    "resnet20": {"widths": (16, 32, 64), "blocks": 3, "projection": False},
    "resnet18": {"widths": (64, 128, 256, 512), "blocks": 2, "projection": True},
}


def build_model(name: str, *, in_channels: int, classes: int) -> nn.Module:
    """Build a freshly initialised network; the weights come from torch's global generator.

    Args:
        name: ``"resnet8"``, ``"resnet20"`` or ``"resnet18"``.
        in_channels: Channels of the images.
        classes: Number of classes, at least 2.

    Returns:
        A module from ``(N, in_channels, H, W)`` to ``(N, classes)``.

    Raises:
        LabError: If the name is unknown.
    """
    if name not in _FAMILIES:
        raise LabError(f"model must be one of {', '.join(_FAMILIES)}; got {name!r}")
    return ResNet(in_channels, classes, **_FAMILIES[name])
