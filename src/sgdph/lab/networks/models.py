"""Construction of the networks in :mod:`sgdph.lab.networks.registry`, and of other libraries.

Each ResNet and VGG comes in three forms. The short name means the usual form: batch norm for
ResNets, no norm for VGGs.

| name | form |
|---|---|
| ``resnet8`` or ``resnet8-bn``; ``vgg11-bn`` | batch norm |
| ``resnet8-plain``; ``vgg11`` or ``vgg11-plain`` | no norm layers; convolutions with bias |
| ``resnet8-wn``; ``vgg11-wn`` | as plain, and weight-normalised |

Number of parameters with 3 channels and 10 classes. For ``c`` output channels of a convolution,
batch norm adds 2 c parameters (scale, shift), no norm adds c (bias), and weight norm adds 2 c
(length, bias). So the forms with batch norm and with weight norm have the same size.

| network | batch norm, weight norm | plain |
|---|---|---|
| ``resnet8``: :mod:`sgdph.lab.networks.resnet`, 6 n + 2 layers, n = 1 | 75,290 | 75,050 |
| ``resnet20``: n = 3 | 269,722 | 269,034 |
| ``resnet56``: n = 9 | 853,018 | 850,986 |
| ``resnet18``: four stages | 11,173,962 | 11,169,162 |
| ``resnet50``: four stages of bottlenecks | 23,520,842 | 23,494,282 |
| ``vgg8``: one convolution per stage, a quarter as wide | 246,682 | 246,314 |
| ``vgg11``: :mod:`sgdph.lab.networks.vgg` | 9,228,362 | 9,225,610 |
| ``vgg19`` | 20,035,018 | 20,029,514 |
| ``vgg19-narrow``: an eighth as wide | 315,010 | 314,322 |

Other networks:

* ``resnet8-gn`` (group norm with 8 groups), ``resnet8-in`` (instance norm with scale and shift) and
  ``resnet8-ln`` (layer norm over channels and pixels, with scale and shift per channel); each has
  75,290 parameters.
* ``transformer`` (:mod:`sgdph.lab.networks.transformer`) for text; 25,440 parameters with 96
  characters.
* ``torchvision:NAME`` and ``timm:NAME`` (:mod:`sgdph.lab.networks.external`).

``-wn`` networks have weight-normalised convolutions and a plain linear layer, because the paper
mentions only convolutions, and batch norm does not follow the last layer either. They start as the
same function of the image as the plain network.
"""

from __future__ import annotations

from pkgutil import resolve_name

from torch import nn

from sgdph import apply_weight_norm
from sgdph.lab.networks.external import build_timm, build_torchvision
from sgdph.lab.networks.registry import NETWORKS, TIMM, TORCHVISION, canonical, check_model


def build_model(name: str, *, in_channels: int, classes: int) -> nn.Module:
    """Build a newly initialised network, with weights from torch's global generator.

    Args:
        name: One of the names in the module's docstring.
        in_channels: Channels of the images; for a text, the number of characters.
        classes: Number of classes, at least 2.

    Returns:
        A module from ``(N, in_channels, H, W)`` to ``(N, classes)``; for a text, from ``(N, T)`` to
        ``(N, classes, T)``.

    Raises:
        LabError: If the name is unknown, or torchvision or timm cannot build the network for these
            channels and classes.
    """
    check_model(name)
    if name.startswith(TORCHVISION):
        return build_torchvision(name.removeprefix(TORCHVISION), in_channels, classes)
    if name.startswith(TIMM):
        return build_timm(name.removeprefix(TIMM), in_channels, classes)
    network = NETWORKS[canonical(name)]
    model: nn.Module = resolve_name(network.constructor)(in_channels, classes, **network.arguments)
    return apply_weight_norm(model, [nn.Conv2d]) if network.weight_norm else model
