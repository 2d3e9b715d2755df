"""Partial curvature on its way from a loss to the next step.

Curvature belongs to a gradient: it adds up over micro-batches as the gradient does, and goes when
the gradient is cleared. But it is taken before the gradient exists, and the gradient may be cleared
behind the optimizer's back (``model.zero_grad()``, ``p.grad = None``) or between the loss and its
backward (older tutorials, Lightning's closures). So each Newton parameter's curvature is kept in
two parts: what is *fresh*, with no backward since, which no clearing may touch; and what is
*settled*, whose gradient has arrived, which goes as soon as that gradient is found to be gone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle, unserializable_hook

from sgdph.algorithm import curvature_dtype
from sgdph.amp import scale_of_calling_grad_scaler
from sgdph.graph_checks import RunningBackward, check_gradients
from sgdph.hessian import Estimator, curvature_of_gradients


@dataclass
class _GradientStamp:
    """How a ``.grad`` was when last seen: its storage, which is kept from reuse, and version."""

    alias: Tensor
    version: int

    @classmethod
    def of(cls, gradient: Tensor) -> _GradientStamp:
        # A detached alias shares memory and version counter, but keeps no graph alive.
        alias = gradient.detach()
        return cls(alias, alias._version)

    def is_replaced(self, gradient: Tensor | None) -> bool:
        return gradient is None or gradient.data_ptr() != self.alias.data_ptr()

    def is_changed(self) -> bool:
        return self.alias._version != self.version


@dataclass
class _Pending:
    """The curvature pending for one parameter."""

    fresh: Tensor | None = None
    settled: Tensor | None = None
    gradient_with_graph: Tensor | None = None
    """Of ``loss.backward(create_graph=True)``, as the backward left it: settled as well."""
    objection: str | None = None
    """Why a product of that graph would be wrong."""
    arriving: Tensor | None = None
    """A gradient with a graph that is about to be added to ``.grad``."""
    missed_at: int | None = None
    """Asked of a loss that does not depend on the parameter; gradients that had arrived by then."""
    forgotten: bool = False
    """A gradient has arrived for which nothing was taken, and without a graph to take it from."""
    stamp: _GradientStamp | None = None

    def drop_settled(self) -> None:
        self.settled = self.gradient_with_graph = self.objection = self.stamp = None
        self.forgotten = False

    def drop_if_cleared(self, p: Tensor) -> None:
        """Drop what belongs to a gradient that has been cleared since."""
        self.arriving = None
        if self.stamp is None:
            return
        if self.stamp.is_replaced(p.grad):
            self.drop_settled()
        elif self.stamp.is_changed() and p.grad is not None:
            # Changed in place: cleared with set_to_none=False, or clipped, unscaled, averaged over
            # ranks? Only a cleared one is all zeros, and that can be asked without a host sync.
            if self.settled is not None:
                kept = p.grad.ne(0).any()
                self.settled = torch.where(kept, self.settled, torch.zeros_like(self.settled))
            if self.gradient_with_graph is not None and p.grad.grad_fn is None:
                # Clearing detaches; clipping and unscaling do not.
                self.gradient_with_graph = None
            self.stamp = _GradientStamp.of(p.grad)


class PendingCurvature:
    """Keeps the curvature of each Newton parameter until the step that uses it."""

    def __init__(self) -> None:
        self._running_backward = RunningBackward()
        self._pending: dict[int, _Pending] = {}
        self._handles: dict[int, list[RemovableHandle]] = {}
        # Of all parameters: a miss settles with a backward that leaves its own parameter out.
        self._arrivals = 0
        # A model may outlive many optimizers, and each would leave its hooks on the parameters.
        weakref.finalize(self, _remove, self._handles).atexit = False

    def watch(self, params: Iterable[Tensor]) -> None:
        """Follow the gradients of ``params``; those without ``requires_grad`` are passed over."""
        for p in params:
            if id(p) not in self._handles and p.requires_grad:
                self._handles[id(p)] = _watch_gradient(p, weakref.ref(self))

    def add(self, p: Tensor, curvature: Tensor | None) -> None:
        """Add what was taken from one loss; ``None`` where it does not depend on ``p``."""
        entry = self._entry(p)
        entry.drop_if_cleared(p)
        if curvature is None:
            entry.missed_at = self._arrivals
        else:
            entry.fresh = curvature if entry.fresh is None else entry.fresh + curvature

    def gradient_arrives(self, p: Tensor, gradient: Tensor) -> None:
        """Note the gradient of one backward, just before it is added to ``p.grad``."""
        entry = self._entry(p)
        entry.drop_if_cleared(p)
        # Gradient mode is on inside a backward only with create_graph=True.
        if torch.is_grad_enabled():
            entry.arriving = gradient

    def gradient_arrived(self, p: Tensor) -> None:
        """Note that a backward has just added to ``p.grad``."""
        self._arrivals += 1
        entry = self._entry(p)
        arrived, entry.arriving = entry.arriving, None
        if entry.fresh is not None:
            # Taken already; a graph of this backward's gradient would count it twice.
            entry.settled = entry.fresh if entry.settled is None else entry.settled + entry.fresh
            entry.fresh = None
        elif arrived is not None:
            with torch.enable_grad():
                before = entry.gradient_with_graph
                entry.gradient_with_graph = arrived if before is None else before + arrived
            entry.objection = entry.objection or self._running_backward.objection(p)
        else:
            entry.forgotten = True
        holds = entry.settled is not None or entry.gradient_with_graph is not None
        if holds and p.grad is not None:
            entry.stamp = _GradientStamp.of(p.grad)

    def drop_fresh(self) -> None:
        """Drop all whose gradients have not arrived, because they never will."""
        for entry in self._pending.values():
            entry.fresh = None

    def gradients_cleared(self) -> None:
        """Drop all whose gradients had arrived, because the optimizer clears every gradient now."""
        for entry in self._pending.values():
            entry.drop_settled()
            entry.arriving = None
            if entry.missed_at is not None and entry.missed_at < self._arrivals:
                entry.missed_at = None

    def collect(
        self,
        params: Sequence[Tensor],
        estimator: Estimator,
        probes: Sequence[Tensor] | None,
        loss_scale: float | None,
    ) -> list[Tensor | None]:
        """Sum up the curvature pending for each of ``params``, signed.

        Args:
            params: Newton parameters that have a gradient.
            estimator: See :func:`sgdph.hessian.curvature_of_gradients`.
            probes: See :func:`sgdph.hessian.curvature_of_gradients`.
            loss_scale: What divides products of ``backward(create_graph=True)``; ``None`` asks the
                calling ``GradScaler``.

        Returns:
            Per parameter a tensor of its shape in its curvature's dtype, or ``None`` where nothing
            came.
        """
        sums = [self._taken(p) for p in params]
        gradients = [self._gradient_with_graph(p) for p in params]
        if all(g is None for g in gradients):
            return sums
        if loss_scale is None:
            loss_scale = scale_of_calling_grad_scaler()
        for p, gradient in zip(params, gradients, strict=True):
            objection = self._entry(p).objection
            if gradient is not None and objection is not None:
                raise RuntimeError(objection)
        check_gradients(gradients)
        products = curvature_of_gradients(gradients, params, estimator, probes)
        for i, (p, h) in enumerate(zip(params, products, strict=True)):
            if h is not None:
                h = h.to(curvature_dtype(p)) / loss_scale
                taken = sums[i]
                sums[i] = h if taken is None else taken + h
        return sums

    def _taken(self, p: Tensor) -> Tensor | None:
        entry = self._entry(p)
        if entry.settled is None or entry.fresh is None:
            return entry.fresh if entry.settled is None else entry.settled
        return entry.settled + entry.fresh

    def _gradient_with_graph(self, p: Tensor) -> Tensor | None:
        if id(p) in self._handles:
            return self._entry(p).gradient_with_graph
        # Unfrozen since the last look, so nobody watched: .grad itself still has the graph.
        return p.grad if p.grad is not None and p.grad.grad_fn is not None else None

    def was_missed(self, p: Tensor) -> bool:
        """Tell whether curvature was asked of a loss that does not depend on ``p``."""
        return self._entry(p).missed_at is not None

    def was_passed_over(self, p: Tensor) -> bool:
        """Tell whether no backward has brought anything for ``p``: its ``.grad`` is left over."""
        if p.grad is None:
            return True
        # One with a graph was put there by hand, and one that nobody watched may have arrived.
        if p.grad.grad_fn is not None or id(p) not in self._handles:
            return False
        entry = self._entry(p)
        brought = (entry.fresh, entry.settled, entry.gradient_with_graph)
        return not entry.forgotten and all(each is None for each in brought)

    def has_come(self, params: Iterable[Tensor]) -> bool:
        """Tell whether a loss has been asked for the curvature of any of ``params``.

        What belongs to gradients that have been cleared since does not count.
        """
        for p in params:
            entry = self._entry(p)
            if entry.stamp is not None and entry.stamp.is_replaced(p.grad):
                entry.drop_settled()
            if self.was_missed(p) or self._taken(p) is not None:
                return True
            if self._gradient_with_graph(p) is not None:
                return True
        return False

    def clear(self) -> None:
        """Forget all of it."""
        self._pending.clear()

    def _entry(self, p: Tensor) -> _Pending:
        return self._pending.setdefault(id(p), _Pending())


def _remove(handles: Mapping[int, Iterable[RemovableHandle]]) -> None:
    for of_parameter in handles.values():
        for handle in of_parameter:
            handle.remove()


def _watch_gradient(p: Tensor, reference: weakref.ref[PendingCurvature]) -> list[RemovableHandle]:
    # The hooks live as long as the parameter, or are removed; they must not keep the optimizer
    # alive.
    @unserializable_hook  # type: ignore[untyped-decorator]
    def before(gradient: Tensor) -> None:
        pending = reference()
        if pending is not None:
            pending.gradient_arrives(p_reference(), gradient)

    @unserializable_hook  # type: ignore[untyped-decorator]
    def after(p: Tensor) -> None:
        pending = reference()
        if pending is not None:
            pending.gradient_arrived(p)

    p_reference: Any = weakref.ref(p)
    handles: list[RemovableHandle] = [
        p.register_hook(before),  # type: ignore[no-untyped-call]
        p.register_post_accumulate_grad_hook(after),  # type: ignore[no-untyped-call]
    ]
    return handles
