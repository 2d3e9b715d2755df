"""The laboratory's own networks: each by name, with its label and how it is built.

Every network is defined only here. This module does not import torch, so that a command's help is
fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sgdph.lab.errors import LabError, unknown_name

# Prefixes of the names of other libraries' networks.
TORCHVISION, TIMM = "torchvision:", "timm:"


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        label: What tables and plots call it.
        constructor: Dotted path of its constructor, which takes the input channels and classes.
        arguments: The constructor's other arguments, by name.
        weight_norm: Whether its convolutions are weight-normalised.
        reads_text: Whether it takes windows of text instead of images.
    """

    label: str
    constructor: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weight_norm: bool = False
    reads_text: bool = False


_CIFAR_RESNET = "sgdph.lab.networks.resnet.cifar_resnet"
_IMAGENET_RESNET = "sgdph.lab.networks.resnet.imagenet_resnet"
_VGG = "sgdph.lab.networks.vgg.VGG"

# Networks that come in three forms, grouped by the usual form: ResNets have batch norm, the
# original VGGs have none.
_RESNETS: Mapping[str, Network] = {
    "resnet8": Network("ResNet8", _CIFAR_RESNET, {"blocks": 1}),
    "resnet20": Network("ResNet20", _CIFAR_RESNET, {"blocks": 3}),
    "resnet56": Network("ResNet56", _CIFAR_RESNET, {"blocks": 9}),
    "resnet18": Network("ResNet18", _IMAGENET_RESNET, {"blocks": (2, 2, 2, 2)}),
    "resnet50": Network("ResNet50", _IMAGENET_RESNET, {"blocks": (3, 4, 6, 3), "bottleneck": True}),
}
_VGGS: Mapping[str, Network] = {
    "vgg8": Network(
        "VGG8", _VGG, {"convolutions": (1, 1, 1, 1, 1), "widths": (16, 32, 64, 128, 128)}
    ),
    "vgg11": Network("VGG11", _VGG, {"convolutions": (1, 1, 2, 2, 2)}),
    "vgg19": Network("VGG19", _VGG, {"convolutions": (2, 2, 4, 4, 4)}),
    "vgg19-narrow": Network(
        "VGG19-NARROW", _VGG, {"convolutions": (2, 2, 4, 4, 4), "widths": (8, 16, 32, 64, 64)}
    ),
}
_OTHERS: Mapping[str, Network] = {
    "resnet8-gn": Network("ResNet8-GN", _CIFAR_RESNET, {"blocks": 1, "norm": "group"}),
    "resnet8-in": Network("ResNet8-IN", _CIFAR_RESNET, {"blocks": 1, "norm": "instance"}),
    "resnet8-ln": Network("ResNet8-LN", _CIFAR_RESNET, {"blocks": 1, "norm": "layer"}),
    "transformer": Network(
        "Transformer", "sgdph.lab.networks.transformer.for_characters", reads_text=True
    ),
}

# With batch norm, without any norm, and with weight norm instead.
FORMS = ("-bn", "-plain", "-wn")


def _forms(name: str, network: Network, usual: str) -> dict[str, Network]:
    """Return a network's three forms by name; the name of the usual form has no suffix."""

    def form(suffix: str, norm: str, *, weight_norm: bool = False) -> Network:
        return replace(
            network,
            label=network.label if suffix == usual else network.label + suffix.upper(),
            arguments={**network.arguments, "norm": norm},
            weight_norm=weight_norm,
        )

    forms = {
        "-bn": form("-bn", "batch"),
        "-plain": form("-plain", "none"),
        "-wn": form("-wn", "none", weight_norm=True),
    }
    return {name: forms.pop(usual), **{name + suffix: each for suffix, each in forms.items()}}


NETWORKS: dict[str, Network] = {}
for _name, _network in _RESNETS.items():
    NETWORKS |= _forms(_name, _network, "-bn")
for _name, _network in _VGGS.items():
    NETWORKS |= _forms(_name, _network, "-plain")
NETWORKS |= _OTHERS

# Explicit name of the usual form to its short name.
ALIASES = {
    **{f"{name}-bn": name for name in _RESNETS},
    **{f"{name}-plain": name for name in _VGGS},
}
# The names as the help shows them.
PATTERNS = ("{" + ",".join([*_RESNETS, *_VGGS]) + "}[" + ",".join(FORMS) + "]", *_OTHERS)


def canonical(name: str) -> str:
    """Return the shorter of a network's two names, so that both names mean the same run."""
    return ALIASES.get(name, name)


def reads_text(name: str) -> bool:
    """Return whether the network with a canonical name takes windows of text."""
    return name in NETWORKS and NETWORKS[name].reads_text


def check_model(name: str) -> None:
    """Raise LabError unless a name is one of our networks or has the prefix of another library."""
    if canonical(name) not in NETWORKS and not name.startswith((TORCHVISION, TIMM)):
        listed = (
            f"docs/optimizers-and-models.md lists them; {TORCHVISION}NAME and {TIMM}NAME go too"
        )
        raise LabError(unknown_name("network", name, (*NETWORKS, *ALIASES), listed))
