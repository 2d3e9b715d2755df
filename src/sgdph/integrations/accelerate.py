"""Accelerate: ``backward`` in place of ``accelerator.backward``.

Accelerate wraps the optimizer, and its wrapper does not forward ``update_hessian``. Its
``backward`` divides the loss by the number n of accumulation steps, and under fp16 multiplies it by
the gradient scaler's scale. So a partial Hessian of the bare loss would be n times too large.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from sgdph.integrations.wrapped import take_scaled
from sgdph.wrappers import wrapped_sgdph


def backward(accelerator: Accelerator, optimizer: Any, loss: Tensor, **arguments: Any) -> None:
    """Take the partial Hessian if one is due, then run ``accelerator.backward(loss)``.

    A model that the accelerator compiles needs ``model = sgdph.compiled(model, optimizer)`` after
    ``prepare``.

    Args:
        accelerator: The accelerator that prepared ``optimizer``.
        optimizer: The :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian`, before or after
            ``prepare``.
        loss: The loss of one micro-batch, neither divided by the accumulation steps nor scaled.
        arguments: Passed on to ``accelerator.backward``.

    Raises:
        TypeError: ``optimizer`` contains neither of these.
        RuntimeError: DeepSpeed or Megatron controls the backward; FSDP shards the parameters and a
            partial Hessian is due; or as in :meth:`sgdph.SGDPH.update_hessian`.

    Example:
        >>> with accelerator.accumulate(model):
        ...     backward(accelerator, optimizer, loss_fn(model(x), y))
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """
    update_hessian(accelerator, optimizer, loss)
    accelerator.backward(loss, **arguments)


def update_hessian(accelerator: Accelerator, optimizer: Any, loss: Tensor) -> None:
    """Take the partial Hessian of the loss, with the factors that ``accelerator.backward`` applies.

    Args:
        accelerator: See :func:`backward`.
        optimizer: See :func:`backward`.
        loss: See :func:`backward`.

    Raises:
        TypeError, RuntimeError: See :func:`backward`.
    """
    inner = wrapped_sgdph(optimizer)
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise RuntimeError(
            f"no partial Hessian can be taken under {accelerator.distributed_type.value}, because "
            "it controls the backward and the parameters. Use plain DDP (distributed_type "
            "MULTI_GPU or MULTI_CPU)"
        )
    if accelerator.distributed_type == DistributedType.FSDP and inner.hessian_due:
        raise RuntimeError(
            "no partial Hessian can be taken under Accelerate's FSDP: it frees and gathers the "
            "weights around its backward. Shard the model yourself by fully_shard and call "
            "sgdph.integrations.fsdp.backward(model, optimizer, loss), without Accelerate; or use "
            "plain DDP (distributed_type MULTI_GPU or MULTI_CPU); or train without Newton "
            "parameters: SGDPH with channelwise=False in all groups, or the first-order optimizer "
            "of PartialHessian alone"
        )
    take_scaled(inner, loss, accelerator.scaler, float(accelerator.gradient_accumulation_steps))
