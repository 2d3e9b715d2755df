"""Differences of gradients that ignore the kinks of ReLU and similar functions.

Automatic differentiation treats a piecewise function as the piece that each entry lies on. A
difference of gradients compares the pieces at both ends, so it also counts entries that have moved
from one piece to another. To make the two comparable, a pass at moved weights takes its slopes from
the pieces at the present weights. Then only the outputs of entries that have changed pieces differ,
to second order in the distance.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from sgdph.autograd.graph import Gradients, Hook, Node, graph_nodes, has_packed

# The gradient is linear in the output's gradient, and its factors or places change only at kinks.
# So the node at the present weights gives the gradient.
_LINEAR = re.compile(
    "(Abs|Amax|Amin|Aminmax|Clamp|ClampMax|ClampMin|Cummax|Cummin|Gather|Hardshrink|Hardsigmoid"
    "|Hardtanh|Index|IndexSelect|Kthvalue|LeakyRelu|MaskedFill|Max|Maximum|Median|Min|Minimum|Mode"
    "|Nanmedian|Relu|RreluWithNoise|Softshrink|Sort|Take|Threshold|Topk|Where"
    "|(Adaptive|Fractional|Mkldnn)?MaxPool[23]D(WithIndices)?)Backward[0-9]"
)


def _hardswish(present: Node, moved: Node, g: Tensor) -> Gradients:
    x, y = present._saved_self, moved._saved_self
    inner = torch.where(x < 3, (2 * y + 3) / 6, torch.ones_like(y))
    return (g * torch.where(x > -3, inner, torch.zeros_like(y)),)


def _elu(present: Node, moved: Node, g: Tensor) -> Gradients:
    x, y = present._saved_self, moved._saved_self
    scale, steepness = moved._saved_scale, moved._saved_input_scale
    falling = scale * moved._saved_alpha * steepness * (y * steepness).exp()
    return (g * torch.where(x > 0, torch.full_like(y, scale), falling),)


def _prelu(present: Node, moved: Node, g: Tensor) -> Gradients:
    x, y, weight = present._saved_self, moved._saved_self, moved._saved_weight
    return (
        g * torch.where(x > 0, torch.ones_like(y), weight.expand_as(y)),
        g * torch.where(x > 0, torch.zeros_like(y), y),
    )


# Operations that are curved between kinks: the gradient at the moved input, on the present piece.
_CURVED: Mapping[str, Callable[[Node, Node, Tensor], Gradients]] = {
    "HardswishBackward0": _hardswish,
    "EluBackward0": _elu,
    "PreluKernelBackward0": _prelu,
}


class PresentPieces:
    """A graph at the present weights, whose pieces are used in backwards of similar graphs.

    Args:
        loss: The loss at the present weights; its graph is kept alive.
    """

    def __init__(self, loss: Tensor) -> None:
        self._nodes = graph_nodes([loss])
        self._names = [type(node).__name__ for node in self._nodes]

    @contextlib.contextmanager
    def kept(self, loss: Tensor) -> Iterator[None]:
        """Let backwards through another loss's graph use the present pieces inside the context.

        A graph with another structure, and nodes that a checkpoint would recompute, do not change.
        """
        nodes = graph_nodes([loss])
        same = [type(node).__name__ for node in nodes] == self._names
        handles = [
            node.register_hook(_hook(name, present, node))
            for name, present, node in zip(self._names, self._nodes, nodes, strict=False)
            if same and not has_packed(present) and _has_pieces(name, present)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _has_pieces(name: str, node: Node) -> bool:
    """Return whether an operation's slope at moved weights follows from its present piece."""
    if name == "MultiMarginLossBackward0":
        return bool(node._saved_p == 1)
    if name == "AbsBackward0" and node._saved_self.is_complex():
        # The absolute value of a complex number is curved.
        return False
    return _LINEAR.fullmatch(name) is not None or name in _CURVED


def _hook(name: str, present: Node, moved: Node) -> Hook:
    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        outputs = zip(grad_outputs, present._input_metadata, strict=False)
        if any(g is not None and tuple(g.shape) != tuple(o.shape) for g, o in outputs):
            # For example, the number of entries above a bound may differ at moved weights.
            return None
        if name not in _CURVED:
            found = _gradients(present, grad_outputs)
        elif grad_outputs[0] is not None:
            with torch.no_grad():
                found = _CURVED[name](present, moved, grad_outputs[0])
        else:
            return None
        return tuple(
            old if old is None else new for old, new in zip(grad_inputs, found, strict=True)
        )

    return hook


def _gradients(node: Node, grad_outputs: Gradients) -> Gradients:
    """Run a node of another graph during a backward, and return its gradients."""
    came = [(GradientEdge(node, i), g) for i, g in enumerate(grad_outputs) if g is not None]
    edges = node.next_functions
    wanted = [GradientEdge(*edge) for edge in edges if edge[0] is not None]
    found = torch.autograd.grad(
        [edge for edge, _ in came],
        wanted,
        [g for _, g in came],
        retain_graph=True,
        allow_unused=True,
    )
    rest = iter(found)
    return tuple(None if edge[0] is None else next(rest) for edge in edges)
