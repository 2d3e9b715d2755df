"""Checks of a loss's graph for what would make a partial Hessian wrong without an error.

Torch's own operations differentiate twice, or raise. A function written by hand may do neither: its
backward may make no graph, or may compute with tensors that were saved without a history. What lies
between a loss and a parameter is known, so each such function is found before or while the
gradients are taken. A graph of torch's operations alone costs one look at each node's class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable

from sgdph.differentiability import (
    BY_DIFFERENCES,
    COMPILED_WAY_OUT,
    OPERATION_WAY_OUT,
    no_partial_hessian,
)
from sgdph.nodes import Gradients, Hook, Node, function_name, is_leaf
from sgdph.region import Region, graph_nodes
from sgdph.saved_tensors import warn_of_lost_history

# Where AOTAutograd, which every compiling backend goes through, defines what runs its graphs.
_AOT_AUTOGRAD = ("torch._functorch._aot_autograd", "torch._functorch.aot_autograd")

# The wrapper is the same code for every function that it wraps.
_ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx, *grads: None).__code__  # type: ignore[no-untyped-call]

_NORMS_TO_TAKE = "use RMSNorm or GroupNorm there, " + BY_DIFFERENCES

# Operations whose derivative torch gets wrong, or lacks, and at which of their inputs.
_WRONG_IN_TORCH: dict[str, tuple[int, str]] = {
    "NativeLayerNormBackwardBackward0": (
        1,
        "the loss contains a gradient that passes through layer norm, whose third derivative is "
        f"wrong in torch (pytorch issue 175754): {_NORMS_TO_TAKE}",
    ),
    "WeightNormInterfaceBackward0": (
        0,
        "a weight norm's direction v depends on the parameter, and torch's second derivative by v "
        "is wrong there: compute the weight by g * v / torch.norm_except_dim(v, 2, dim), "
        + BY_DIFFERENCES,
    ),
}
for _kind in ("Native", "Cudnn", "Miopen"):
    _WRONG_IN_TORCH[f"{_kind}BatchNormBackwardBackward0"] = (
        1,
        "the loss contains a gradient that passes through batch norm in training, whose third "
        f"derivative torch lacks: {_NORMS_TO_TAKE}",
    )


def is_custom(node: Node) -> bool:
    """Tell whether a node is a function of Python's, or of a C++ extension's."""
    return isinstance(node, BackwardCFunction) or type(node).__name__ == "CppFunction"


def check_region(region: Region) -> list[Node]:
    """Look at the operations between a loss and some parameters.

    Args:
        region: What lies between the two.

    Returns:
        The custom functions among them, for :func:`refuse_graphless_gradients`.

    Raises:
        RuntimeError: One is a compiled graph, is marked ``once_differentiable``, or has a
            derivative that torch gets wrong.
    """
    custom = []
    for node in region.nodes:
        objection = _objection(node, region)
        if objection is not None:
            raise no_partial_hessian(objection)
        if is_custom(node):
            custom.append(node)
    for node in custom:
        warn_of_lost_history(node, region)
    return custom


def _objection(node: Node, region: Region) -> str | None:
    name = type(node).__name__
    if name in _WRONG_IN_TORCH:
        place, message = _WRONG_IN_TORCH[name]
        # Batch norm in evaluation is right; only its own node tells.
        if region.leads_on(node, place) and getattr(node, "_saved_train", True):
            return message
    elif isinstance(node, BackwardCFunction):
        if _is_compiled(node):
            return COMPILED_WAY_OUT
        if _is_once_differentiable(node):
            return (
                f"it passes through {function_name(node)}, a function marked "
                f"once_differentiable; {OPERATION_WAY_OUT}"
            )
    return None


def _is_compiled(node: Node) -> bool:
    return bool(type(node)._forward_cls.__module__.startswith(_AOT_AUTOGRAD))


def _is_once_differentiable(node: Node) -> bool:
    function = type(node)._forward_cls
    for backward in (function.backward, function.vjp):
        # Other decorators may stand around it, as torch.amp.custom_bwd does.
        while backward is not None:
            if getattr(backward, "__code__", None) is _ONCE_DIFFERENTIABLE:
                return True
            backward = getattr(backward, "__wrapped__", None)
    return False


@contextlib.contextmanager
def refuse_graphless_gradients(custom: Sequence[Node], region: Region) -> Iterator[None]:
    """Check that the custom functions that run meanwhile make a graph of their gradients.

    One whose backward is a kernel, or runs under ``no_grad``, returns gradients without a graph.
    Everything behind it then looks linear. That is right only where the gradient does not depend
    on the output's gradient. To learn it the function runs once more with another one; so a
    function that makes a graph runs no more often than before.

    Args:
        custom: What :func:`check_region` found.
        region: What lies between the loss and the parameters.

    Raises:
        RuntimeError: One makes none.
    """
    handles = [node.register_hook(_graph_hook(node, region)) for node in custom]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _graph_hook(node: Node, region: Region) -> Hook:
    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> None:
        if not any(g is not None and g.requires_grad for g in grad_outputs):
            return
        graphless = {
            place: gradient
            for place, gradient in enumerate(grad_inputs)
            if gradient is not None
            and not gradient.requires_grad
            and region.leads_on(node, place)
        }
        if graphless and _depend_on_grad_outputs(node, graphless, grad_outputs):
            raise no_partial_hessian(
                f"the backward of {function_name(node)} makes no graph of the gradient that it "
                "returns (a kernel, torch.no_grad() or .detach()), so its second derivative would "
                f"silently be zero: write that backward with differentiable operations, "
                f"{BY_DIFFERENCES}"
            )

    return hook


def _depend_on_grad_outputs(
    node: Node, gradients: dict[int, Tensor], grad_outputs: Gradients
) -> bool:
    # The kernel may write into what it returned before.
    before = {place: gradient.clone() for place, gradient in gradients.items()}
    try:
        others = [
            _other_gradient(output, gradient)
            for output, gradient in zip(node._input_metadata, grad_outputs, strict=True)
        ]
        with torch.no_grad():
            run = node.apply if isinstance(node, BackwardCFunction) else node
            after = run(*others)
        after = after if isinstance(after, tuple) else (after,)
        return not all(torch.equal(after[place], b) for place, b in before.items())
    except Exception:
        # It cannot run twice. Few functions return a constant for a gradient.
        return True


def _other_gradient(output: Any, gradient: Tensor | None) -> Tensor:
    kind = {"dtype": output.dtype, "device": output.device}
    if gradient is None or not (output.dtype.is_floating_point or output.dtype.is_complex):
        return torch.zeros(output.shape, **kind)
    count = gradient.numel()
    # Not a constant: softmax's and the norms' backwards do not see one.
    return torch.arange(1, count + 1, device=output.device).sin().reshape(gradient.shape).to(**kind)


def check_gradients(gradients: Iterable[Tensor | None]) -> None:
    """Look for dead ends in the graphs of some gradients.

    A ``once_differentiable`` function ends the graph in a node that raises when it is reached. A
    product for one parameter asks only for what leads to that parameter, the dead end leads
    nowhere, and the product comes out wrong without a word.

    Raises:
        RuntimeError: There is one.
    """
    if any(_is_dead_end(node) for node in graph_nodes(g for g in gradients if g is not None)):
        raise no_partial_hessian(
            f"it passes through a function marked once_differentiable; {OPERATION_WAY_OUT}"
        )


def _is_dead_end(node: Node) -> bool:
    # once_differentiable hangs its error on copies of its outputs, leaves that nobody else knows.
    # Torch's own errors about missing derivatives lead on, and are raised when reached.
    if type(node).__name__ != "Error":
        return False
    following = [n for n, _ in node.next_functions if n is not None]
    return all(is_leaf(n) and not isinstance(n.variable, nn.Parameter) for n in following)
