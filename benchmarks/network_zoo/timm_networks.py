"""The smallest network of each family in timm. A family is a module of timm."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from network_zoo.network import Built, Network, classification, images

CLASSES = 5
# Image sizes to try, the smallest first. The network's own size is tried last.
SIZES = (64, 96, 128, 160, 192, 224)
# Families whose smallest network is still large. They get fewer blocks of the same kind.
SHALLOW: dict[str, dict[str, Any]] = {
    "deepseek_vit": {"depth": 2},
    "gemma4_vit": {"depth": 2},
    "qwen3_vit": {"depth": 2},
}


def networks() -> Iterator[Network]:
    """Yield one network of each family."""
    import timm

    for family in timm.list_modules():
        if timm.list_models(module=family):
            yield Network("timm", family, functools.partial(build, family))


def smallest(family: str) -> str:
    """Return the name of the network with the fewest parameters in a family."""
    import timm

    sizes = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            model = timm.create_model(name)
        sizes[name] = sum(p.numel() for p in model.parameters())
    return min(sizes, key=lambda name: (sizes[name], name))


def build(family: str) -> Built:
    """Build a family's smallest network, for the smallest images that it accepts."""
    name = smallest(family)
    changes = SHALLOW.get(family, {})
    model, size = _fitted(name, changes)
    shown = ", ".join(f"{key}={value}" for key, value in changes.items())
    labels = torch.randint(CLASSES, (2,))
    shown = f"{name} ({shown})" if shown else name
    return Built(shown, model, (images(size), labels), classification)


def _fitted(name: str, changes: dict[str, Any]) -> tuple[nn.Module, int]:
    import timm

    own = timm.get_pretrained_cfg(name).input_size[-1]
    for size in (*(each for each in SIZES if each < own), own):
        # If the network depends on the image size, the size is an argument.
        for arguments in ({"img_size": size}, {}):
            try:
                torch.manual_seed(0)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = timm.create_model(name, num_classes=CLASSES, **changes, **arguments)
                with torch.no_grad():
                    model.train()(images(size))
            except Exception:
                if (size, arguments) == (own, {}):
                    raise
                continue
            torch.manual_seed(0)
            # Built again, because the trial has changed batch norm's statistics.
            return timm.create_model(name, num_classes=CLASSES, **changes, **arguments), size
    raise AssertionError("the last trial returns or raises")
