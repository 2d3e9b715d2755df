"""What is asked of autograd's nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

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
    """Tell whether a node is an end of the graph, where a leaf tensor's gradient arrives."""
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


def per_channel(values: Tensor, dimensions: int) -> Tensor:
    """View ``(C,)`` as ``(1, C, 1, ...)`` with so many dimensions."""
    return values.view(1, -1, *[1] * (dimensions - 2))
