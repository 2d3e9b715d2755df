"""FSDP2 (``fully_shard``): reading and setting its state for a partial Hessian.

FSDP2 holds each of its parameters as a ``DTensor``; each rank has a part. A loss is computed from
the *leaf*, a whole copy that is gathered before a layer runs. Its storage is freed after the layer,
and again after the first backward, so a second derivative would find no weights. The weights must
stay while a product is taken.

torch has methods to set whether weights stay, but none to read this. The functions that use FSDP2's
internals are :func:`_candidates`, :func:`_groups`, :func:`shards` and :func:`weights_gathered`.
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
    """Return the modules that ``fully_shard`` was called for: in ``model``, or all that exist."""
    known = _fsdp_module()
    if known is None:
        return []
    objects: Iterable[object] = _candidates() if model is None else model.modules()
    return [each for each in objects if issubclass(type(each), known)]


def _candidates() -> list[object]:
    # A parameter has no reference to its module. torch lists the modules with a state. If a version
    # of torch does not, search all objects.
    states = getattr(sys.modules.get("torch.distributed._composable_state"), _STATES, None)
    return gc.get_objects() if states is None else list(states)


def _groups(module: Any) -> list[Any]:
    """Return the groups of parameters that a module gathers together."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    # Older versions of torch have only one group.
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def shards(modules: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield each sharded parameter of the modules, with its leaf (``None`` if it has none yet)."""
    for module in modules:
        for group in _groups(module):
            for each in group.fsdp_params:
                yield each.sharded_param, getattr(each, "_unsharded_param", None)


def fully_sharded() -> set[int]:
    """Return the ``id`` of every parameter that ``fully_shard`` holds, of all existing models."""
    return {id(p) for p, _ in shards(fsdp_modules())}


@contextlib.contextmanager
def weights_gathered(modules: Sequence[Any]) -> Iterator[None]:
    """Keep weights gathered after a backward, and reduce no gradients, inside the context.

    On exit the settings are restored. Otherwise the weights would stay gathered, and training would
    use stale weights forever. The next backward frees them. After an error they are freed at once.

    Args:
        modules: All modules of one model that ``fully_shard`` was called for.
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
            # Run the callback for the end of a backward, because the engine has not got there.
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

    A part that is equal on all ranks, such as the sum of earlier micro-batches, does not change. A
    rank without a gradient counts as zero.

    Args:
        params: Plain tensors, the same on every rank, in the same order.
        ranks: The ranks.
    """
    gradients = [Collected(p, None if p.grad is None else p.grad.detach()) for p in params]
    for p, mean, any_has_one in ranks.mean(gradients):
        assert mean is not None
        if p.grad is not None:
            p.grad.detach().copy_(mean)
        # Only a rank without a gradient waits for its device.
        elif bool(any_has_one):
            p.grad = mean.to(p.dtype, copy=True)


def same_on_all_ranks(
    params: Sequence[Tensor], process_group: dist.ProcessGroup | None
) -> list[bool]:
    """Return, per parameter, whether all ranks hold the same values. Waits for the device.

    Entries that are NaN on this rank count as equal.
    """
    dtype = reduce(torch.promote_types, map(curvature_dtype, params))
    whole = torch.cat([p.detach().reshape(-1).to(params[0].device, dtype) for p in params])
    largest = torch.stack([whole, -whole])
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=process_group)
    equal = largest[0].eq(-largest[1]) | whole.isnan()
    sizes = [p.numel() for p in params]
    return [bool(part.all()) for part in torch.split(equal, sizes)]
