"""The networks, by name.

| name | network | parameters (3 channels, 10 classes) |
|---|---|---|
| ``resnet8`` | :mod:`sgdph.lab.resnet`, 6 n + 2 layers, n = 1 | 75,290 |
| ``resnet20`` | n = 3 | 269,722 |
| ``resnet56`` | n = 9 | 853,018 |
| ``resnet18`` | :mod:`sgdph.lab.resnet`, four stages | 11,173,962 |
| ``resnet50`` | four stages of bottlenecks | 23,520,842 |
| ``vgg11-bn`` | :mod:`sgdph.lab.vgg` | 9,228,362 |
| ``vgg19-bn`` | | 20,035,018 |
| ``transformer`` | :mod:`sgdph.lab.transformer`, for text | 24,544 (96 characters) |
| ``torchvision:NAME`` | torchvision's network of that name, untrained | its own |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from sgdph.lab.config import LabError
from sgdph.lab.resnet import BasicBlock, Bottleneck, ResNet
from sgdph.lab.transformer import Transformer
from sgdph.lab.vgg import VGG

# The networks that take windows of text.
TEXT_NETWORKS = frozenset({"transformer"})
TORCHVISION = "torchvision:"


def _cifar_resnet(n: int) -> Callable[[int, int], nn.Module]:
    return partial(
        ResNet, stem=16, widths=(16, 32, 64), blocks=(n, n, n), block=BasicBlock, projection=False
    )


_IMAGENET_LIKE = partial(ResNet, stem=64, projection=True)

_NETWORKS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "resnet8": _cifar_resnet(1),
    "resnet20": _cifar_resnet(3),
    "resnet56": _cifar_resnet(9),
    "resnet18": partial(
        _IMAGENET_LIKE, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), block=BasicBlock
    ),
    "resnet50": partial(
        _IMAGENET_LIKE, widths=(256, 512, 1024, 2048), blocks=(3, 4, 6, 3), block=Bottleneck
    ),
    "vgg11-bn": partial(VGG, convolutions=(1, 1, 2, 2, 2)),
    "vgg19-bn": partial(VGG, convolutions=(2, 2, 4, 4, 4)),
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
