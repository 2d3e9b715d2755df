"""The networks, by name.

| name | network | parameters (3 channels, 10 classes) |
|---|---|---|
| ``resnet8`` | :mod:`sgdph.lab.resnet`, 6 n + 2 layers, n = 1 | 75,290 |
| ``resnet8-gn`` | group norm of 8 groups in place of batch norm | 75,290 |
| ``resnet8-in`` | instance norm with scale and shift | 75,290 |
| ``resnet8-ln`` | layer norm over channels and pixels, but scale and shift per channel | 75,290 |
| ``resnet8-wn`` | no norm layers; convolutions with bias, weight-normalised | 75,290 |
| ``resnet20`` | n = 3 | 269,722 |
| ``resnet56`` | n = 9 | 853,018 |
| ``resnet18`` | :mod:`sgdph.lab.resnet`, four stages | 11,173,962 |
| ``resnet50`` | four stages of bottlenecks | 23,520,842 |
| ``vgg11-bn`` | :mod:`sgdph.lab.vgg` | 9,228,362 |
| ``vgg19-bn`` | | 20,035,018 |
| ``vgg11``, ``vgg19`` | no norm layers; convolutions with bias | 9,225,610, 20,029,514 |
| ``vgg11-wn``, ``vgg19-wn`` | the same, weight-normalised | 9,228,362, 20,035,018 |
| ``transformer`` | :mod:`sgdph.lab.transformer`, for text | 24,544 (96 characters) |
| ``torchvision:NAME`` | torchvision's network of that name, untrained | its own |

``-wn`` networks have weight-normalised convolutions and a plain linear layer: the paper speaks of
convolutions alone, and batch norm does not stand behind the last layer either. They start as the
same function of the image as the network without weight norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from torch import nn

from sgdph import apply_weight_norm
from sgdph.lab.config import TORCHVISION, LabError
from sgdph.lab.resnet import BasicBlock, Bottleneck, Norm, ResNet, no_norm
from sgdph.lab.transformer import Transformer
from sgdph.lab.vgg import VGG

# The networks that take windows of text.
TEXT_NETWORKS = frozenset({"transformer"})


Make: TypeAlias = Callable[[int, int], nn.Module]
"""Makes a network for so many input channels and classes."""


def _cifar_resnet(n: int, norm: Norm = nn.BatchNorm2d) -> Make:
    return partial(
        ResNet,
        stem=16,
        widths=(16, 32, 64),
        blocks=(n, n, n),
        block=BasicBlock,
        projection=False,
        norm=norm,
    )


def _layer_norm(channels: int) -> nn.Module:
    # One group is all channels and pixels of an image. torch's LayerNorm would have a scale per
    # pixel, which is not channel-wise.
    return nn.GroupNorm(1, channels)


def _weight_normed(make: Make) -> Make:
    return lambda in_channels, classes: apply_weight_norm(make(in_channels, classes), [nn.Conv2d])


_IMAGENET_LIKE = partial(ResNet, stem=64, projection=True)

_VGG11 = partial(VGG, convolutions=(1, 1, 2, 2, 2))
_VGG19 = partial(VGG, convolutions=(2, 2, 4, 4, 4))

_NETWORKS: Mapping[str, Make] = {
    "resnet8": _cifar_resnet(1),
    "resnet8-gn": _cifar_resnet(1, partial(nn.GroupNorm, 8)),
    "resnet8-in": _cifar_resnet(1, partial(nn.InstanceNorm2d, affine=True)),
    "resnet8-ln": _cifar_resnet(1, _layer_norm),
    "resnet8-wn": _weight_normed(_cifar_resnet(1, no_norm)),
    "resnet20": _cifar_resnet(3),
    "resnet56": _cifar_resnet(9),
    "resnet18": partial(
        _IMAGENET_LIKE, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), block=BasicBlock
    ),
    "resnet50": partial(
        _IMAGENET_LIKE, widths=(256, 512, 1024, 2048), blocks=(3, 4, 6, 3), block=Bottleneck
    ),
    "vgg11": partial(_VGG11, batch_norm=False),
    "vgg11-bn": partial(_VGG11, batch_norm=True),
    "vgg11-wn": _weight_normed(partial(_VGG11, batch_norm=False)),
    "vgg19": partial(_VGG19, batch_norm=False),
    "vgg19-bn": partial(_VGG19, batch_norm=True),
    "vgg19-wn": _weight_normed(partial(_VGG19, batch_norm=False)),
    "transformer": lambda characters, classes: Transformer(classes),
}


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
        LabError: If the name is unknown, or torchvision's network does not take that many channels.
    """
    if name.startswith(TORCHVISION):
        return _from_torchvision(name.removeprefix(TORCHVISION), in_channels, classes)
    if name not in _NETWORKS:
        raise LabError(
            f"model must be one of {', '.join(_NETWORKS)} or {TORCHVISION}NAME; got {name!r}"
        )
    return _NETWORKS[name](in_channels, classes)


def _from_torchvision(name: str, in_channels: int, classes: int) -> nn.Module:
    if in_channels != 3:
        raise LabError(
            f"torchvision's networks take images of 3 channels; {TORCHVISION}{name} cannot take "
            f"{in_channels}"
        )
    from torchvision.models import get_model

    try:
        model: nn.Module = get_model(name, weights=None, num_classes=classes)
    except (TypeError, ValueError) as error:
        raise LabError(
            f"torchvision has no network {name!r} with a number of classes ({error}); "
            "torchvision.models.list_models() lists what it has"
        ) from error
    return model
