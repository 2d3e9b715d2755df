"""How much a run computes: the shape of its data, and the FLOPs of its network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.cost.flops import FlopCounter
from sgdph.lab.errors import LabError
from sgdph.lab.networks.models import build_model
from sgdph.lab.networks.registry import reads_text


@dataclass(frozen=True)
class Shape:
    """The shape of a set of images, or of windows of text.

    Attributes:
        channels: Channels of an image; for a text, the number of different characters.
        size: Height and width in pixels; for a text, the characters of a window.
        classes: Number of classes.
        train: Number of training images or windows.
        test: Number of test images or windows.
    """

    channels: int
    size: int
    classes: int
    train: int
    test: int


SHAPES: Mapping[str, Shape] = {
    "mnist5k": Shape(1, 28, 10, 1_000, 4_000),
    "digits": Shape(1, 8, 10, 1_297, 500),
    "fashion-mnist": Shape(1, 28, 10, 60_000, 10_000),
    "cifar10": Shape(3, 32, 10, 50_000, 10_000),
    "cifar100": Shape(3, 32, 100, 50_000, 10_000),
    "mini-imagenet": Shape(3, 224, 100, 50_000, 10_000),
    "imagenet": Shape(3, 224, 1_000, 1_281_167, 50_000),
    # Of Python 3.11. The text differs a little between versions.
    "pydoc": Shape(96, 64, 96, 6_734, 531),
}


def shape_of(config: RunConfig) -> Shape:
    """Return the shape of a run's images, with the numbers of images that the run uses.

    Raises:
        LabError: If the data set's shape is not known.
    """
    if config.dataset not in SHAPES:
        raise LabError(
            f"the shape of a data set is known for {', '.join(SHAPES)} only; got --dataset "
            f"{config.dataset}"
        )
    shape = SHAPES[config.dataset]
    train = min(config.train_size or shape.train, shape.train)
    test = shape.test
    if config.validation_size is not None:
        train, test = train - config.validation_size, config.validation_size
    return dataclasses.replace(
        shape, size=config.image_size or shape.size, train=max(1, train), test=test
    )


def image_flops(model: str, shape: Shape) -> float:
    """Count the FLOPs of a network's forward pass on one image, without computing it.

    Returns:
        The FLOPs; infinity if they cannot be counted.
    """
    return _image_flops(model, shape.channels, shape.size, shape.classes)


@cache
def _image_flops(model: str, channels: int, size: int, classes: int) -> float:
    counter = FlopCounter()
    # Nothing here may change the state of the generator that draws a run's weights.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("meta"):
        try:
            network = build_model(model, in_channels=channels, classes=classes).eval()
            if reads_text(model):
                batch = torch.zeros(1, size, dtype=torch.int64)
            else:
                batch = torch.zeros(1, channels, size, size)
            with counter:
                network(batch)
        except Exception:
            # Some networks cannot be built like this. Errors of others are reported by prepare().
            return math.inf
    return float(counter.total)
