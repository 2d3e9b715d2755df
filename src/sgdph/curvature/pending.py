"""Curvature that waits between a loss and the next step.

Curvature belongs to a gradient: it adds up over micro-batches like the gradient, and is dropped
when the gradient is cleared. But it is taken before the gradient exists. And the gradient may be
cleared without the optimizer (``model.zero_grad()``, ``p.grad = None``), or between the loss and
its backward (older tutorials, Lightning's closures). So each Newton parameter's curvature is kept
in two parts. *Fresh* curvature has had no backward since; clearing gradients does not affect it.
*Settled* curvature has its gradient; it is dropped as soon as that gradient is found to be gone.

A backward may also never run: a batch is skipped, or memory runs out. So fresh curvature has an
owner, the graph that it was taken from. If that graph is gone when the next curvature is taken, the
old curvature is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sgdph.algorithm import curvature_dtype
from sgdph.autograd.graph import Node
from sgdph.autograd.graph_checks import check_gradients
from sgdph.autograd.running_backward import RunningBackward
from sgdph.curvature.estimators import curvature_of_gradients
from sgdph.curvature.grad_scaler import LossFactors, calling_grad_scaler
from sgdph.curvature.gradient_hooks import GradientHooks
from sgdph.curvature.gradient_stamp import GradientStamp
from sgdph.curvature.pending_entry import PendingEntry
from sgdph.curvature.taken import Owner, Taken
from sgdph.distributed.dtensor import is_dtensor
from sgdph.names import Estimator


class PendingCurvature:
    """The curvature of each Newton parameter, kept until the step that uses it."""

    def __init__(self, leaf_of: Callable[[Tensor], Tensor | None] = lambda p: p) -> None:
        self._running_backward = RunningBackward()
        self._pending: dict[int, PendingEntry] = {}
        # Counted over all parameters: a miss settles with a backward that skips its parameter.
        self._accumulations = 0
        # The first backward(create_graph=True) since the last step, and what it reached.
        self._first_pass: int | None = None
        self._reached_first: set[int] = set()
        self._hooks = GradientHooks(self, leaf_of)

    def watch(self, params: Iterable[Tensor]) -> None:
        """Follow the gradients of ``params``, except those without ``requires_grad``."""
        for p in params:
            if p.requires_grad:
                self._hooks.watch(p)

    def add(
        self,
        p: Tensor,
        curvature: Tensor | None,
        factors: LossFactors = LossFactors(),  # noqa: B008
        owner: Node | None = None,
        loss: Tensor | None = None,
    ) -> None:
        """Add the curvature taken from one loss.

        Args:
            p: A Newton parameter.
            curvature: Shaped like ``p``; ``None`` if the loss does not depend on ``p``.
            factors: The factors of the loss, if ``curvature`` still has to be divided by the scale.
            owner: A node of the graph that the curvature was taken from, near the parameter;
                ``None`` for curvature from differences.
            loss: The loss.
        """
        entry = self._present_entry(p)
        if curvature is None:
            entry.missed_at = self._accumulations
        else:
            entry.fresh.append(Taken(curvature, factors, Owner(owner, loss)))

    def add_missed(self, params: Iterable[Tensor]) -> None:
        """Note that a loss does not depend on ``params``."""
        for p in params:
            self.add(p, None)

    def holds(self, params: Iterable[Tensor]) -> bool:
        """Return whether any of ``params`` has curvature whose backward ran or may still run."""
        return any(self._present_entry(p).holds() for p in params)

    def is_cleared(self, params: Iterable[Tensor]) -> bool:
        """Return whether all curvature of ``params`` was cleared. Waits for the device."""
        return all(flag is not None and not flag for flag in map(self.validity, params))

    def drop_cleared_graphs(self, params: Iterable[Tensor]) -> None:
        """Drop the graphs of gradients that were cleared since their backward."""
        for p in params:
            entry = self._entry(p)
            if entry.gradient_with_graph is not None:
                entry.drop_cleared_graph(p)

    def before_accumulation(self, p: Tensor, gradient: Tensor) -> None:
        """Note the gradient of one backward, just before it is added to ``p.grad``."""
        entry = self._entry(p)
        entry.drop_if_cleared(p)
        entry.drop_if_zero(p)
        entry.note_arrival(gradient)
        # Gradient mode is on inside a backward only with create_graph=True.
        if torch.is_grad_enabled():
            entry.incoming = gradient

    def after_accumulation(self, p: Tensor) -> None:
        """Note that a backward has just added to ``p.grad``."""
        self._accumulations += 1
        entry = self._entry(p)
        gradient, entry.incoming = entry.incoming, None
        if entry.is_taken(gradient):
            # Already taken: using this gradient's graph too would count the curvature twice.
            entry.settle()
        elif gradient is not None:
            current = torch._C._current_graph_task_id()
            self._first_pass = current if self._first_pass is None else self._first_pass
            if self._first_pass == current:
                self._reached_first.add(id(p))
            before = entry.gradient_with_graph
            with torch.enable_grad():
                entry.gradient_with_graph = gradient if before is None else before + gradient
            entry.objection = entry.objection or self._running_backward.objection(p)
        else:
            entry.forgotten = True
        entry.is_averaged = False
        holds = entry.settled or entry.gradient_with_graph is not None
        # The gradient of a sharded parameter arrives later, from a collective.
        if holds and p.grad is not None and not is_dtensor(p):
            entry.stamp = GradientStamp.of(p.grad)
            if entry.dropped or entry.kept is not None:
                entry.latest = p.grad.detach().clone()

    def has_graph(self, p: Tensor) -> bool:
        """Return whether ``backward(create_graph=True)`` left a gradient of ``p`` with a graph."""
        return self._gradient_with_graph(p) is not None

    def gradients_averaged(self, params: Iterable[Tensor]) -> None:
        """Note that the gradients of ``params`` have just been averaged over ranks."""
        for p in params:
            self._entry(p).note_average(p)

    def is_averaged(self, p: Tensor) -> bool:
        """Return whether no backward has added to ``p.grad`` since it was averaged over ranks."""
        return p.grad is None or self._entry(p).is_averaged

    def drop_settled(self, p: Tensor) -> None:
        """Drop the curvature of ``p`` that belongs to a cleared gradient."""
        self._entry(p).drop_settled()

    def drop_loss(self, loss: Tensor) -> None:
        """Drop the fresh curvature that was taken from this loss."""
        for entry in self._pending.values():
            entry.fresh = [taken for taken in entry.fresh if not taken.owner.is_of_loss(loss)]

    def drop_fresh(self) -> None:
        """Drop all fresh curvature, because its backward will never run."""
        for entry in self._pending.values():
            entry.fresh = []

    def gradients_cleared(self) -> None:
        """Drop all settled curvature, because the optimizer is clearing every gradient."""
        self._first_pass = None
        self._reached_first.clear()
        for entry in self._pending.values():
            entry.note_clearing(self._accumulations)

    def collect(
        self,
        params: Sequence[Tensor],
        estimator: Estimator,
        probes: Callable[[], Sequence[Tensor] | None],
        loss_scale: float | None,
        name: Callable[[Tensor], str],
        *,
        alone: bool = True,
    ) -> list[Tensor | None]:
        """Sum the signed curvature that is pending for each of ``params``.

        Args:
            params: Newton parameters that have a gradient.
            estimator: See :func:`sgdph.curvature.estimators.curvature_of_gradients`.
            probes: Draws probes for :func:`sgdph.curvature.estimators.curvature_of_gradients`.
            loss_scale: The divisor for products of ``backward(create_graph=True)``; ``None`` uses
                the scale of the calling ``GradScaler``.
            name: Returns the name of a parameter.
            alone: Whether this is the only rank. With other ranks, it is normal that ``.grad``
                changes after its backward.

        Returns:
            Per parameter a tensor of its shape in its curvature's dtype, or ``None`` if it has no
            curvature.

        Raises:
            RuntimeError: A gradient was combined by hand from several backwards, or losses are
                gone, so its curvature is unknown; or it is unclear whether a loss was scaled.
        """
        for p in params:
            self._entry(p).prepare_step(p, self._accumulations, name if alone else None)
        gradients = [self._gradient_with_graph(p) for p in params]
        is_plain = all(g is None for g in gradients)
        is_divided = not any(self._entry(p).has_factors() for p in params)
        scaler = None if is_plain and is_divided else calling_grad_scaler()
        sums = [self._entry(p).total(scaler) for p in params]
        if is_plain:
            return sums
        if loss_scale is None:
            loss_scale = 1.0 if scaler is None else float(scaler.get_scale())
        for p, gradient in zip(params, gradients, strict=True):
            objection = self._entry(p).objection
            if gradient is not None and objection is not None:
                raise RuntimeError(objection)
        check_gradients(gradients)
        products = curvature_of_gradients(gradients, params, estimator, probes())
        for i, (p, h, taken) in enumerate(zip(params, products, sums, strict=True)):
            if h is not None:
                h = h.to(curvature_dtype(p)) / loss_scale
                sums[i] = h if taken is None else taken + h
        return sums

    def validity(self, p: Tensor) -> Tensor | None:
        """Return, as a tensor, whether any curvature of ``p`` is left; ``None`` means true."""
        return self._entry(p).validity()

    def _gradient_with_graph(self, p: Tensor) -> Tensor | None:
        if p in self._hooks:
            return self._entry(p).gradient_with_graph
        # Unfrozen since hooks were placed, so it has no hooks: .grad itself still has the graph.
        return p.grad if p.grad is not None and p.grad.grad_fn is not None else None

    def reaches(self) -> Callable[[Tensor], bool]:
        """Return a function that tells which parameters ``backward(create_graph=True)`` reached.

        The first such backward since the last step counts; if nothing is left of it, all of them
        count. A parameter reached by a backward without a graph counts too: there, the user forgot
        to take the partial Hessian.
        """
        first = [self._pending.get(each) for each in self._reached_first]
        is_gone = not any(each and each.gradient_with_graph is not None for each in first)

        def reached(p: Tensor) -> bool:
            if p.grad is None:
                return False
            if p in self._hooks and self._entry(p).forgotten:
                return True
            counts = is_gone or id(p) in self._reached_first or p not in self._hooks
            return counts and self._gradient_with_graph(p) is not None

        return reached

    def was_missed(self, p: Tensor) -> bool:
        """Return whether curvature of ``p`` was requested from a loss that does not reach it."""
        return self._entry(p).missed_at is not None

    def was_passed_over(self, p: Tensor) -> bool:
        """Return whether no backward has reached ``p``, so that any ``.grad`` is left over."""
        if p.grad is None:
            return True
        # A .grad with a graph was set by hand; one without hooks may be new.
        if p.grad.grad_fn is not None or p not in self._hooks:
            return False
        entry = self._entry(p)
        return not entry.holds() and not entry.forgotten

    def has_come(self, params: Iterable[Tensor]) -> bool:
        """Return whether curvature of any of ``params`` was requested from a loss.

        Curvature that belongs to cleared gradients does not count.
        """
        for p in params:
            entry = self._entry(p)
            if self.was_missed(p) or entry.fresh:
                return True
            # Nothing is dropped here: a gradient replaced by clipping keeps its curvature.
            replaced = entry.stamp is not None and entry.stamp.is_replaced(p.grad)
            holds = entry.settled or self._gradient_with_graph(p) is not None
            if holds and not replaced:
                return True
        return False

    def clear(self) -> None:
        """Drop everything."""
        self._pending.clear()
        self._first_pass = None
        self._reached_first.clear()

    def _present_entry(self, p: Tensor) -> PendingEntry:
        """Return the entry of ``p``, after dropping curvature that no longer counts."""
        entry = self._entry(p)
        entry.drop_if_cleared(p)
        entry.drop_without_graph()
        return entry

    def _entry(self, p: Tensor) -> PendingEntry:
        return self._pending.setdefault(id(p), PendingEntry())
