"""FSDP2 (``fully_shard``): what a partial Hessian has to know of it, and to tell it.

It holds each of its parameters as a ``DTensor``, of which a rank has a part. A loss is computed
from the *leaf*, a whole copy that is gathered before a layer runs. Its storage is freed behind the
layer, and again when the first backward has passed, so that a second derivative finds none: while a
product is taken the weights have to stay.

torch has methods to set whether they stay, and none to ask. What is asked here of FSDP2's insides
is asked in :func:`_candidates`, :func:`_groups`, :func:`shards` and
:func:`weights_gathered`.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sgdph.algorithm import curvature_dtype
from sgdph.distributed.reduction import Collected, Ranks

_STATES = "_module_state_mapping"


def _fsdp_module() -> type[Any] | None:
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)


def fsdp_modules(model: nn.Module | None = None) -> list[Any]:
    """List the modules that ``fully_shard`` was called for: those of a model, or all there are."""
    known = _fsdp_module()
    if known is None:
        return []
    objects: Iterable[object] = _candidates() if model is None else model.modules()
    return [each for each in objects if issubclass(type(each), known)]


def _candidates() -> list[object]:
    # Nothing leads from a parameter to its module. torch lists those with a state; if a version
    # should not, look through all objects.
    states = getattr(sys.modules.get("torch.distributed._composable_state"), _STATES, None)
    return gc.get_objects() if states is None else list(states)


def _groups(module: Any) -> list[Any]:
    """List the groups of parameters that a module gathers together."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    # Older versions of torch have one.
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def shards(modules: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield what each module holds: the sharded parameter, and its leaf once there is one."""
    for module in modules:
        for group in _groups(module):
            for each in group.fsdp_params:
                yield each.sharded_param, getattr(each, "_unsharded_param", None)


def fully_sharded() -> set[int]:
    """Return the ``id`` of every parameter that ``fully_shard`` holds, of all models there are."""
    return {id(p) for p, _ in shards(fsdp_modules())}


@contextlib.contextmanager
def weights_gathered(modules: Sequence[Any]) -> Iterator[None]:
    """Let the weights stay where a backward has gathered them, and reduce no gradients.

    Then the settings are as before: weights that stayed would be trained on, stale, for ever. The
    backward that follows frees them; where there was an error they are freed at once.

    Args:
        modules: All that ``fully_shard`` was called for, of one model.
    """
    groups = [group for module in modules for group in _groups(module)]
    before = [(group, group.reshard_after_backward, group.reduce_grads) for group in groups]
    for group in groups:
        group.reshard_after_backward = group.reduce_grads = False
    try:
        yield
    except BaseException:
        for group, reshards, _ in before:
            group.reshard_after_backward = reshards
        for module in modules:
            state = module._get_fsdp_state()
            # The end of a backward, which the engine has not come to.
            if state._state_ctx.post_backward_final_callback_queued:
                state._root_post_backward_final_callback()
        for group, reshards, _ in before:
            if reshards:
                group.reshard()
        raise
    finally:
        for group, reshards, reduces in before:
            group.reshard_after_backward, group.reduce_grads = reshards, reduces


def mean_gradients(params: Sequence[Tensor], ranks: Ranks) -> None:
    """Average gradients over ranks in place, in one collective.

    What is the same on all ranks stays so, as the sum of earlier micro-batches does. A rank that
    has no gradient counts as zero.

    Args:
        params: Plain tensors, the same on every rank, in the same order.
        ranks: The ranks.
    """
    gradients = [Collected(p, None if p.grad is None else p.grad.detach()) for p in params]
    for p, mean, any_has_one in ranks.mean(gradients):
        assert mean is not None
        if p.grad is not None:
            p.grad.detach().copy_(mean)
        # Only a rank that has none waits for its device.
        elif bool(any_has_one):
            p.grad = mean.to(p.dtype, copy=True)


def same_on_all_ranks(
    params: Sequence[Tensor], process_group: dist.ProcessGroup | None
) -> list[bool]:
    """Tell of each parameter whether all ranks hold the same numbers. Waits for the device."""
    dtype = reduce(torch.promote_types, map(curvature_dtype, params))
    whole = torch.cat([p.detach().reshape(-1).to(params[0].device, dtype) for p in params])
    largest = torch.stack([whole, -whole])
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=process_group)
    equal = largest[0].eq(-largest[1]) | whole.isnan()
    sizes = [p.numel() for p in params]
    return [bool(part.all()) for part in torch.split(equal, sizes)]
