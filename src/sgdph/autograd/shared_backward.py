"""A backward in two phases: the first shares the pass that a product needs anyway.

A parameter's gradient is found by differentiating the region between the loss and the parameter. An
ordinary backward would do this again, and then continue. Here the first pass records the gradients
that leave the region, to leaves and to the rest of the graph. After the product, one run of the
engine continues from these gradients. So every hook on a parameter, including those of a
distributed wrapper, sees one ordinary backward.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function
from torch.autograd.graph import GradientEdge, get_gradient_edge

from sgdph.autograd.convolution import CONVOLUTION, Convolution
from sgdph.autograd.graph import (
    Edge,
    Gradients,
    Hook,
    Node,
    Region,
    detached,
    fitted,
    has_hooks,
    has_packed,
    is_leaf,
    is_packed,
)
from sgdph.autograd.released import ReleasedInputs


class SharedBackward:
    """The gradients that the first pass finds and that the rest of the backward has to deliver.

    Gradients leave the region over edges of three kinds:

    * Most lead to a node that is entered only from the region. They are requested in the first
      pass, and found there.
    * Some lead to a node that other gradients reach too, such as that of a residual connection.
      Requesting such a node would run everything that leads to it. Instead, the node where the edge
      begins is run once more by itself; usually it is a sum.
    * A convolution's weight gradient is computed when it is delivered, if the output's gradient,
      which is kept until then, is smaller.

    Only regions with torch's own nodes are supported. A Python function may do anything in its
    backward (start a collective, call a module's hooks), and must see the ordinary one.

    Args:
        region: The nodes between the loss and the parameters whose curvature is needed.

    Attributes:
        asked: The edges that are requested in the first pass.
        asked_leaves: The leaves that some of them lead to.
        released: The tensors that the first pass releases.
        is_complete: Whether all gradients were found. If not, saved tensors could not be read a
            second time (:func:`is_packed`), and the ordinary backward has to do everything.
    """

    def __init__(self, region: Region) -> None:
        self.is_complete = True
        self._region = region
        self._asked_at: dict[Node, list[int]] = {}
        self._rerun_at: dict[Node, list[int]] = {}
        self.released = ReleasedInputs()
        self._late_at: set[Node] = set()
        self._found: list[_Found] = []
        self._late: list[tuple[Tensor, Callable[[], Tensor]]] = []
        self._rerun: list[tuple[Node, Gradients]] = []
        self._users: Counter[int] = Counter()
        for node in region.nodes:
            self._plan(node)
        self._hooked = {node for node in self._asked_at if has_hooks(node)}
        edges = dict.fromkeys(
            region.edges(node)[place] for node, places in self._asked_at.items() for place in places
        )
        self.asked = [GradientEdge(node, place) for node, place in edges]
        self.asked_leaves: list[Tensor] = [node.variable for node, _ in edges if is_leaf(node)]

    @classmethod
    def through(cls, region: Region) -> SharedBackward | None:
        """Return a shared backward for a region; ``None`` if it cannot be shared unnoticed.

        Args:
            region: The nodes between the loss and the parameters whose curvature is needed.
        """
        python = any(isinstance(node, BackwardCFunction) for node in region.nodes)
        if python or not region.nodes:
            return None
        shared = cls(region)
        noticed = any(has_hooks(node) or has_packed(node) for node in shared._rerun_at)
        return None if noticed else shared

    def _plan(self, node: Node) -> None:
        for place in self._region.crossings(node):
            following, _ = self._region.edges(node)[place]
            if not self._region.closes(following):
                self._rerun_at.setdefault(node, []).append(place)
            elif place == 1 and self._is_better_late(node):
                self._late_at.add(node)
            else:
                self._asked_at.setdefault(node, []).append(place)

    def _is_better_late(self, node: Node) -> bool:
        if type(node).__name__ != CONVOLUTION:
            return False
        (before, _), (weight, _), *_ = self._region.edges(node)
        # If the input is a leaf, a hook on another leaf may step it before it is read here.
        if not is_leaf(weight) or (before is not None and is_leaf(before)):
            return False
        output_size = math.prod(node._input_metadata[0].shape)
        return (
            weight.variable.numel() > output_size
            and not is_packed(node, "input")
            and not has_hooks(node)
        )

    def released_at(self, node: Node) -> ReleasedInputs | None:
        """Return the object that may release the node's input; ``None`` if it will run again."""
        return None if node in self._rerun_at else self.released

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the gradients that leave the region in the pass inside the context."""
        # The last node is the loss's own, where the pass begins.
        nodes = {self._region.nodes[-1], *self._asked_at, *self._rerun_at, *self._late_at}
        handles = [node.register_hook(self._recorder(node)) for node in nodes]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._run_again()

    def _recorder(self, node: Node) -> Hook:
        def record(grad_inputs: Gradients, grad_outputs: Gradients) -> None:
            # A user's hook may run its own passes through the same nodes meanwhile.
            current = torch._C._current_graph_task_id()
            if self.released.writer is None:
                self.released.writer = current
            if self.released.writer != current:
                return
            for place in self._asked_at.get(node, []):
                self._find(node, place, grad_inputs[place], grad_outputs)
            if node in self._rerun_at:
                self._rerun.append((node, tuple(map(detached, grad_outputs))))
            if node in self._late_at and grad_outputs[0] is not None:
                self._put_off(node, grad_outputs[0].detach())

        return record

    def _find(
        self, node: Node, place: int, gradient: Tensor | None, grad_outputs: Gradients
    ) -> None:
        """Record a gradient. ``None`` is recorded too, because a leaf's hooks fire for it."""
        edge = self._region.edges(node)[place]
        own = False
        if gradient is not None:
            self._users[_memory(gradient)] += 1
            # A gradient that the node passes through, or that a hook returns, may be in use.
            passing = {_memory(g) for g in grad_outputs if g is not None}
            own = node not in self._hooked and _memory(gradient) not in passing
        self._found.append(_Found(edge, detached(gradient), own))

    def _put_off(self, node: Node, grad_output: Tensor) -> None:
        weight, _ = self._region.edges(node)[1]
        self._users[_memory(grad_output)] += 1
        try:
            self._late.append((weight.variable, Convolution(node).weight_gradient(grad_output)))
        except RuntimeError:
            self._fail()

    def _run_again(self) -> None:
        while self._rerun:
            node, grad_outputs = self._rerun.pop()
            places = self._rerun_at[node]
            try:
                gradients = _gradients(node, grad_outputs, places)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                self._fail()
                return
            for place, gradient in zip(places, gradients, strict=True):
                self._find(node, place, gradient, grad_outputs)

    def _fail(self) -> None:
        """Leave everything to the ordinary backward. Called while the causing error is handled."""
        if not self.released.is_empty:
            # The ordinary backward would need the released tensors, so raise the error again.
            raise
        self.is_complete = False

    def finish_backward(self) -> None:
        """Run the rest of the backward, so that the result is that of ``loss.backward()``."""
        # The engine starts with the node made last. So what was found first is made last.
        deliveries = [
            _deliver(leaf, supply) for leaf, supply in reversed(self._late) if leaf.requires_grad
        ]
        self._late.clear()
        sums: dict[Edge, Tensor] = {}
        while self._found:
            edge, gradient, own = self._found.pop()
            if is_leaf(edge[0]):
                if gradient is not None and not (own and self._users[_memory(gradient)] == 1):
                    gradient = gradient.clone()
                # A leaf may have been frozen since the forward.
                if edge[0].variable.requires_grad:
                    deliveries.append(_deliver(edge[0].variable, [gradient].pop))
            elif gradient is not None:
                gradient = fitted(gradient, edge)
                sums[edge] = sums[edge] + gradient if edge in sums else gradient
            del gradient
        torch.autograd.backward(
            [*map(get_gradient_edge, deliveries), *(GradientEdge(*edge) for edge in sums)],
            [*map(torch.ones_like, deliveries), *sums.values()],
        )


class _Found(NamedTuple):
    """A gradient that leaves the region.

    Attributes:
        edge: The edge along which it leaves.
        gradient: Its value, without a graph.
        own: Whether the node made it, and did not pass on a tensor that others may hold.
    """

    edge: Edge
    gradient: Tensor | None
    own: bool


def _gradients(node: Node, grad_outputs: Gradients, places: list[int]) -> list[Tensor | None]:
    """Run a single node, and return its gradients at some places."""
    with torch.no_grad():
        if type(node).__name__ == CONVOLUTION and grad_outputs[0] is not None:
            gradients = Convolution(node).gradients(grad_outputs[0], places)
        else:
            gradients = node(*grad_outputs)
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    return [gradients[place] for place in places]


def _memory(tensor: Tensor) -> int:
    # A sparse gradient has no such address, nor has a zero without memory, such as sgn's. All share
    # 0, so they are copied if there are several.
    if tensor.layout is not torch.strided or tensor._is_zerotensor():
        return 0
    return tensor.untyped_storage().data_ptr()


def _deliver(leaf: Tensor, supply: Callable[[], Tensor | None]) -> Tensor:
    with torch.enable_grad():
        return _Delivery.apply(leaf, supply)  # type: ignore[no-any-return]


class _Delivery(Function):
    """A function whose backward gives a leaf its gradient, which is made or released only then.

    Nothing else holds the gradient, so the engine uses it as ``.grad`` without a copy.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, supply: Callable[[], Tensor | None]) -> Tensor:
        ctx.supply = supply
        return leaf.new_empty(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, None]:
        supply, ctx.supply = ctx.supply, None
        return supply(), None
