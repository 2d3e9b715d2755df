"""Dense blocks of a loss's Hessian, for inspection.

A block of ``n`` rows takes ``n`` products, one by one or many at a time. Neither is always faster.
With small tensors, the loop spends most time on Python and the engine, and batching saves that.
With large tensors, batching saves nothing and needs the memory of the whole batch. It also cannot
use the lean second derivatives (:mod:`sgdph.autograd.lean`), which do not support batching. So the
size of the largest tensor decides.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sgdph.autograd.differentiability import explain_missing_derivatives
from sgdph.autograd.graph import Region, has_packed
from sgdph.curvature.estimators import check_loss, gradients_with_graph, silenced_hooks
from sgdph.curvature.sharded_model import ShardedModel
from sgdph.distributed.ddp import static_graph_unnoticed

LARGEST_SIDE = 16_384
"""Entries a side of the largest block that is built: 1 GiB in float32."""

# The number of entries of the largest tensor in a batch of products. On the CPU a batch should fit
# in the cache; on other devices only memory limits it.
_BATCH_ENTRIES_CPU = 2**19
_BATCH_ENTRIES = 2**26
# Batches of fewer products are slower than the loop with lean derivatives.
_SMALLEST_BATCH = 8


def hessian_block(
    loss: Tensor,
    p: Tensor | Iterable[Tensor],
    *,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Build the dense block ``∂²L/∂p²`` of the Hessian.

    It takes one Hessian-vector product (Pearlmutter, 1994) per entry of ``p``. It keeps the loss's
    graph, does not change ``.grad`` or random generators, and does not call hooks on ``p``. Entries
    that are not finite are returned as they are.

    Args:
        loss: A real scalar whose graph has not been freed.
        p: A trainable tensor of any shape with ``n`` entries, or several with ``n`` together.
        dtype: Dtype of the result; ``None`` is that of ``p``. It only converts the result, whose
            precision is that of the graph. For a block in float64, convert model and data by
            ``.double()`` before the forward pass.
        chunk_size: Number of products taken at a time; memory grows with it. ``None`` chooses it by
            the size of the tensors in the graph.

    Returns:
        The block, of shape ``(n, n)``, without a graph: row ``i`` is the derivative of the
        gradient's ``i``-th entry. For several tensors it is their joint block, in the given order,
        each flattened. It is not symmetrised, so rows and columns may differ by rounding.

    Raises:
        TypeError: ``loss`` or ``p`` is not a tensor.
        ValueError: ``loss`` is not a real scalar; ``p`` is complex, frozen, empty or given twice,
            or has more than 16,384 entries; ``dtype`` or ``chunk_size`` is out of its range.
        RuntimeError: ``loss`` has no graph, does not depend on ``p``, or cannot be differentiated
            twice.

    Example:
        >>> block = hessian_block(loss_fn(model(x), y), model.bn1.weight)
    """
    params = [p] if isinstance(p, Tensor) else listed(p)
    named = [(f"at place {i}", q) for i, q in enumerate(params)]
    return block_of(loss, named, dtype=dtype, chunk_size=chunk_size)


def block_of(
    loss: Tensor,
    named: Sequence[tuple[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Build the joint block of named parameters; see :func:`hessian_block`.

    Error messages contain the names.
    """
    check_loss(loss)
    check_params(named)
    params = [p for _, p in named]
    ShardedModel().check_take(params)
    if dtype is None:
        dtype = _common_dtype(params)
    elif not dtype.is_floating_point:
        raise ValueError(f"dtype must be a real floating-point one, got {dtype}")
    whole = isinstance(chunk_size, int) and not isinstance(chunk_size, bool)
    if chunk_size is not None and not (whole and chunk_size >= 1):
        raise ValueError(f"chunk_size must be a whole number of at least 1, got {chunk_size!r}")
    sizes = [p.numel() for p in params]
    _check_side(sum(sizes), dtype, "all these parameters together")

    region = Region(loss, params)
    # Under autocast, products of a float32 graph would be computed in half precision.
    kind = params[0].device.type
    autocast = torch.is_autocast_enabled(kind)
    plain = torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext()
    with plain, static_graph_unnoticed(region):
        at_a_time = chunk_size or _chunk_size(region, params[0].device)
        gradients = _gradients(loss, named, region, lean=at_a_time == 1)
        block = torch.zeros(sum(sizes), sum(sizes), dtype=dtype, device=params[0].device)
        with silenced_hooks(params), explain_missing_derivatives():
            for gradient, rows in zip(gradients, torch.split(block, sizes), strict=True):
                # A gradient that does not depend on the parameters has rows of zeros.
                if gradient.requires_grad:
                    _fill(rows, gradient, params, at_a_time)
    return block


def listed(params: Iterable[Any]) -> list[Any]:
    """Convert an argument that should be several tensors to a list.

    Raises:
        TypeError: It is not iterable.
    """
    if not isinstance(params, Iterable):
        raise TypeError(f"expected a tensor or several, got {type(params).__name__}")
    return list(params)


def check_params(named: Sequence[tuple[str, Tensor]]) -> None:
    """Check that each parameter can have its own block.

    Raises:
        TypeError: A parameter is not a tensor.
        ValueError: One is complex, frozen, empty, too large or given twice; or there is none.
    """
    if not named:
        raise ValueError("a Hessian block needs at least one parameter, got none")
    seen: set[int] = set()
    for name, p in named:
        if not isinstance(p, Tensor):
            raise TypeError(f"a parameter must be a tensor, got {type(p).__name__} {name}")
        here = _described(name, p)
        if p.is_complex():
            raise ValueError(f"{here} is complex; a Hessian block is of real parameters")
        if not p.requires_grad:
            raise ValueError(
                f"{here} is frozen, so the loss's graph does not reach it: call "
                "p.requires_grad_() before the forward pass"
            )
        if p.numel() == 0:
            raise ValueError(f"{here} has no entries, so it has no block")
        if id(p) in seen:
            raise ValueError(f"{here} is given twice")
        seen.add(id(p))
        _check_side(p.numel(), p.dtype, here)


def _described(name: str, p: Tensor) -> str:
    return f"the parameter {name} of shape {tuple(p.shape)}"


def _check_side(n: int, dtype: torch.dtype, whose: str) -> None:
    if n > LARGEST_SIDE:
        raise ValueError(
            f"the Hessian block of {whose} is {n:,} x {n:,} and would take {n:,} products and "
            f"{n * n * dtype.itemsize / 2**30:,.1f} GiB; the largest that is built has "
            f"{LARGEST_SIDE:,} rows. Give fewer or smaller parameters, such as the channel-wise "
            "ones of sgdph.param_groups(model) one by one"
        )


def _common_dtype(params: Sequence[Tensor]) -> torch.dtype:
    dtype = params[0].dtype
    for p in params[1:]:
        dtype = torch.promote_types(dtype, p.dtype)
    return dtype


def _gradients(
    loss: Tensor, named: Sequence[tuple[str, Tensor]], region: Region, *, lean: bool
) -> list[Tensor]:
    params = [p for _, p in named]
    found = gradients_with_graph(loss, params, region, lean=lean)
    gradients = []
    for gradient, (name, p) in zip(found, named, strict=True):
        if gradient is None:
            # Zeros would mean that the loss is flat in this parameter.
            raise RuntimeError(
                f"the loss does not depend on {_described(name, p)}: it was not used in the "
                "forward pass, lies inside a reentrant checkpoint, or was replaced since"
            )
        if gradient.is_sparse:
            raise RuntimeError(
                f"{_described(name, p)} has a sparse gradient, which cannot be differentiated "
                "again; use a layer with sparse=False"
            )
        gradients.append(gradient)
    return gradients


def _chunk_size(region: Region, device: torch.device) -> int:
    if any(has_packed(node) for node in region.nodes):
        # A checkpoint should not recompute inside a batch.
        return 1
    largest = max(
        (
            math.prod(output.shape)
            for node in region.nodes
            for output in getattr(node, "_input_metadata", ())
        ),
        default=1,
    )
    entries = _BATCH_ENTRIES_CPU if device.type == "cpu" else _BATCH_ENTRIES
    size = entries // max(largest, 1)
    return size if size >= _SMALLEST_BATCH else 1


def _fill(rows: Tensor, gradient: Tensor, params: Sequence[Tensor], at_a_time: int) -> None:
    """Write the derivative of each entry of ``gradient`` by ``params`` into its row."""
    if at_a_time > 1:
        # Some operations cannot be batched in some versions of torch, and fail in many ways. An
        # error with another cause occurs again in the loop.
        with contextlib.suppress(Exception):
            _fill_batched(rows, gradient, params, at_a_time)
            return
    for row, vector in _unit_vectors(rows, gradient, 1):
        products = torch.autograd.grad(
            gradient, params, vector[0], retain_graph=True, allow_unused=True
        )
        _write(row, products, params)


def _fill_batched(rows: Tensor, gradient: Tensor, params: Sequence[Tensor], at_a_time: int) -> None:
    for some, vectors in _unit_vectors(rows, gradient, at_a_time):
        products = torch.autograd.grad(
            gradient,
            params,
            vectors,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        _write(some, products, params)


def _unit_vectors(
    rows: Tensor, gradient: Tensor, at_a_time: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield some rows at a time, with their unit vectors."""
    start = 0
    for some in torch.split(rows, at_a_time):
        vectors = gradient.new_zeros(len(some), gradient.numel())
        vectors.diagonal(start).fill_(1)
        start += len(some)
        yield some, vectors.view(-1, *gradient.shape)


def _write(rows: Tensor, products: Sequence[Tensor | None], params: Sequence[Tensor]) -> None:
    parts = torch.split(rows, [p.numel() for p in params], dim=1)
    for part, product in zip(parts, products, strict=True):
        if product is not None:
            part.copy_(product.detach().reshape(part.shape))
