"""The part of a loss's graph that lies behind some of its leaves: all that a product visits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sgdph.nodes import Edge, Node, is_leaf


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


class Region:
    """The nodes on the paths from a loss to some leaves, the leaves' own nodes left out.

    Args:
        loss: A tensor with a graph, or the node that made it.
        leaves: Leaf tensors. One that the loss does not depend on makes the region no larger.

    Attributes:
        nodes: The region's nodes, each after all of those it leads to.
    """

    def __init__(self, loss: Tensor | Node, leaves: Iterable[Tensor]) -> None:
        ends = {torch.autograd.graph.get_gradient_edge(leaf).node for leaf in leaves}
        self._following: dict[Node, Sequence[Edge]] = {}
        self._leading = set(ends)
        self.nodes: list[Node] = []
        root = loss.grad_fn if isinstance(loss, Tensor) else loss
        if root is not None:
            self._walk(root)
        self._entered_from_outside = {
            child
            for node, edges in self._following.items()
            if node not in self._leading
            for child, _ in edges
        }

    def _walk(self, root: Node) -> None:
        # Depth first with a stack of our own: a deep network is deeper than Python's.
        stack = [root]
        while stack:
            node = stack[-1]
            if node not in self._following:
                self._following[node] = node.next_functions
                stack.extend(
                    child
                    for child, _ in self._following[node]
                    if child is not None and child not in self._following
                )
                continue
            stack.pop()
            if node not in self._leading and any(
                child in self._leading for child, _ in self._following[node]
            ):
                self._leading.add(node)
                self.nodes.append(node)

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
