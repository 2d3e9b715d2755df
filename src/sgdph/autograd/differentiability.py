"""Graphs that cannot be differentiated twice, and a workaround for each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


def no_partial_hessian(reason: str) -> RuntimeError:
    """Return the error for a loss that cannot be differentiated twice, with the reason."""
    return RuntimeError(f"no partial Hessian can be taken from this loss: {reason}")


def refuse_compiled_autograd() -> None:
    """Raise an error if compiled autograd is on: it compiles each backward.

    Raises:
        RuntimeError: Compiled autograd is on.
    """
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    if getattr(module, "compiled_autograd_enabled", False):
        raise no_partial_hessian(
            "compiled autograd is on and has no second derivative. Do not use its context on due "
            'steps (optimizer.hessian_due), or enter torch.compiler.set_stance("force_eager") '
            "before it"
        )


REENTRANT_WORKAROUND = (
    "reentrant checkpointing hides its inside from the graph; use "
    "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
)

BY_DIFFERENCES = "or use differences of gradients: update_hessian(closure=...)"

_ELSE = (
    "or train the parameters before it first-order, with channelwise=False in their groups, "
    + BY_DIFFERENCES
)

OPERATION_WORKAROUND = "an operation of this network has no second derivative: replace it, " + _ELSE

_OTHER_NORM = "use RMSNorm or GroupNorm there, " + _ELSE

LAYER_NORM_WORKAROUND = (
    "the loss contains a gradient that passes through layer norm, whose third derivative is wrong "
    "in torch (pytorch issue 175754): " + _OTHER_NORM
)

BATCH_NORM_WORKAROUND = (
    "the loss contains a gradient that passes through batch norm in training, or through instance "
    "norm, whose third derivative torch lacks: " + _OTHER_NORM
)

WEIGHT_NORM_WORKAROUND = (
    "a weight norm's direction v depends on the parameter, and torch's second derivative with "
    "respect to v is wrong. Instead of loss.backward(create_graph=True) use "
    "optimizer.backward(loss) or optimizer.update_hessian(loss), which correct it"
)

NORM_SHIFT_WORKAROUND = (
    "it passes through the shift of a layer norm or batch norm that has no scale, and torch's "
    "second derivative with respect to that shift is wrong. Instead of "
    "loss.backward(create_graph=True) use optimizer.backward(loss) or "
    "optimizer.update_hessian(loss), which correct it"
)

SPARSE_WORKAROUND = (
    "torch.sparse_coo_tensor makes a matrix of values that depend on the parameter, and torch's "
    "second derivative of it is wrong: put the values into a dense matrix with index_put and call "
    "to_sparse() on it, " + _ELSE
)

CHUNKED_LOSS_WORKAROUND = (
    "torch's linear_cross_entropy with options computes its gradient in the forward, which has no "
    "second derivative: pass options=None, " + BY_DIFFERENCES
)

COMPILED_WORKAROUND = (
    "a compiled model has no second derivative: call model = sgdph.compiled(model, optimizer) in "
    "place of torch.compile or once after it, which runs due steps uncompiled. Do the same for a "
    'compiled loss. Or run due steps under torch.compiler.set_stance("force_eager"), '
    + BY_DIFFERENCES
)

# Parts of torch's error messages about a missing second derivative, with a workaround for each.
_WAYS_OUT: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        # Torch's attention on devices other than CPU and CUDA; then other kernels of torch and of
        # packages.
        (
            "scaled_dot_product",
            "flash_attention",
            "efficient_attention",
            "flex_attention",
            "varlen_attn",
            "flash_attn",
        ),
        "this attention kernel has no second derivative: use "
        "torch.nn.functional.scaled_dot_product_attention (on devices other than CPU and CUDA "
        "under torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), "
        + BY_DIFFERENCES,
    ),
    (
        ("cudnn_rnn", "CuDNN RNN"),
        "cuDNN's recurrent layers have no second derivative: run the forward under "
        "torch.backends.cudnn.flags(enabled=False), " + BY_DIFFERENCES,
    ),
    (
        ("data is not allocated yet",),
        "weights that it needs were freed, as fully_shard does after each layer. Call "
        "sgdph.integrations.fsdp.backward(model, optimizer, loss) with a module that contains "
        "every sharded module that the loss depends on, including those of a second network",
    ),
    (
        ("aot_autograd", "torch.compile", "donated buffers"),
        COMPILED_WORKAROUND,
    ),
    (
        ("batch_norm_backward_reduce", "batch_norm_backward_elemt", "SyncBatchNorm"),
        "SyncBatchNorm has no second derivative: use BatchNorm, GroupNorm or LayerNorm, "
        + BY_DIFFERENCES,
    ),
    (
        ("use_reentrant", "Checkpointing is not compatible"),
        REENTRANT_WORKAROUND,
    ),
    (
        ("under selective activation checkpoint",),
        "selective checkpointing lets a backward pass through its inside only once: leave out "
        "context_fn, " + BY_DIFFERENCES,
    ),
    (
        ("backward through the graph a second time",),
        "the loss's graph was already freed: call update_hessian(loss) before loss.backward(), or "
        "optimizer.backward(loss) instead of both. Call hessian_block and diagonality before it, "
        "too. For two losses over one graph, pass their sum to optimizer.backward, or call "
        "update_hessian(loss) and loss.backward(retain_graph=True) for each",
    ),
    (
        (
            "hardsigmoid_backward",
            "multi_margin_loss_backward",
            "multilabel_margin_loss_backward",
            "_ctc_loss_backward",
        ),
        "torch has no second derivative of this operation; optimizer.backward(loss) and "
        "optimizer.update_hessian(loss) add one. Use one of them in place of "
        "loss.backward(create_graph=True), and register no hook on this operation's graph node. A "
        "loss that itself contains such a gradient cannot be differentiated in torch",
    ),
    (
        ("modified by an inplace operation",),
        "a tensor that it was computed from has been changed in place since, for example a weight "
        "by another optimizer's step. Step SGDPH before the other optimizers, or take the partial "
        "Hessian before the weights change, with optimizer.backward(loss) or update_hessian(loss)",
    ),
    (
        ("no autograd formula was registered",),
        "a custom operator has no derivative: register one with torch.library.register_autograd, "
        "also for the operators that its own backward calls, " + BY_DIFFERENCES,
    ),
    (
        ("batch_norm does not support 3rd",),
        BATCH_NORM_WORKAROUND,
    ),
    (
        ("is not implemented", "ouble backward", "order derivatives", "differentiate twice"),
        OPERATION_WORKAROUND,
    ),
)


@contextlib.contextmanager
def explain_missing_derivatives() -> Iterator[None]:
    """Add a workaround to torch's errors about a missing second derivative; keep other errors."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        for signs, workaround in _WAYS_OUT:
            if "no partial Hessian" not in message and any(sign in message for sign in signs):
                raise no_partial_hessian(
                    f"{workaround}. (torch says: {message.strip().splitlines()[0]})"
                ) from error
        raise
