"""Graphs that cannot be differentiated twice, and the way out of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from sgdph.nodes import is_leaf


def graph_nodes(roots: Iterable[Tensor]) -> list[Any]:
    """List the autograd nodes that the graphs of ``roots`` are made of, each once."""
    stack = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = dict.fromkeys(stack)
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None and following not in seen:
                seen[following] = None
                stack.append(following)
    return list(seen)


def _is_dead_end(node: Any) -> bool:
    # once_differentiable hangs its error on copies of its outputs, leaves that nobody else knows.
    # Torch's own errors about missing derivatives lead on, and are raised when reached.
    following = [n for n, _ in node.next_functions if n is not None]
    return type(node).__name__ == "Error" and all(
        is_leaf(n) and not isinstance(n.variable, nn.Parameter) for n in following
    )


class FirstLook:
    """Looks once at each parameter's gradient for a dead end in its graph.

    A ``once_differentiable`` function ends the graph in a node that raises when it is reached. A
    product for one parameter asks only for what leads to that parameter, the dead end leads
    nowhere, and the product comes out wrong without a word. Looking walks the whole graph, so each
    parameter is looked at once.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def check(self, params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Look at the gradients of parameters not looked at before.

        Raises:
            RuntimeError: One's graph has a dead end.
        """
        pairs = zip(params, gradients, strict=True)
        new = {id(p): g for p, g in pairs if g is not None and id(p) not in self._seen}
        if any(_is_dead_end(node) for node in graph_nodes(new.values())):
            raise RuntimeError(
                "no partial Hessian can be taken from this loss: it passes through a function "
                f"marked once_differentiable; {_OPERATION_WAY_OUT}"
            )
        self._seen.update(new)


REENTRANT_WAY_OUT = (
    "reentrant checkpointing hides what lies inside it from the graph: use "
    "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
)

_BY_DIFFERENCES = "or take it from differences of gradients, update_hessian(closure=...)"

_OPERATION_WAY_OUT = (
    "an operation of this network has no second derivative: replace it, or train the parameters "
    "before it first-order, with channelwise=False in their groups, " + _BY_DIFFERENCES
)

# What torch says where a second derivative is missing, and the way out of each.
_WAYS_OUT: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("scaled_dot_product", "flash_attention", "efficient_attention"),
        "fused attention has no second derivative: run the forward under "
        "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), " + _BY_DIFFERENCES,
    ),
    (
        ("cudnn_rnn", "CuDNN RNN"),
        "cuDNN's recurrent layers have no second derivative: run the forward under "
        "torch.backends.cudnn.flags(enabled=False), " + _BY_DIFFERENCES,
    ),
    (
        ("aot_autograd", "torch.compile", "donated buffers"),
        "a compiled model has no second derivative: take the partial Hessian from the uncompiled "
        'module, or run due steps under torch.compiler.set_stance("force_eager"), '
        + _BY_DIFFERENCES,
    ),
    (
        ("batch_norm_backward_reduce", "batch_norm_backward_elemt", "SyncBatchNorm"),
        "SyncBatchNorm has no second derivative: use BatchNorm, GroupNorm or LayerNorm, "
        + _BY_DIFFERENCES,
    ),
    (
        ("use_reentrant", "Checkpointing is not compatible"),
        REENTRANT_WAY_OUT,
    ),
    (
        ("backward through the graph a second time",),
        "the loss's graph was already freed: call update_hessian(loss) before loss.backward(), "
        "or optimizer.backward(loss) instead of both; hessian_block and diagonality come before it "
        "as well",
    ),
    (
        (
            "hardsigmoid_backward",
            "multi_margin_loss_backward",
            "multilabel_margin_loss_backward",
            "_ctc_loss_backward",
        ),
        "torch lacks a second derivative here that optimizer.backward(loss) and "
        "optimizer.update_hessian(loss) bring along: use one of them in place of "
        "loss.backward(create_graph=True), and hang no hook on this operation's graph node",
    ),
    (
        ("is not implemented", "does not support double backward", "order derivatives"),
        _OPERATION_WAY_OUT,
    ),
)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Add the way out to torch's errors about a missing second derivative; leave all others."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        for signs, way_out in _WAYS_OUT:
            if "no partial Hessian" not in message and any(sign in message for sign in signs):
                raise RuntimeError(
                    f"no partial Hessian can be taken from this loss: {way_out}. "
                    f"(torch says: {message.strip().splitlines()[0]})"
                ) from error
        raise
