"""What is asked of autograd's graph: its nodes, and the region that a product visits.

A region is the part of a loss's graph that lies behind some of its leaves.
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
    """Tell whether a node is an end of the graph, which adds to a leaf's ``.grad``."""
    return type(node).__name__ == "AccumulateGrad"


def is_packed(node: Node, name: str) -> bool:
    """Tell whether a saved tensor went through a pack hook (checkpointed, moved to the host).

    Such a one should not be unpacked more often than the node does it: what was checkpointed is
    computed anew or raises, what was moved is copied. Older versions of torch do not tell; there,
    none looks packed, nor does what the node does not save.
    """
    return getattr(getattr(node, f"_raw_saved_{name}", None), "unpack_hook", None) is not None


def has_packed(node: Node) -> bool:
    """Tell whether any of a node's saved tensors went through a pack hook."""
    prefix = "_raw_saved_"
    names = [name.removeprefix(prefix) for name in dir(node) if name.startswith(prefix)]
    return any(is_packed(node, name) for name in names)


def has_packed_tensors(node: Node) -> bool:
    """Tell whether any saved tensor of a Python function's node went through a pack hook.

    Raises:
        RuntimeError: The graph was freed.
    """
    raw = node._raw_saved_tensors
    return any(getattr(tensor, "unpack_hook", None) is not None for tensor in raw or ())


def function_of(node: Node) -> type[Any]:
    """Return the class of the Python function that a node runs the backward of."""
    function: type[Any] = type(node)._forward_cls
    return function


def function_name(node: Node) -> str:
    """Name the function that a node belongs to, as its author knows it."""
    if not isinstance(node, BackwardCFunction):
        return str(node.name())
    return function_of(node).__qualname__.rpartition(">.")[2]


def has_hooks(node: Node) -> bool:
    """Tell whether anybody has registered a hook on the gradients that the node returns."""
    handle = node.register_hook(lambda *_: None)
    hooks = handle.hooks_dict_ref()
    handle.remove()
    return bool(hooks)


def fitted(gradient: Tensor, edge: Edge) -> Tensor:
    """Make a gradient that a node returned what its edge wants, as the engine does in between.

    A node returns the gradient of a broadcast input, or of a converted one, as it computed it.
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

    It is not saved as the function's other tensors are: those are held by the loss's own graph
    anyway, and this one would be held as long.

    Args:
        ctx: The function's context.
        gradient: What to keep; ``None`` where the backward will not read it.
        once: Whether there will be a single product; it is let go of as that passes by.
    """
    ctx.grad_output = detached(gradient)
    ctx.once = once


def kept_gradient(ctx: Any) -> Any:
    """Return what :func:`keep_gradient` kept, and let go of it where nobody will ask again."""
    gradient = ctx.grad_output
    if ctx.once:
        ctx.grad_output = None
    return gradient


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float32 for half precision, else the type itself."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Compute in the types that tensors have, also inside autocast."""
    kind = device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def piece_size(of_cpu: int, device: torch.device) -> int:
    """Return how many numbers to compute at a time.

    Args:
        of_cpu: How many on a CPU, whose cache they should fit in.
        device: Where they are. On others, a kernel has to take longer than its launch, some
            microseconds: those of 2²² numbers do, and float32 ones fit in a large GPU's cache.
    """
    return of_cpu if device.type == "cpu" else max(of_cpu, 2**22)


def per_channel(values: Tensor, dimensions: int) -> Tensor:
    """View ``(C,)`` as ``(1, C, 1, ...)`` with so many dimensions."""
    return values.view(1, -1, *[1] * (dimensions - 2))


def graph_nodes(roots: Iterable[Tensor | Node]) -> list[Node]:
    """List the autograd nodes that the graphs of ``roots`` are made of, each once.

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
        following: Where each node's gradients go. The nodes come in an order in which each follows
            all of those that it leads to.
    """

    def __init__(self, loss: Tensor | Node) -> None:
        self.following: dict[Node, Sequence[Edge]] = {}
        root = loss.grad_fn if isinstance(loss, Tensor) else loss
        if root is not None:
            self._walk(root)

    def _walk(self, root: Node) -> None:
        # Depth first with a stack of our own: a deep network is deeper than Python's.
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
        """Tell whether the loss depends on a leaf tensor, as far as the graph shows."""
        return leaf.requires_grad and get_gradient_edge(leaf).node in self.following


class Region:
    """The nodes on the paths from a loss to some leaves, the leaves' own nodes left out.

    Args:
        loss: A tensor with a graph, the node that made it, or that graph.
        leaves: Leaf tensors. One that the loss does not depend on makes the region no larger.

    Attributes:
        nodes: The region's nodes, each after all of those it leads to.
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
        """List where a node's gradients go, by forward input; to ``None`` where none is wanted."""
        return self._following[node]

    def leads_on(self, node: Node, place: int) -> bool:
        """Tell whether the node's gradient at ``place`` goes on towards one of the leaves."""
        edges = self._following[node]
        return place < len(edges) and edges[place][0] in self._leading

    def crossings(self, node: Node) -> list[int]:
        """List the places at which the node's gradients leave the region, or reach a leaf."""
        return [
            place
            for place, (child, _) in enumerate(self._following[node])
            if child is not None and (is_leaf(child) or child not in self._leading)
        ]

    def closes(self, node: Node) -> bool:
        """Tell whether all gradients that reach a node come out of the region."""
        return node not in self._entered_from_outside
