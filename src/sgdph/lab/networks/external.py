"""Untrained networks from torchvision and timm, in the forms that the laboratory uses."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sgdph import apply_weight_norm
from sgdph.lab.errors import LabError
from sgdph.lab.networks.registry import TIMM, TORCHVISION
from sgdph.lab.networks.resnet import no_norm, shrink_branches

PLAIN, WEIGHT_NORMED = "-plain", "-wn"
# In training mode, these also return logits of side branches, unless they are built without them.
_WITH_SIDE_BRANCHES = frozenset({"googlenet", "inception_v3"})


def is_external(name: str) -> bool:
    """Return whether a name is that of a torchvision or timm network."""
    return name.startswith((TORCHVISION, TIMM))


def build_torchvision(name: str, in_channels: int, classes: int) -> nn.Module:
    """Build a classification network from torchvision.

    A ResNet's name may end in ``-plain`` or ``-wn``. The network then has no norm layers, its
    convolutions have biases, and each of its ``n`` residual branches starts ``√n`` times smaller.
    With ``-wn`` its convolutions are also weight-normalised. GoogLeNet and Inception are built
    without their side branches.

    Args:
        name: The network's name, without ``torchvision:``.
        in_channels: Channels of the images; must be 3.
        classes: Number of classes.

    Raises:
        LabError: If torchvision has no such network, or the network has no such form.
    """
    from torchvision import models

    base = name.removesuffix(PLAIN).removesuffix(WEIGHT_NORMED)
    known = models.list_models(module=models)
    if base not in known:
        raise LabError(
            f"torchvision has no classification network {base!r}{_similar(base, known)}; "
            "torchvision.models.list_models(module=torchvision.models) lists what it has"
        )
    if in_channels != 3:
        raise LabError(
            f"torchvision's networks take images of 3 channels, but these have {in_channels}. Use "
            f"{TIMM}NAME instead of {TORCHVISION}{name}"
        )
    if base != name:
        return _without_norms(base, classes, weight_norm=name.endswith(WEIGHT_NORMED))
    sides = {"aux_logits": False, "init_weights": True} if base in _WITH_SIDE_BRANCHES else {}
    return cast(nn.Module, models.get_model(base, weights=None, num_classes=classes, **sides))


def _without_norms(name: str, classes: int, *, weight_norm: bool) -> nn.Module:
    from torchvision import models
    from torchvision.models.resnet import BasicBlock, Bottleneck

    with torch.device("meta"):
        known = isinstance(models.get_model(name, weights=None), models.ResNet)
    if not known:
        raise LabError(
            f"only torchvision's ResNets come in the forms {PLAIN} and {WEIGHT_NORMED}; "
            f"{TORCHVISION}{name} does not"
        )
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, norm_layer=no_norm)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
    blocks = [module for module in model.modules() if isinstance(module, (BasicBlock, Bottleneck))]
    shrink_branches(blocks)
    return apply_weight_norm(model, [nn.Conv2d]) if weight_norm else model


def build_timm(name: str, in_channels: int, classes: int) -> nn.Module:
    """Build a network from timm.

    Args:
        name: The network's name, without ``timm:``.
        in_channels: Channels of the images.
        classes: Number of classes.

    Raises:
        LabError: If timm is missing, has no such network, or cannot build it for these channels and
            classes.
    """
    try:
        import timm
    except ImportError as error:
        raise LabError(
            f"{TIMM}{name} comes from timm, which is not installed; install it with "
            "'pip install timm'"
        ) from error
    # A name with a scheme or a slash would fetch a network from elsewhere.
    if ":" in name or "/" in name or not timm.is_model(name):
        raise LabError(
            f"timm has no network {name!r}{_similar(name, timm.list_models())}; "
            "timm.list_models() lists what it has"
        )
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=in_channels
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise LabError(
            f"timm cannot build {name!r} for {in_channels} channels and {classes} classes: {error}"
        ) from error
    return model


def _similar(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f" (perhaps {' or '.join(close)})" if close else ""


@torch.no_grad()
def check_output(name: str, model: nn.Module, images: Tensor, classes: int) -> None:
    """Raise LabError unless a network from elsewhere maps a data set's images to logits.

    Args:
        name: The network's name, for the message.
        model: The network. Its training mode is restored.
        images: Some images ``(N, C, H, W)``, on the network's device.
        classes: Number of classes.
    """
    training = model.training
    model.eval()
    try:
        logits = model(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise LabError(
            f"--model {name} does not take images of {'x'.join(map(str, images.shape[1:]))}: "
            f"{str(error).strip() or type(error).__name__}"
        ) from error
    finally:
        model.train(training)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (len(images), classes):
        raise LabError(
            f"--model {name} must make logits {(len(images), classes)} of {len(images)} images; "
            f"it made {found}; take a network that classifies images"
        )
