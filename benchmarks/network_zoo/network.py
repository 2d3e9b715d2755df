"""What the zoo holds: a network of another package, and how to make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Built(NamedTuple):
    """A network, and a batch for it.

    Attributes:
        name: As its package names it, with what was changed to make it small.
        model: The network, in training mode.
        inputs: Tensors, in any nest of tuples, lists and dicts. Those of real numbers get the
            network's dtype.
        loss: Runs the network on the inputs, once.
    """

    name: str
    model: nn.Module
    inputs: Any
    loss: Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        package: Where it is from.
        family: Its name in the zoo, unique in the package.
        build: Makes it.
    """

    package: str
    family: str
    build: Callable[[], Built]

    @property
    def key(self) -> str:
        """What it is chosen by."""
        return f"{self.package}/{self.family}"


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """Cross-entropy of scores, summed over a network's outputs where there are several.

    Args:
        output: Scores with the classes in the second dimension; or several in a tuple, list or
            dict, as auxiliary classifiers have them.
        labels: One for each image, or one for each pixel.
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
    """Draw square images."""
    return torch.randn(batch, 3, size, size)
