"""An entry of the network zoo: a network from another package, and how to build it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Built(NamedTuple):
    """A network with a batch.

    Attributes:
        name: Its name in the package, with the changes that make it small.
        model: The network, in training mode.
        inputs: Tensors, nested in tuples, lists and dicts. Floating-point tensors get the network's
            dtype.
        loss: Runs the network on the inputs once, and returns the loss.
    """

    name: str
    model: nn.Module
    inputs: Any
    loss: Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        package: The package that it is from.
        family: Its name in the zoo, unique in the package.
        build: Builds the network and a batch.
    """

    package: str
    family: str
    build: Callable[[], Built]

    @property
    def key(self) -> str:
        """The key that selects this network."""
        return f"{self.package}/{self.family}"


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """Return the cross-entropy of scores, summed over all outputs if there are several.

    Args:
        output: Scores, with the classes in the second dimension. Or several scores in a tuple, list
            or dict, for networks with auxiliary classifiers.
        labels: One label for each image, or one for each pixel.
    """
    if isinstance(output, Tensor):
        return nn.functional.cross_entropy(output, labels)
    outputs = output.values() if isinstance(output, dict) else output
    losses = [cross_entropy(each, labels) for each in outputs if each is not None]
    return torch.stack(losses).sum()


def classification(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of an image classifier on images and labels."""
    images, labels = inputs
    return cross_entropy(model(images), labels)


def images(size: int, batch: int = 2) -> Tensor:
    """Draw random square images ``(batch, 3, size, size)``."""
    return torch.randn(batch, 3, size, size)
