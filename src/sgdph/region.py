"""The part of a loss's graph that lies behind some of its leaves: all that a product visits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

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
