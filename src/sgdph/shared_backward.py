"""A backward in two phases: the first shares the pass that a product needs anyway.

The gradient of a parameter is found by differentiating all that lies behind it. An ordinary
backward does the same once more, and goes on. Here the first pass writes down the gradients that
leave the region behind the parameter, towards leaves and into the rest of the graph; once the
product is taken, one run of the engine hands them on from there. So every hook on a parameter, and
whatever a distributed wrapper has hung on it, sees one ordinary backward.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function
from torch.autograd.graph import GradientEdge, get_gradient_edge

from sgdph.convolution import CONVOLUTION, Convolution
from sgdph.nodes import (
    Edge,
    Gradients,
    Hook,
    Node,
    can_start_at_edges,
    detached,
    has_hooks,
    is_leaf,
    is_packed,
)
from sgdph.region import Region


class SharedBackward:
    """Collects, while gradients are taken in a region, what the backward still has to hand on.

    Gradients leave the region over edges of three kinds:

    * Most lead to a node that is entered out of the region alone. They are asked for in the first
      pass, and found there.
    * Some lead to a node that other gradients reach too, as a residual connection's does. To ask
      for such a node would run all that leads to it. The node where the edge begins is run once
      more by itself instead; as a rule it is a sum.
    * A convolution's weight gradient is worked out at the time it is handed on, where the output's
      gradient, kept till then, is smaller.

    It is for regions of torch's own nodes. A Python function may do anything in its backward (start
    a collective, call a module's hooks), and must see the ordinary one.

    Args:
        region: What lies behind the parameters whose curvature is wanted.

    Attributes:
        asked: The edges to ask for in the first pass.
        asked_leaves: The leaves that some of them lead to.
        is_complete: Whether all was found. If not, what was saved for the ordinary backward may not
            be read once more (:func:`is_packed`), and that backward has to do it all.
    """

    def __init__(self, region: Region) -> None:
        self.is_complete = True
        self._region = region
        self._asked_at: dict[Node, list[int]] = {}
        self._rerun_at: dict[Node, list[int]] = {}
        self._late_at: dict[Node, None] = {}
        self._found: list[tuple[Edge, Tensor]] = []
        self._late: list[tuple[Tensor, Callable[[], Tensor]]] = []
        self._rerun: list[tuple[Node, Gradients]] = []
        for node in region.nodes:
            self._plan(node)
        edges = dict.fromkeys(
            region.edges(node)[place] for node, places in self._asked_at.items() for place in places
        )
        self.asked = [GradientEdge(node, place) for node, place in edges]
        self.asked_leaves: list[Tensor] = [node.variable for node, _ in edges if is_leaf(node)]

    @classmethod
    def through(cls, region: Region) -> SharedBackward | None:
        """Plan one, unless somebody would notice that the region has no backward of its own.

        Args:
            region: What lies behind the parameters whose curvature is wanted.
        """
        python = any(isinstance(node, BackwardCFunction) for node in region.nodes)
        if python or not region.nodes or not can_start_at_edges():
            return None
        shared = cls(region)
        return None if any(map(has_hooks, shared._rerun_at)) else shared

    def _plan(self, node: Node) -> None:
        for place in self._region.crossings(node):
            following, _ = self._region.edges(node)[place]
            if not self._region.closes(following):
                self._rerun_at.setdefault(node, []).append(place)
            elif place == 1 and _is_better_late(node, following):
                self._late_at[node] = None
            else:
                self._asked_at.setdefault(node, []).append(place)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Write down what leaves the region in the pass that is made meanwhile."""
        nodes = {**self._asked_at, **self._rerun_at, **self._late_at}
        handles = [node.register_hook(self._recorder(node)) for node in nodes]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._run_again()

    def _recorder(self, node: Node) -> Hook:
        edges = self._region.edges(node)

        def record(grad_inputs: Gradients, grad_outputs: Gradients) -> None:
            for place in self._asked_at.get(node, []):
                self._find(edges[place], grad_inputs[place])
            if node in self._rerun_at:
                self._rerun.append((node, tuple(map(detached, grad_outputs))))
            if node in self._late_at and grad_outputs[0] is not None:
                self._put_off(node, grad_outputs[0].detach())

        return record

    def _find(self, edge: Edge, gradient: Tensor | None) -> None:
        if gradient is not None:
            self._found.append((edge, gradient.detach()))

    def _put_off(self, node: Node, grad_output: Tensor) -> None:
        weight, _ = self._region.edges(node)[1]
        try:
            self._late.append((weight.variable, Convolution(node).weight_gradient(grad_output)))
        except RuntimeError:
            self.is_complete = False

    def _run_again(self) -> None:
        while self._rerun:
            node, grad_outputs = self._rerun.pop()
            places = self._rerun_at[node]
            try:
                gradients = _gradients(node, grad_outputs, places)
            except RuntimeError:
                self.is_complete = False
                return
            for place, gradient in zip(places, gradients, strict=True):
                self._find(self._region.edges(node)[place], gradient)

    def hand_on(self) -> None:
        """Run the rest of the backward: as ``loss.backward()``, for all that is still to come."""
        deliveries = [_deliver(leaf, supply) for leaf, supply in self._late]
        self._late.clear()
        users = Counter(gradient.data_ptr() for _, gradient in self._found)
        sums: dict[Edge, Tensor] = {}
        while self._found:
            edge, gradient = self._found.pop()
            if not is_leaf(edge[0]):
                sums[edge] = sums[edge] + gradient if edge in sums else gradient
            else:
                # A leaf makes what it is handed its own, so it must not be two leaves' (a sum's).
                own = gradient.clone() if users[gradient.data_ptr()] > 1 else gradient
                deliveries.append(_deliver(edge[0].variable, [own].pop))
                del own
            del gradient
        torch.autograd.backward(
            [*map(get_gradient_edge, deliveries), *(GradientEdge(*edge) for edge in sums)],
            [*map(torch.ones_like, deliveries), *sums.values()],
        )


def _gradients(node: Node, grad_outputs: Gradients, places: list[int]) -> list[Tensor | None]:
    """Run a node by itself, for its gradients at some places."""
    with torch.no_grad():
        if type(node).__name__ == CONVOLUTION and grad_outputs[0] is not None:
            gradients = Convolution(node).gradients(grad_outputs[0], places)
        else:
            gradients = node(*grad_outputs)
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    return [gradients[place] for place in places]


def _is_better_late(node: Node, weight: Node) -> bool:
    if type(node).__name__ != CONVOLUTION or not is_leaf(weight):
        return False
    output_size = math.prod(node._input_metadata[0].shape)
    return (
        weight.variable.numel() > output_size
        and not is_packed(node, "input")
        and not has_hooks(node)
    )


def _deliver(leaf: Tensor, supply: Callable[[], Tensor]) -> Tensor:
    with torch.enable_grad():
        return _Delivery.apply(leaf, supply)  # type: ignore[no-any-return]


class _Delivery(Function):
    """Hands a leaf its gradient, made or let go of only then.

    The engine becomes the gradient's only owner, and so makes it the leaf's own without a copy.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, supply: Callable[[], Tensor]) -> Tensor:
        ctx.supply = supply
        return leaf.new_empty(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        supply, ctx.supply = ctx.supply, None
        return supply(), None
