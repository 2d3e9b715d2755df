"""How diagonal the Hessian blocks of a loss are, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgdph.algorithm import corrected_average
from sgdph.diagnostics.block import block_of, check_params, listed
from sgdph.diagnostics.figures import Diagonality, Subject, check_probes, judge, rademacher_draws
from sgdph.roles import param_groups, parameter_name
from sgdph.step import SecondOrderOptimizer

JOINT = "joint"
"""The name of the block of all parameters together."""


def diagonality(
    loss: Tensor,
    params: nn.Module | Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    *,
    probes: int = 16,
    seed: int = 0,
    optimizer: SecondOrderOptimizer | None = None,
    joint: bool = False,
    chunk_size: int | None = None,
) -> list[Diagonality]:
    """Measure how diagonal the Hessian block of each parameter is, and each estimator's error.

    It takes as many products as the parameters have entries. It keeps the loss's graph and does
    not change ``.grad``, like :func:`hessian_block`.

    Args:
        loss: A real scalar whose graph has not been freed. If the loss is scaled, so are the
            blocks; this changes the error of ``average`` only.
        params: A tensor, several tensors, or ``(name, tensor)`` pairs. A module means its trainable
            channel-wise parameters, as :func:`sgdph.param_groups` finds them.
        probes: Number of Hutchinson's probes for each parameter, at least 1.
        seed: Seed of the probes. With an optimizer's seed and its parameters in its order, they are
            the probes of its first refreshes with ``refresh="all"``.
        optimizer: The optimizer whose running averages and names are used. The joint block has an
            average if every parameter has one.
        joint: Also measure the joint block of all parameters, with joint probes. It contains the
            single blocks, so they need no further products.
        chunk_size: See :func:`hessian_block`.

    Returns:
        One result per parameter, in order, and with ``joint`` a last one named ``"joint"``. Names
        come from the pairs or the module, else from the optimizer, else are ``"0"``, ``"1"`` and
        so on.

    Raises:
        TypeError, ValueError, RuntimeError: As in :func:`hessian_block` and
            :meth:`Diagonality.of_block`.

    Example:
        >>> for found in diagonality(loss_fn(model(x), y), model):
        ...     print(found.name, found.off_diagonal_share, found.row_sum.relative_error)
    """
    check_probes(probes)
    named = _named(params, optimizer)
    check_params(named)
    whole = block_of(loss, named, chunk_size=chunk_size) if joint else None
    subjects = [
        Subject(
            name,
            tuple(p.shape),
            rademacher_draws(probes, seed, i, p),
            _running_average(p, optimizer),
        )
        for i, (name, p) in enumerate(named)
    ]
    if whole is None:
        return [
            judge(block_of(loss, [one], chunk_size=chunk_size), subject)
            for one, subject in zip(named, subjects, strict=True)
        ]
    sizes = [p.numel() for _, p in named]
    rows = torch.split(whole, sizes)
    singles = [torch.split(some, sizes, dim=1)[i] for i, some in enumerate(rows)]
    return [*map(judge, [*singles, whole], [*subjects, _together(subjects)])]


def _together(subjects: Sequence[Subject]) -> Subject:
    averages = [s.average.cpu().flatten() for s in subjects if s.average is not None]
    draws = torch.cat([s.draws for s in subjects], dim=1)
    average = torch.cat(averages) if len(averages) == len(subjects) else None
    return Subject(JOINT, (draws.shape[1],), draws, average)


def _named(
    params: nn.Module | Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    optimizer: SecondOrderOptimizer | None,
) -> list[tuple[str, Tensor]]:
    if isinstance(params, nn.Module):
        return _channelwise_of(params)
    named = []
    for i, entry in enumerate([params] if isinstance(params, Tensor) else listed(params)):
        if isinstance(entry, Tensor):
            named.append((_name(entry, i, optimizer), entry))
        elif isinstance(entry, tuple) and len(entry) == 2:
            named.append(entry)
        else:
            raise TypeError(
                "params must be tensors, (name, tensor) pairs or a module, got "
                f"{type(entry).__name__} at place {i}"
            )
    return named


def _channelwise_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    named = [
        (name, p)
        for group in param_groups(model)
        if group["channelwise"]
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if p.requires_grad
    ]
    if not named:
        raise ValueError(
            f"{type(model).__name__} has no trainable channel-wise parameters; pass the "
            "parameters to look at instead of the model"
        )
    return named


def _name(p: Tensor, place: int, optimizer: SecondOrderOptimizer | None) -> str:
    if optimizer is not None and _group_of(p, optimizer) is not None:
        return parameter_name(optimizer.param_groups, p)
    return str(place)


def _group_of(p: Tensor, optimizer: SecondOrderOptimizer) -> dict[str, Any] | None:
    for group in optimizer.param_groups:
        if any(p is other for other in group["params"]):
            return group
    return None


def _running_average(p: Tensor, optimizer: SecondOrderOptimizer | None) -> Tensor | None:
    """Return ``D̂`` of ``p``, or ``None`` if the optimizer has not refreshed ``p``."""
    group = None if optimizer is None else _group_of(p, optimizer)
    if optimizer is None or group is None:
        return None
    state = optimizer.state.get(p, {})
    if "hessian" not in state or not state["refreshes"] > 0:
        return None
    return corrected_average(state["hessian"], state["refreshes"], group["hessian_momentum"])
