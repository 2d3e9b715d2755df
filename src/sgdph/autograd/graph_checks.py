"""Checks of a loss's graph for functions that would make a partial Hessian silently wrong.

Torch's own operations can be differentiated twice, or raise an error. A custom function may do
neither: its backward may create no graph, or may use tensors that were saved without their history.
All nodes between a loss and a parameter are known, so each such function is found before or while
the gradients are taken. For a graph of torch's operations only, just each node's class is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import graph
from torch.autograd.function import BackwardCFunction, once_differentiable

from sgdph.autograd.differentiability import (
    BATCH_NORM_WORKAROUND,
    BY_DIFFERENCES,
    CHUNKED_LOSS_WORKAROUND,
    COMPILED_WORKAROUND,
    LAYER_NORM_WORKAROUND,
    NORM_SHIFT_WORKAROUND,
    OPERATION_WORKAROUND,
    SPARSE_WORKAROUND,
    WEIGHT_NORM_WORKAROUND,
    no_partial_hessian,
)
from sgdph.autograd.graph import (
    Gradients,
    Hook,
    Node,
    Region,
    function_name,
    function_of,
    graph_nodes,
    is_leaf,
)
from sgdph.autograd.norm_shift import lacks_scale, may_lack_scale
from sgdph.autograd.saved_tensors import warn_of_lost_history
from sgdph.autograd.weight_norm_gradients import WEIGHT_NORM

# The modules in which AOTAutograd, which every compiler backend uses, defines its functions.
_AOT_AUTOGRAD = ("torch._functorch._aot_autograd", "torch._functorch.aot_autograd")

# torch's higher-order operations whose backward computes gradients without a graph.
_GRAPHLESS = ("ScanAutogradOp", "WhileLoopAutogradOp", "CondAutogradOp")

# The wrapper has the same code object for every function that it wraps.
_ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx, *grads: None).__code__

# Operations whose derivative torch gets wrong or lacks: the place of the affected input, and the
# message. Batch norm's is wrong without an error in torch 2.6.
WRONG_IN_TORCH = {
    "NativeLayerNormBackwardBackward0": (1, LAYER_NORM_WORKAROUND),
    "NativeBatchNormBackwardBackward0": (1, BATCH_NORM_WORKAROUND),
    "CudnnBatchNormBackwardBackward0": (0, BATCH_NORM_WORKAROUND),
    "MiopenBatchNormBackwardBackward0": (0, BATCH_NORM_WORKAROUND),
    "SparseCooTensorWithDimsAndTensorsBackward0": (0, SPARSE_WORKAROUND),
    WEIGHT_NORM: (0, WEIGHT_NORM_WORKAROUND),
}


def is_custom(node: Node) -> bool:
    """Return whether a node is a Python function, or one of a C++ extension."""
    return isinstance(node, BackwardCFunction) or type(node).__name__ == "CppFunction"


def check_region(region: Region, *, corrected: bool = True) -> list[Node]:
    """Check the operations between a loss and some parameters.

    Args:
        region: The nodes between the loss and the parameters.
        corrected: Whether :func:`~sgdph.autograd.lean.lean_second_derivatives` will correct torch's
            wrong derivatives of weight normalisation, and of a norm's shift without a scale.

    Returns:
        The custom functions among them, for :func:`refuse_graphless_gradients`.

    Raises:
        RuntimeError: An operation is a compiled graph or torch's scan, while_loop or cond, is
            marked ``once_differentiable``, or has a derivative that torch gets wrong.
    """
    custom = []
    for node in region.nodes:
        objection = _objection(node, region, corrected)
        if objection is not None:
            raise no_partial_hessian(objection)
        if is_custom(node):
            custom.append(node)
    return custom


def _objection(node: Node, region: Region, corrected: bool) -> str | None:
    name = type(node).__name__
    if name == WEIGHT_NORM and corrected:
        return None
    if name in WRONG_IN_TORCH:
        place, message = WRONG_IN_TORCH[name]
        # Batch norm in evaluation is right. Only the native batch norm's node shows the mode.
        if region.leads_on(node, place) and getattr(node, "_saved_train", True):
            return message
    elif not corrected and may_lack_scale(node):
        if region.leads_on(node, 2) and lacks_scale(node):
            return NORM_SHIFT_WORKAROUND
    elif isinstance(node, BackwardCFunction):
        function = function_of(node).__name__
        if function in _GRAPHLESS:
            return f"it passes through torch's scan, while_loop or cond; {OPERATION_WORKAROUND}"
        if "_linear_cross_entropy_batch_chunked" in function:
            # Its forward computes the gradients.
            return CHUNKED_LOSS_WORKAROUND
        if _is_compiled(node):
            return COMPILED_WORKAROUND
        if _is_once_differentiable(node):
            return (
                f"it passes through {function_name(node)}, a function marked "
                f"once_differentiable; {OPERATION_WORKAROUND}"
            )
    return None


def _is_compiled(node: Node) -> bool:
    return function_of(node).__module__.startswith(_AOT_AUTOGRAD)


def _is_once_differentiable(node: Node) -> bool:
    function = function_of(node)
    for backward in (function.backward, function.vjp):
        # Other decorators may wrap it, such as torch.amp.custom_bwd.
        while backward is not None:
            if getattr(backward, "__code__", None) is _ONCE_DIFFERENTIABLE:
                return True
            backward = getattr(backward, "__wrapped__", None)
    return False


@contextlib.contextmanager
def refuse_graphless_gradients(custom: Sequence[Node], region: Region) -> Iterator[None]:
    """Check that custom functions that run inside the context create a graph of their gradients.

    A function whose backward is a kernel, runs under ``no_grad`` or detaches its inputs returns
    gradients without a graph. Everything behind it then looks linear. A function that adds a
    constant to a gradient also adds it to each product. Without a graph, only a gradient that is
    always zero is right. To find out whether it always is, the function runs once more. A function
    that creates a graph does not run again.

    Args:
        custom: The functions that :func:`check_region` found.
        region: The nodes between the loss and the parameters.

    Raises:
        RuntimeError: A function returns a gradient without a graph that is not always zero.
    """
    handles = [node.register_hook(_graph_hook(node, region)) for node in custom]
    # Before the function runs: its backward may keep references to what the forward saved.
    handles += [
        node.register_prehook(lambda _, node=node: warn_of_lost_history(node, region))
        for node in custom
    ]
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
            and region.leads_on(node, place)
            and not (gradient.requires_grad and _leads_to(gradient, grad_outputs))
        }
        if graphless and not _are_always_zero(node, graphless, grad_outputs):
            raise no_partial_hessian(
                f"the backward of {function_name(node)} returns a gradient without a graph (from "
                "a kernel, torch.no_grad(), .detach() or a constant), so the curvature would be "
                f"wrong. Write that backward with differentiable operations, {BY_DIFFERENCES}"
            )

    return hook


def _leads_to(gradient: Tensor, grad_outputs: Gradients) -> bool:
    """Return whether a gradient was computed from the output gradients, not from copies of them.

    Even if it was not, it may require grad, through an input that the function saved.
    """
    outputs = [g for g in grad_outputs if g is not None and g.requires_grad]
    wanted = {graph.get_gradient_edge(g).node for g in outputs}
    oldest = 0
    if gradient.device.type == "cpu":
        # Nodes that the backward created are younger than its inputs. On an accelerator another
        # thread counts, so their numbers cannot be compared.
        oldest = min(node._sequence_nr() for node in wanted)
    stack = [graph.get_gradient_edge(gradient).node]
    seen = set(stack)
    while stack:
        current = stack.pop()
        # For an Error node, torch raises an error, or check_gradients does.
        if current in wanted or type(current).__name__ == "Error":
            return True
        for following, _ in current.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                if following._sequence_nr() >= oldest:
                    stack.append(following)
    return False


def _are_always_zero(node: Node, gradients: dict[int, Tensor], grad_outputs: Gradients) -> bool:
    if any(bool(gradient.any()) for gradient in gradients.values()):
        return False
    try:
        others = [
            _other_gradient(output, gradient)
            for output, gradient in zip(node._input_metadata, grad_outputs, strict=True)
        ]
        with torch.no_grad():
            run = node.apply if isinstance(node, BackwardCFunction) else node
            after = run(*others)
    except Exception:
        # The function cannot run twice. Few functions return zero for a gradient.
        return False
    after = after if isinstance(after, tuple) else (after,)
    return not any(bool(after[place].any()) for place in gradients if after[place] is not None)


def _other_gradient(output: Any, gradient: Tensor | None) -> Tensor:
    kind = {"dtype": output.dtype, "device": output.device}
    if gradient is None or not (output.dtype.is_floating_point or output.dtype.is_complex):
        return torch.zeros(output.shape, **kind)
    count = gradient.numel()
    # Not constant, because the backwards of softmax and norms map a constant to zero.
    return torch.arange(1, count + 1, device=output.device).sin().reshape(gradient.shape).to(**kind)


def check_gradients(gradients: Iterable[Tensor | None]) -> None:
    """Check that the graphs of some gradients have no dead ends.

    A ``once_differentiable`` function ends the graph in a node that raises an error when it is
    reached. A product for one parameter visits only nodes that lead to this parameter. The dead end
    does not, so it is not reached and the product is silently wrong.

    Raises:
        RuntimeError: There is a dead end.
    """
    nodes = graph_nodes(g for g in gradients if g is not None)
    errors = [node for node in nodes if type(node).__name__ == "Error"]
    if not errors:
        return
    reached = {
        following
        for node in nodes
        if type(node).__name__ != "Error"
        for following, _ in node.next_functions
    }
    if any(_is_dead_end(error, reached) for error in errors):
        raise no_partial_hessian(
            f"it passes through a function marked once_differentiable; {OPERATION_WORKAROUND}"
        )


def _is_dead_end(error: Node, reached: set[Node]) -> bool:
    # once_differentiable puts its error node on copies of its outputs: leaves without other uses.
    # Torch's own error nodes about missing derivatives lead further, and raise when reached.
    following = [n for n, _ in error.next_functions if n is not None]
    return all(
        is_leaf(n) and n not in reached and not isinstance(n.variable, nn.Parameter)
        for n in following
    )
