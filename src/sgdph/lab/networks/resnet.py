"""Residual networks for small images, with batch norm, another norm, or none.

* ``6 n + 2`` layers, 16/32/64 channels and parameter-free shortcuts (zero-padded channels): the
  CIFAR family of He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
  section 4.2.
* The four stages of the ImageNet networks after a 3x3 stem of stride 1, without the max pool, as is
  usual for 32x32 images.

All norm layers are called ``bn``, whatever their kind, as in torchvision's networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

Norm: TypeAlias = Callable[[int], nn.Module]
"""Makes a norm layer for so many channels."""


def no_norm(channels: int) -> nn.Module:
    """Make an identity in place of a norm layer; the convolution before it then has a bias."""
    return nn.Identity()


def layer_norm(channels: int) -> nn.Module:
    """Make a layer norm over channels and pixels, with scale and shift per channel."""
    # One group covers all channels and pixels of an image. torch's LayerNorm would have a scale
    # per pixel, which is not channel-wise.
    return nn.GroupNorm(1, channels)


NORMS: Mapping[str, Norm] = {
    "batch": nn.BatchNorm2d,
    "group": partial(nn.GroupNorm, 8),
    "instance": partial(nn.InstanceNorm2d, affine=True),
    "layer": layer_norm,
    "none": no_norm,
}


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: every second pixel, and zeros for the missing channels.

    It halves height and width (rounding up) and adds ``extra_channels`` channels, half of them
    before the existing ones.
    """

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.front = extra_channels // 2
        self.back = extra_channels - self.front

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C + extra_channels, ceil(H / 2), ceil(W / 2))``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.back))


def projection_shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Module:
    """Make a 1x1 convolution followed by its norm (He et al., 2016, option B)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=norm is no_norm),
        norm(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with its norm, beside a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module, norm: Norm
    ) -> None:
        super().__init__()
        bias = norm is no_norm
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)
        self.bn1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.bn2 = norm(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with its norm, beside a shortcut.

    The 3x3 convolution has the stride, as in torchvision's networks.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module, norm: Norm
    ) -> None:
        super().__init__()
        bias = norm is no_norm
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=bias)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=bias)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=bias)
        self.bn3 = norm(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of blocks, the mean over pixels and one linear layer.

    Args:
        in_channels: Channels of the images.
        classes: Number of classes.
        stem: Channels after the first convolution.
        widths: Channels of each stage; every stage but the first halves the resolution.
        blocks: Blocks in each stage.
        block: Class of the blocks.
        projection: Whether shortcuts that change the shape are 1x1 convolutions; otherwise they are
            :class:`PaddedShortcut`.
        norm: Makes the norm layers. With :func:`no_norm` the convolutions have biases, which start
            at zero, and the last convolution of each of ``n`` blocks starts ``√n`` times smaller.
            Otherwise the variance would roughly double with every block.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        stem: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        block: type[BasicBlock] | type[Bottleneck],
        projection: bool,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, stem, 3, padding=1, bias=norm is no_norm)
        self.bn = norm(stem)
        stages: list[nn.Module] = []
        previous = stem
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for place in range(count):
                stride = 2 if index > 0 and place == 0 else 1
                shortcut: nn.Module = nn.Identity()
                if stride != 1 or width != previous:
                    shortcut = (
                        projection_shortcut(previous, width, stride, norm)
                        if projection
                        else PaddedShortcut(width - previous)
                    )
                stages.append(block(previous, width, stride, shortcut, norm))
                previous = width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(previous, classes)
        self.apply(initialise)
        if norm is no_norm:
            shrink_branches(stages)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_channels, H, W)`` to logits ``(N, classes)``."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.blocks(x)
        # Not adaptive_avg_pool2d, because its backward on CUDA is not deterministic.
        return cast(Tensor, self.fc(x.mean((2, 3))))


def cifar_resnet(in_channels: int, classes: int, *, blocks: int, norm: str = "batch") -> ResNet:
    """Make the CIFAR network of ``6 blocks + 2`` layers; ``norm`` is one of :data:`NORMS`."""
    return ResNet(
        in_channels,
        classes,
        stem=16,
        widths=(16, 32, 64),
        blocks=(blocks,) * 3,
        block=BasicBlock,
        projection=False,
        norm=NORMS[norm],
    )


def imagenet_resnet(
    in_channels: int,
    classes: int,
    *,
    blocks: tuple[int, ...],
    bottleneck: bool = False,
    norm: str = "batch",
) -> ResNet:
    """Make the ImageNet network of four stages; ``norm`` is one of :data:`NORMS`."""
    wider = 4 if bottleneck else 1
    return ResNet(
        in_channels,
        classes,
        stem=64,
        widths=(64 * wider, 128 * wider, 256 * wider, 512 * wider),
        blocks=blocks,
        block=Bottleneck if bottleneck else BasicBlock,
        projection=True,
        norm=NORMS[norm],
    )


def initialise(module: nn.Module) -> None:
    """Draw a convolution from He's normal distribution, fan-out mode (He et al., ICCV 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def shrink_branches(blocks: Sequence[nn.Module]) -> None:
    """Divide the weight of the last convolution of each of ``n`` blocks by ``√n``.

    The variance then grows by ``(1 + 1 / n)^n < e`` over all blocks, instead of ``2^n`` (Hanin &
    Rolnick, "How to start training", NeurIPS 2018, on summable residual scales). The blocks may be
    ours or torchvision's.
    """
    for block in blocks:
        last = cast(nn.Conv2d, block.conv3 if hasattr(block, "conv3") else block.conv2)
        last.weight /= len(blocks) ** 0.5
