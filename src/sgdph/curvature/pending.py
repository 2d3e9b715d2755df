"""Partial curvature on its way from a loss to the next step.

Curvature belongs to a gradient: it adds up over micro-batches as the gradient does, and goes when
the gradient is cleared. But it is taken before the gradient exists, and the gradient may be cleared
behind the optimizer's back (``model.zero_grad()``, ``p.grad = None``) or between the loss and its
backward (older tutorials, Lightning's closures). So each Newton parameter's curvature is kept in
two parts: what is *fresh*, with no backward since, which no clearing may touch; and what is
*settled*, whose gradient has arrived, which goes as soon as that gradient is found to be gone.

A backward may also never come: a batch is skipped, or memory runs out. So fresh curvature has an
owner, the graph that it was taken from. If the graph is gone when the next curvature is taken, and
no backward came in between, the next curvature takes its place.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle, unserializable_hook

from sgdph.algorithm import curvature_dtype
from sgdph.autograd.graph import Node
from sgdph.autograd.graph_checks import RunningBackward, check_gradients
from sgdph.curvature.estimators import curvature_of_gradients
from sgdph.curvature.grad_scaler import LossFactors, calling_grad_scaler
from sgdph.curvature.pending_entry import GradientStamp, Owner, PendingEntry, Taken
from sgdph.names import Estimator


class PendingCurvature:
    """Keeps the curvature of each Newton parameter until the step that uses it."""

    def __init__(self) -> None:
        self._running_backward = RunningBackward()
        self._pending: dict[int, PendingEntry] = {}
        self._handles: dict[int, list[RemovableHandle]] = {}
        # Of all parameters: a miss settles with a backward that leaves its own parameter out.
        self._arrivals = 0
        # The first backward(create_graph=True) since the last step, and what it reached.
        self._first_pass: int | None = None
        self._reached_first: set[int] = set()
        # A model may outlive many optimizers, and each would leave its hooks on the parameters.
        weakref.finalize(self, _remove, self._handles).atexit = False

    def watch(self, params: Iterable[Tensor]) -> None:
        """Follow the gradients of ``params``; those without ``requires_grad`` are passed over."""
        for p in params:
            if id(p) not in self._handles and p.requires_grad:
                self._handles[id(p)] = _watch_gradient(p, weakref.ref(self))

    def add(
        self,
        p: Tensor,
        curvature: Tensor | None,
        factors: LossFactors = LossFactors(),  # noqa: B008
        owner: Node | None = None,
    ) -> None:
        """Add what was taken from one loss.

        Args:
            p: A Newton parameter.
            curvature: Shaped like it; ``None`` where the loss does not depend on ``p``.
            factors: What the loss was multiplied by, where ``curvature`` is still to be divided.
            owner: A node of the graph that the curvature was taken from, near the parameter;
                ``None`` for curvature from differences.
        """
        entry = self._entry(p)
        entry.drop_if_cleared(p)
        entry.drop_without_graph()
        if curvature is None:
            entry.missed_at = self._arrivals
        else:
            entry.fresh.append(Taken(curvature, factors, Owner(owner)))

    def holds(self, params: Iterable[Tensor]) -> bool:
        """Tell whether any of ``params`` has curvature whose backward came or may still come."""
        for p in params:
            entry = self._entry(p)
            entry.drop_if_cleared(p)
            entry.drop_without_graph()
            if entry.fresh or entry.settled or entry.gradient_with_graph is not None:
                return True
        return False

    def is_cleared(self, params: Iterable[Tensor]) -> bool:
        """Tell whether nothing is left for ``params``. Waits for the device."""
        flags = [self.validity(p) for p in params]
        return all(flag is not None and not bool(flag) for flag in flags)

    def look_at_gradients(self, params: Iterable[Tensor]) -> None:
        """Drop the graphs of gradients that were cleared since their backward."""
        for p in params:
            entry = self._entry(p)
            if entry.gradient_with_graph is not None:
                entry.drop_cleared_graph(p)

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
        if entry.fresh:
            # Taken already; a graph of this backward's gradient would count it twice.
            entry.settle()
        elif arrived is not None:
            current = torch._C._current_graph_task_id()
            if self._first_pass is None:
                self._first_pass = current
            if self._first_pass == current:
                self._reached_first.add(id(p))
            with torch.enable_grad():
                before = entry.gradient_with_graph
                entry.gradient_with_graph = arrived if before is None else before + arrived
            entry.objection = entry.objection or self._running_backward.objection(p)
        else:
            entry.forgotten = True
        holds = entry.settled or entry.gradient_with_graph is not None
        if holds and p.grad is not None:
            entry.stamp = GradientStamp.of(p.grad)
            if entry.dropped or entry.kept is not None:
                entry.latest = p.grad.detach().clone()

    def drop_fresh(self) -> None:
        """Drop all whose gradients have not arrived, because they never will."""
        for entry in self._pending.values():
            entry.fresh = []

    def gradients_cleared(self) -> None:
        """Drop all whose gradients had arrived, because the optimizer clears every gradient now."""
        self._first_pass = None
        self._reached_first.clear()
        for entry in self._pending.values():
            entry.drop_settled()
            entry.arriving = None
            if entry.missed_at is not None and entry.missed_at < self._arrivals:
                entry.missed_at = None

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
        """Sum up the curvature pending for each of ``params``, signed.

        Args:
            params: Newton parameters that have a gradient.
            estimator: See :func:`sgdph.curvature.estimators.curvature_of_gradients`.
            probes: Draws what :func:`sgdph.curvature.estimators.curvature_of_gradients` takes.
            loss_scale: What divides products of ``backward(create_graph=True)``; ``None`` asks the
                calling ``GradScaler``.
            name: Names a parameter.
            alone: Whether this is the only rank. Where there are others, ``.grad`` changes after
                its backward as a matter of course.

        Returns:
            Per parameter a tensor of its shape in its curvature's dtype, or ``None`` where nothing
            came.

        Raises:
            RuntimeError: A gradient was put together by hand from several backwards, so that its
                curvature is unknown; or it cannot be told whether a loss was scaled.
        """
        unknown = [p for p in params if alone and self._is_of_several(p, name)]
        for p in unknown:
            entry = self._entry(p)
            entry.settled, entry.gradient_with_graph = [], None
            entry.missed_at = self._arrivals
        scaler = calling_grad_scaler() if any(map(self._wants_scaler, params)) else None
        sums = [self._taken(p, scaler) for p in params]
        gradients = [self._gradient_with_graph(p) for p in params]
        if all(g is None for g in gradients):
            return sums
        if loss_scale is None:
            loss_scale = 1.0 if scaler is None else float(scaler.get_scale())
        for p, gradient in zip(params, gradients, strict=True):
            objection = self._entry(p).objection
            if gradient is not None and objection is not None:
                raise RuntimeError(objection)
        check_gradients(gradients)
        products = curvature_of_gradients(gradients, params, estimator, probes())
        for i, (p, h) in enumerate(zip(params, products, strict=True)):
            if h is not None:
                h = h.to(curvature_dtype(p)) / loss_scale
                taken = sums[i]
                sums[i] = h if taken is None else taken + h
        return sums

    def _is_of_several(self, p: Tensor, name: Callable[[Tensor], str]) -> bool:
        """Tell whether a gradient was put together by hand, after others had been cleared.

        It may also have been clipped after a skipped batch, and is then a multiple of what the
        latest backward left. The device is asked only where gradients were cleared before the step.
        """
        entry = self._entry(p)
        if entry.forgotten or entry.fresh or entry.missed_at is not None:
            return False
        stamp = entry.stamp
        assert p.grad is not None, "only live parameters are collected"
        if stamp is not None and not stamp.is_replaced(p.grad) and not stamp.is_changed():
            return False
        if not entry.dropped and (entry.kept is None or bool(entry.kept)):
            return False
        if stamp is not None and bool(entry.is_multiple_of_latest(p.grad)):
            return False
        if stamp is None or stamp.is_replaced(p.grad):
            raise RuntimeError(
                f"the .grad of parameter {name(p)} was put there by hand after several backwards, "
                "so the curvature that belongs to it is unknown. Let the backwards add up in "
                ".grad; or sum the losses and call optimizer.backward(loss) once"
            )
        warnings.warn(
            f"the .grad of parameter {name(p)} was changed by hand after its backward, and that of "
            "an earlier backward was cleared. The curvature that belongs to it is unknown, and is "
            "left out at this step. If .grad is a sum of several backwards, let them add up in it",
            UserWarning,
            stacklevel=5,
        )
        return True

    def _wants_scaler(self, p: Tensor) -> bool:
        entry = self._entry(p)
        if self._gradient_with_graph(p) is not None:
            return True
        return any(taken.factors for taken in (*entry.settled, *entry.fresh))

    def _taken(self, p: Tensor, scaler: torch.amp.GradScaler | None) -> Tensor | None:
        entry = self._entry(p)
        total: Tensor | None = None
        for taken in (*entry.settled, *entry.fresh):
            scale, curvature = taken.factors.scale(scaler), taken.curvature
            if scale is not None:
                curvature = curvature / scale.to(curvature.device, curvature.dtype)
            total = curvature if total is None else total + curvature
        return total

    def validity(self, p: Tensor) -> Tensor | None:
        """Tell whether anything is left of what was taken for ``p``.

        Returns:
            A boolean of shape ``()`` on the device; ``None`` is true.
        """
        entry = self._entry(p)
        if entry.fresh or entry.gradient_with_graph is not None:
            return None
        valid: Tensor | None = None
        for taken in entry.settled:
            if taken.valid is None:
                return None
            valid = taken.valid if valid is None else valid | taken.valid
        return valid

    def _gradient_with_graph(self, p: Tensor) -> Tensor | None:
        if id(p) in self._handles:
            return self._entry(p).gradient_with_graph
        # Unfrozen since the last look, so nobody watched: .grad itself still has the graph.
        return p.grad if p.grad is not None and p.grad.grad_fn is not None else None

    def reaches(self) -> Callable[[Tensor], bool]:
        """Return what tells the parameters that the first ``backward(create_graph=True)`` reached.

        All that any of them reached, where nothing is left of the first. And what a backward
        without a graph reached: there, the partial Hessian was forgotten.
        """
        first = [self._pending.get(each) for each in self._reached_first]
        is_gone = not any(each and each.gradient_with_graph is not None for each in first)

        def reached(p: Tensor) -> bool:
            if p.grad is None:
                return False
            if id(p) in self._handles and self._entry(p).forgotten:
                return True
            counts = is_gone or id(p) in self._reached_first or id(p) not in self._handles
            return counts and self._gradient_with_graph(p) is not None

        return reached

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
        if entry.fresh or entry.settled or entry.gradient_with_graph is not None:
            return False
        return not entry.forgotten

    def has_come(self, params: Iterable[Tensor]) -> bool:
        """Tell whether a loss has been asked for the curvature of any of ``params``.

        What belongs to gradients that have been cleared since does not count.
        """
        for p in params:
            entry = self._entry(p)
            if self.was_missed(p) or entry.fresh:
                return True
            if entry.stamp is not None and entry.stamp.is_replaced(p.grad):
                # Only a look: one that was clipped by replacement still has its curvature.
                continue
            if entry.settled:
                return True
            if self._gradient_with_graph(p) is not None:
                return True
        return False

    def clear(self) -> None:
        """Forget all of it."""
        self._pending.clear()
        self._first_pass = None
        self._reached_first.clear()

    def _entry(self, p: Tensor) -> PendingEntry:
        return self._pending.setdefault(id(p), PendingEntry())


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
