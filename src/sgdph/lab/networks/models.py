"""The networks, by name.

Each ResNet and VGG comes in three forms. Short names mean the usual one: batch norm in ResNets,
no norm in the VGGs.

| name | form |
|---|---|
| ``resnet8`` or ``resnet8-bn``; ``vgg11-bn`` | batch norm |
| ``resnet8-plain``; ``vgg11`` or ``vgg11-plain`` | no norm layers; convolutions with bias |
| ``resnet8-wn``; ``vgg11-wn`` | as plain, and weight-normalised |

Parameters at 3 channels and 10 classes. ``c`` output channels of a convolution cost 2 c in batch
norm (scale, shift), c without a norm (bias) and 2 c under weight norm (length, bias), so that the
forms with batch norm and with weight norm are of one size.

| network | batch norm, weight norm | plain |
|---|---|---|
| ``resnet8``: :mod:`sgdph.lab.networks.resnet`, 6 n + 2 layers, n = 1 | 75,290 | 75,050 |
| ``resnet20``: n = 3 | 269,722 | 269,034 |
| ``resnet56``: n = 9 | 853,018 | 850,986 |
| ``resnet18``: four stages | 11,173,962 | 11,169,162 |
| ``resnet50``: four stages of bottlenecks | 23,520,842 | 23,494,282 |
| ``vgg8``: a convolution a stage, a quarter as wide | 246,682 | 246,314 |
| ``vgg11``: :mod:`sgdph.lab.networks.vgg` | 9,228,362 | 9,225,610 |
| ``vgg19`` | 20,035,018 | 20,029,514 |
| ``vgg19-narrow``: an eighth as wide | 315,010 | 314,322 |

Others: ``resnet8-gn`` (group norm of 8 groups), ``resnet8-in`` (instance norm with scale and
shift), ``resnet8-ln`` (layer norm over channels and pixels, but scale and shift per channel), all
of 75,290 parameters; ``transformer`` (:mod:`sgdph.lab.networks.transformer`) for text, 25,440 at 96
characters; ``torchvision:NAME`` and ``timm:NAME`` (:mod:`sgdph.lab.networks.external`).

``-wn`` networks have weight-normalised convolutions and a plain linear layer: the paper speaks of
convolutions alone, and batch norm does not stand behind the last layer either. They start as the
same function of the image as the plain network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from torch import nn

from sgdph import apply_weight_norm
from sgdph.lab.networks.external import build_timm, build_torchvision
from sgdph.lab.networks.names import TIMM, TORCHVISION, canonical, check_model
from sgdph.lab.networks.resnet import BasicBlock, Bottleneck, ResNet, no_norm
from sgdph.lab.networks.transformer import Transformer
from sgdph.lab.networks.vgg import VGG

# The networks that take windows of text.
TEXT_NETWORKS = frozenset({"transformer"})


Make: TypeAlias = Callable[..., nn.Module]
"""Makes a network for so many input channels and classes."""


def _cifar_resnet(n: int) -> Make:
    return partial(
        ResNet,
        stem=16,
        widths=(16, 32, 64),
        blocks=(n, n, n),
        block=BasicBlock,
        projection=False,
    )


def _layer_norm(channels: int) -> nn.Module:
    # One group is all channels and pixels of an image. torch's LayerNorm would have a scale per
    # pixel, which is not channel-wise.
    return nn.GroupNorm(1, channels)


def _weight_normed(make: Make) -> Make:
    return lambda in_channels, classes: apply_weight_norm(make(in_channels, classes), [nn.Conv2d])


def _forms(name: str, normed: Make, plain: Make) -> dict[str, Make]:
    forms = {f"{name}-bn": normed, f"{name}-plain": plain, f"{name}-wn": _weight_normed(plain)}
    return {canonical(form): make for form, make in forms.items()}


_IMAGENET_LIKE = partial(ResNet, stem=64, projection=True)

_RESNETS: Mapping[str, Make] = {
    "resnet8": _cifar_resnet(1),
    "resnet20": _cifar_resnet(3),
    "resnet56": _cifar_resnet(9),
    "resnet18": partial(
        _IMAGENET_LIKE, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), block=BasicBlock
    ),
    "resnet50": partial(
        _IMAGENET_LIKE, widths=(256, 512, 1024, 2048), blocks=(3, 4, 6, 3), block=Bottleneck
    ),
}
_VGGS: Mapping[str, Make] = {
    "vgg8": partial(VGG, convolutions=(1, 1, 1, 1, 1), widths=(16, 32, 64, 128, 128)),
    "vgg11": partial(VGG, convolutions=(1, 1, 2, 2, 2)),
    "vgg19": partial(VGG, convolutions=(2, 2, 4, 4, 4)),
    "vgg19-narrow": partial(VGG, convolutions=(2, 2, 4, 4, 4), widths=(8, 16, 32, 64, 64)),
}

_NETWORKS: dict[str, Make] = {
    "resnet8-gn": partial(_RESNETS["resnet8"], norm=partial(nn.GroupNorm, 8)),
    "resnet8-in": partial(_RESNETS["resnet8"], norm=partial(nn.InstanceNorm2d, affine=True)),
    "resnet8-ln": partial(_RESNETS["resnet8"], norm=_layer_norm),
    "transformer": lambda characters, classes: Transformer(classes),
}
for _name, _make in _RESNETS.items():
    _NETWORKS |= _forms(_name, _make, partial(_make, norm=no_norm))
for _name, _make in _VGGS.items():
    _NETWORKS |= _forms(_name, partial(_make, batch_norm=True), partial(_make, batch_norm=False))


def build_model(name: str, *, in_channels: int, classes: int) -> nn.Module:
    """Build a freshly initialised network; the weights come from torch's global generator.

    Args:
        name: One of the module's table.
        in_channels: Channels of the images; the number of characters of a text.
        classes: Number of classes, at least 2.

    Returns:
        A module from ``(N, in_channels, H, W)`` to ``(N, classes)``; for a text from ``(N, T)`` to
        ``(N, classes, T)``.

    Raises:
        LabError: If the name is unknown, or torchvision's or timm's network cannot be had like
            that.
    """
    check_model(name)
    if name.startswith(TORCHVISION):
        return build_torchvision(name.removeprefix(TORCHVISION), in_channels, classes)
    if name.startswith(TIMM):
        return build_timm(name.removeprefix(TIMM), in_channels, classes)
    return _NETWORKS[canonical(name)](in_channels, classes)
