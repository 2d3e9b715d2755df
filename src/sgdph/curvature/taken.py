"""Curvature as it was taken from one loss, and the graph that it was taken from."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from torch import Tensor

from sgdph.autograd.graph import Node
from sgdph.curvature.grad_scaler import LossFactors

_OWNER = "sgdph.owner"


class _Owner:
    """A marker in the metadata of a node, which lives as long as the node."""


class Owner:
    """A weak reference to a graph. Nodes themselves cannot have weak references.

    Args:
        node: A node of the graph, the one nearest to a parameter. Losses that are computed from the
            same output share it. ``None`` for curvature without a graph.
        loss: The loss.
    """

    def __init__(self, node: Node | None, loss: Tensor | None = None) -> None:
        self._reference = _reference_to(node)
        self._end = _reference_to(None if loss is None else loss.grad_fn)
        # One node may produce several losses.
        self._place = 0 if loss is None else loss.output_nr

    @property
    def has_graph(self) -> bool:
        """Whether the curvature was taken from a graph, and not from differences."""
        return self._reference is not None

    def is_gone(self) -> bool:
        """Return whether no backward can run through that graph any more."""
        return self._reference is None or self._reference() is None

    def is_of_loss(self, loss: Tensor) -> bool:
        """Return whether the graph is that of this loss."""
        own, end = None if self._end is None else self._end(), loss.grad_fn
        if own is None or end is None or loss.output_nr != self._place:
            return False
        metadata: Any = end.metadata
        return metadata.get(_OWNER) is own


def _reference_to(node: Node | None) -> weakref.ref[_Owner] | None:
    return None if node is None else weakref.ref(node.metadata.setdefault(_OWNER, _Owner()))


class Taken(NamedTuple):
    """Curvature as it was taken, not yet divided by a scale.

    Attributes:
        curvature: A tensor shaped like the parameter.
        factors: The factors of the loss.
        owner: The graph it was taken from.
        valid: A boolean of shape ``()`` on the device, false if its gradient was cleared since;
            ``None`` means true.
        outlived_clearing: Whether gradients were cleared since, before any came for it.
    """

    curvature: Tensor
    factors: LossFactors
    owner: Owner
    valid: Tensor | None = None
    outlived_clearing: bool = False
