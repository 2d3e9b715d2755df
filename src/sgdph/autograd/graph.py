"""Functions that read autograd's graph: its nodes, and the region that a product visits.

A region is the part of a loss's graph between the loss and some of its leaves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

Node: TypeAlias = Any
"""A ``torch.autograd.graph.Node``; the generated classes carry attributes of their own."""

Edge: TypeAlias = tuple[Node, int]
"""Where a gradient goes: a node, and the forward output of that node that it belongs to."""

Gradients: TypeAlias = tuple[Tensor | None, ...]

TELLS_PACKED = hasattr(getattr(torch._C._autograd, "SavedTensor", None), "unpack_hook")
"""Whether torch tells which saved tensors went through a pack hook; older versions do not."""

Hook: TypeAlias = Callable[[Gradients, Gradients], Any]
"""Given the gradients of a node's forward inputs and outputs, may return others for the inputs."""


def is_leaf(node: Node) -> bool:
    """Return whether a node is an end of the graph, where a leaf's ``.grad`` is accumulated."""
    return type(node).__name__ == "AccumulateGrad"


def is_packed(node: Node, name: str) -> bool:
    """Return whether a saved tensor went through a pack hook (checkpointed, moved to the host).

    A packed tensor should be unpacked only by the node itself: a checkpointed one is recomputed or
    raises an error, and a moved one is copied. Returns false if the node does not save the tensor,
    or in older versions of torch, which do not tell.
    """
    return getattr(getattr(node, f"_raw_saved_{name}", None), "unpack_hook", None) is not None


def has_packed(node: Node) -> bool:
    """Return whether any of a node's saved tensors went through a pack hook."""
    prefix = "_raw_saved_"
    names = [name.removeprefix(prefix) for name in dir(node) if name.startswith(prefix)]
    return any(is_packed(node, name) for name in names)


def has_packed_tensors(node: Node) -> bool:
    """Return whether any saved tensor of a Python function's node went through a pack hook.

    Raises:
        RuntimeError: The graph was freed.
    """
    raw = node._raw_saved_tensors
    return any(getattr(tensor, "unpack_hook", None) is not None for tensor in raw or ())


def function_of(node: Node) -> type[Any]:
    """Return the class of the Python function whose backward a node runs."""
    function: type[Any] = type(node)._forward_cls
    return function


def function_name(node: Node) -> str:
    """Return the name of a node's function, as its author knows it."""
    if not isinstance(node, BackwardCFunction):
        return str(node.name())
    return function_of(node).__qualname__.rpartition(">.")[2]


def has_hooks(node: Node) -> bool:
    """Return whether a hook is registered on the gradients that the node returns."""
    handle = node.register_hook(lambda *_: None)
    hooks = handle.hooks_dict_ref()
    handle.remove()
    return bool(hooks)


def fitted(gradient: Tensor, edge: Edge) -> Tensor:
    """Convert a node's gradient to the shape, device and dtype that its edge needs.

    The engine does the same. A node returns the gradient of a broadcast or converted input as it
    computed it.
    """
    node, place = edge
    wanted = node._input_metadata[place]
    if gradient.is_complex() and not wanted.dtype.is_complex:
        gradient = gradient.real
    return gradient.sum_to_size(wanted.shape).to(wanted.device, wanted.dtype)


def detached(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor without its graph; ``None`` stays ``None``."""
    return None if tensor is None else tensor.detach()


def keep_gradient(ctx: Any, gradient: Tensor | None, once: bool) -> None:
    """Keep an output's gradient for the backward of a function of gradients.

    It is not saved with ``save_for_backward`` like the function's other tensors. The loss's own
    graph holds those anyway, and would hold this one as long.

    Args:
        ctx: The function's context.
        gradient: The gradient to keep; ``None`` if the backward will not read it.
        once: Whether only one product will be taken; the gradient is freed when that reads it.
    """
    ctx.grad_output = detached(gradient)
    ctx.once = once


def kept_gradient(ctx: Any) -> Any:
    """Return the gradient that :func:`keep_gradient` kept, and free it if it is read only once."""
    gradient = ctx.grad_output
    if ctx.once:
        ctx.grad_output = None
    return gradient


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float32 for half precision, else the type itself."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast is off, so that tensors keep their dtypes."""
    kind = device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def piece_size(of_cpu: int, device: torch.device) -> int:
    """Return how many entries to compute at a time.

    Args:
        of_cpu: The number for a CPU, such that the entries fit in its cache.
        device: The device of the entries. On devices other than the CPU, a kernel should take
            longer than its launch of some microseconds. With 2²² entries it does, and float32
            entries fit in a large GPU's cache.
    """
    return of_cpu if device.type == "cpu" else max(of_cpu, 2**22)


def per_channel(values: Tensor, dimensions: int) -> Tensor:
    """View a tensor of shape ``(C,)`` as ``(1, C, 1, ...)`` with ``dimensions`` dimensions."""
    return values.view(1, -1, *[1] * (dimensions - 2))


def graph_nodes(roots: Iterable[Tensor | Node]) -> list[Node]:
    """Return all autograd nodes in the graphs of ``roots``, each once.

    Args:
        roots: Tensors, or the nodes that made them.
    """
    nodes = (root.grad_fn if isinstance(root, Tensor) else root for root in roots)
    stack = [node for node in nodes if node is not None]
    seen = dict.fromkeys(stack)
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None and following not in seen:
                seen[following] = None
                stack.append(following)
    return list(seen)


class Graph:
    """All nodes of a loss's graph.

    Args:
        loss: A tensor with a graph, or the node that made it.

    Attributes:
        following: The edges of each node, along which its gradients go. A node comes after all
            nodes that it leads to.
    """

    def __init__(self, loss: Tensor | Node) -> None:
        self.following: dict[Node, Sequence[Edge]] = {}
        root = loss.grad_fn if isinstance(loss, Tensor) else loss
        if root is not None:
            self._walk(root)

    def _walk(self, root: Node) -> None:
        # Depth first with an explicit stack: a deep network would exceed Python's recursion limit.
        begun: dict[Node, Sequence[Edge]] = {}
        stack = [root]
        while stack:
            node = stack[-1]
            if node not in begun:
                begun[node] = node.next_functions
                stack.extend(
                    child for child, _ in begun[node] if child is not None and child not in begun
                )
                continue
            stack.pop()
            if node not in self.following:
                self.following[node] = begun[node]

    def reaches(self, leaf: Tensor) -> bool:
        """Return whether the loss depends on a leaf tensor, as far as the graph shows."""
        return leaf.requires_grad and get_gradient_edge(leaf).node in self.following


class Region:
    """The nodes on the paths from a loss to some leaves, without the leaves' own nodes.

    Args:
        loss: A tensor with a graph, the node that made it, or that graph.
        leaves: Leaf tensors. A leaf that the loss does not depend on adds no nodes.

    Attributes:
        nodes: The region's nodes, each after all nodes that it leads to.
    """

    def __init__(self, loss: Tensor | Node | Graph, leaves: Iterable[Tensor]) -> None:
        graph = loss if isinstance(loss, Graph) else Graph(loss)
        self._following = graph.following
        self._leading = {get_gradient_edge(leaf).node for leaf in leaves}
        self.nodes: list[Node] = []
        for node, edges in self._following.items():
            if node not in self._leading and any(child in self._leading for child, _ in edges):
                self._leading.add(node)
                self.nodes.append(node)
        self._entered_from_outside = {
            child
            for node, edges in self._following.items()
            if node not in self._leading
            for child, _ in edges
        }

    def edges(self, node: Node) -> Sequence[Edge]:
        """Return a node's edges, by forward input; unused edges lead to ``None``."""
        return self._following[node]

    def leads_on(self, node: Node, place: int) -> bool:
        """Return whether the node's gradient at ``place`` leads to one of the leaves."""
        edges = self._following[node]
        return place < len(edges) and edges[place][0] in self._leading

    def crossings(self, node: Node) -> list[int]:
        """Return the places at which the node's gradients leave the region, or reach a leaf."""
        return [
            place
            for place, (child, _) in enumerate(self._following[node])
            if child is not None and (is_leaf(child) or child not in self._leading)
        ]

    def closes(self, node: Node) -> bool:
        """Return whether all gradients that reach a node come from the region."""
        return node not in self._entered_from_outside
