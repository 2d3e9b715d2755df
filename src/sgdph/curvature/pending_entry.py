"""The curvature that is pending for one parameter, and the gradient or graph it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgdph.curvature.by_hand import losses_gone, set_by_hand, warn_of_change
from sgdph.curvature.grad_scaler import LossFactors, calling_grad_scaler
from sgdph.curvature.gradient_stamp import GradientStamp, follows
from sgdph.curvature.taken import Taken
from sgdph.distributed.dtensor import is_dtensor


@dataclass
class PendingEntry:
    """The curvature pending for one parameter."""

    fresh: list[Taken] = field(default_factory=list)
    settled: list[Taken] = field(default_factory=list)
    gradient_with_graph: Tensor | None = None
    """Of ``loss.backward(create_graph=True)``, as the backward left it: settled as well."""
    objection: str | None = None
    """Why a product of that graph would be wrong."""
    incoming: Tensor | None = None
    """A gradient with a graph that is about to be added to ``.grad``."""
    missed_at: int | None = None
    """Asked of a loss that does not depend on the parameter; gradients that were there by then."""
    forgotten: bool = False
    """A gradient came for which nothing was taken, and without a graph to take it from."""
    dropped: bool = False
    """Some went with its gradient, since the last step."""
    dropped_finite: Tensor | None = None
    """Whether any of these gradients was finite; ``None`` if it is unknown."""
    former_factors: tuple[LossFactors, ...] = ()
    """Those of the last losses whose gradient was cleared, or changed before the next backward."""
    captured: bool = False
    """``autograd.grad`` has taken the gradient of the fresh curvature."""
    lost: bool = False
    """Some whose gradient ``autograd.grad`` had taken went with its graph, since the last step."""
    abandoned: bool = False
    """Some went with its graph before any gradient came, since gradients were cleared."""
    is_averaged: bool = False
    """Nothing has been added to the gradient since it was averaged over ranks, outside of DDP."""
    stamp: GradientStamp | None = None
    kept: Tensor | None = None
    """Whether gradients that were changed in place between two backwards were not cleared so."""
    kept_graph: Tensor | None = None
    """Whether the gradient with a graph was not set to zero before the step."""
    latest: Tensor | None = None
    """The gradient as the latest backward left it, where some may have been dropped before."""

    def drop_settled(self) -> None:
        """Drop settled curvature, because its gradient is gone."""
        if self.settled or self.gradient_with_graph is not None:
            self.dropped = True
            self.former_factors = tuple(taken.factors for taken in self.settled)
            if self.stamp is not None:
                finite, before = self.stamp.size.isfinite(), self.dropped_finite
                self.dropped_finite = finite if before is None else finite | before
        self.settled = []
        self.gradient_with_graph = self.objection = self.stamp = None
        self.forgotten = False

    def note_clearing(self, accumulations: int) -> None:
        """Note that all gradients are being cleared; see :meth:`drop_settled`."""
        self.drop_settled()
        self.fresh = [taken._replace(outlived_clearing=True) for taken in self.fresh]
        # Fresh curvature may be that of the last micro-batch, with .grad set only after this.
        self.incoming, self.abandoned = None, self.abandoned and bool(self.fresh)
        if self.missed_at is not None and self.missed_at < accumulations:
            self.missed_at = None

    def note_average(self, p: Tensor) -> None:
        """Note that ``p.grad`` has been averaged over ranks in place."""
        self.is_averaged = True
        if self.stamp is not None and not self.stamp.is_replaced(p.grad) and p.grad is not None:
            self.stamp = GradientStamp.of(p.grad)

    def drop_if_cleared(self, p: Tensor) -> None:
        """Drop settled curvature if its gradient was cleared since."""
        self.incoming = None
        if self.stamp is None:
            return
        if p.grad is None:
            self.drop_settled()
            self.abandoned = self.abandoned and bool(self.fresh)
            return
        if not self.stamp.fits(p.grad):
            # Cleared with set_to_none=False, or clipped, unscaled, averaged over ranks, in place or
            # not. Only a cleared one is all zeros, which can be checked without a host sync.
            kept = p.grad.any()
            self._keep_settled_if(kept)
            self.former_factors = tuple(taken.factors for taken in self.settled)
            counts = kept | ~self.stamp.size.isfinite()
            self.kept = counts if self.kept is None else self.kept & counts
            # Clearing in place detaches; clipping and unscaling do not. A gradient that was
            # detached by hand is told from a cleared one by its entries, at a host sync.
            detached = self.gradient_with_graph is not None and p.grad.grad_fn is None
            if detached and not bool(kept):
                self.gradient_with_graph = None
            self.stamp = GradientStamp.of(p.grad)

    def drop_if_zero(self, p: Tensor) -> None:
        """Drop settled curvature if its gradient is zero now, as ``p.grad.data.zero_()`` makes it.

        Such a write leaves no other trace.
        """
        if self.stamp is None or p.grad is None or not self.holds():
            return
        kept = self.stamp.is_kept(p.grad)
        self._keep_settled_if(kept)
        graph = self.gradient_with_graph
        if graph is not None and kept.device.type == "cpu":
            self.gradient_with_graph = graph if kept else None
        elif graph is not None:
            with torch.enable_grad():  # Without waiting for the device.
                self.gradient_with_graph = torch.where(kept, graph, 0)

    def _keep_settled_if(self, kept: Tensor) -> None:
        self.settled = [
            taken._replace(
                curvature=torch.where(kept, taken.curvature, 0),
                valid=kept if taken.valid is None else kept & taken.valid,
            )
            for taken in self.settled
        ]

    def prepare_step(
        self, p: Tensor, accumulations: int, name: Callable[[Tensor], str] | None
    ) -> None:
        """Drop what does not belong to the gradient that the step will use.

        Args:
            p: The parameter, which has a gradient.
            accumulations: The gradients that have come so far.
            name: Returns the name of a parameter; ``None`` if other ranks may have changed it.

        Raises:
            RuntimeError: The gradient was set by hand, or losses are gone, so that its curvature
                is unknown.
        """
        assert p.grad is not None, "only live parameters are collected"
        if name is not None and not is_dtensor(p):
            self._check_gradient(p, p.grad, accumulations, name)
        stamp, has_graph = self.stamp, self.gradient_with_graph is not None
        if (self.settled or has_graph) and not self.captured and not self.forgotten:
            # After a backward, a loss without one was skipped. If none had curvature, gradients may
            # have been computed in another way.
            self._drop_skipped()
        self.kept_graph = None
        if (self.settled or has_graph) and stamp is not None and not stamp.fits(p.grad):
            # Clipping leaves a gradient of zeros as it is, with its curvature.
            self.kept_graph = stamp.is_kept(p.grad)
            self._keep_settled_if(self.kept_graph)
        is_missed = self.dropped and not self.holds() and not is_dtensor(p)
        if is_missed and not bool(p.grad.any()):
            self.missed_at = accumulations

    def _check_gradient(
        self, p: Tensor, gradient: Tensor, accumulations: int, name: Callable[[Tensor], str]
    ) -> None:
        no_backward_ran = self.stamp is None and not (self.captured or self.forgotten)
        if self.abandoned and self.fresh and no_backward_ran:
            if bool(gradient.any()):
                raise losses_gone(name(p))
            # All batches were skipped, and only the schedules go on.
            self.fresh, self.missed_at = [], accumulations
        if self.is_of_several(gradient):
            if self.stamp is None or self.stamp.is_replaced(gradient):
                raise set_by_hand(name(p))
            warn_of_change(name(p))
            self.fresh, self.settled, self.gradient_with_graph = [], [], None
            self.missed_at = accumulations

    def _drop_skipped(self) -> None:
        """Drop fresh curvature from graphs that are gone."""
        self.fresh = [t for t in self.fresh if not (t.owner.has_graph and t.owner.is_gone())]

    def drop_cleared_graph(self, p: Tensor) -> None:
        """Drop the graph of a gradient that was cleared in place. Such clearing detaches it."""
        stamp, gradient = self.stamp, p.grad
        if stamp is None or stamp.is_replaced(gradient) or not stamp.is_changed():
            return
        if gradient is not None and gradient.grad_fn is None and not bool(gradient.any()):
            self.gradient_with_graph = None
            self.dropped = True

    def holds(self) -> bool:
        """Return whether there is any curvature, fresh or settled."""
        return bool(self.fresh or self.settled) or self.gradient_with_graph is not None

    def has_factors(self) -> bool:
        """Return whether any curvature may still have to be divided by the scale of its loss."""
        return any(taken.factors for taken in (*self.settled, *self.fresh))

    def total(self, scaler: torch.amp.GradScaler | None) -> Tensor | None:
        """Sum the curvature, divided by the scales of the losses; ``None`` if there is none.

        Args:
            scaler: The ``GradScaler`` that calls the step, if any.
        """
        total: Tensor | None = None
        for taken in (*self.settled, *self.fresh):
            scale, curvature = taken.factors.scale(scaler), taken.curvature
            if scale is not None:
                curvature = curvature / scale.to(curvature.device, curvature.dtype)
            total = curvature if total is None else total + curvature
        return total

    def validity(self) -> Tensor | None:
        """See :meth:`PendingCurvature.validity`."""
        flags = [self.kept_graph] if self.gradient_with_graph is not None else []
        flags += [taken.valid for taken in self.settled]
        known = [flag for flag in flags if flag is not None]
        if self.fresh or not known or len(known) < len(flags):
            return None
        return torch.stack(known).any()

    def is_of_several(self, gradient: Tensor) -> bool:
        """Return whether ``.grad`` was combined by hand after other gradients were cleared.

        A gradient that was cleared does not count, nor one that was only clipped after a skipped
        batch, nor one after a batch that cannot come back (:meth:`_may_come_back`). Waits for the
        device only if gradients were cleared, or changed in place between two backwards, since the
        last step.
        """
        if self.fresh and self.lost and not self.settled:
            return not bool(follows(gradient, self.latest))
        if self.forgotten or self.fresh or self.missed_at is not None:
            return False
        stamp = self.stamp
        if stamp is not None and stamp.fits(gradient):
            return False
        if not self._may_come_back():
            return False
        if not bool(gradient.any()):
            return False
        return stamp is None or not bool(follows(gradient, self.latest))

    def _may_come_back(self) -> bool:
        """Return whether any gradient that was cleared may be in ``.grad`` again.

        Not one that was not finite, and not one from before a step that a ``GradScaler`` skipped.
        """
        if not self.dropped and self.kept is None:
            return False
        scale = getattr(calling_grad_scaler(), "_scale", None)
        factors = self.former_factors
        if scale is not None and factors and all(each.are_outdated(scale) for each in factors):
            return False
        if self.kept is not None and not bool(self.kept):
            return True
        return self.dropped and (self.dropped_finite is None or bool(self.dropped_finite))

    def drop_without_graph(self) -> None:
        """Drop fresh curvature whose backward can no longer run."""
        if self.fresh:
            gone = [taken for taken in self.fresh if taken.owner.is_gone()]
            self.fresh = [taken for taken in self.fresh if not taken.owner.is_gone()]
            if gone:
                self.lost |= self.captured
                seems_skipped = all(taken.outlived_clearing for taken in gone)
                self.abandoned |= not (self.captured or seems_skipped)
                if seems_skipped and not self.holds():
                    self.abandoned = False
                self.captured = False

    def note_arrival(self, gradient: Tensor) -> None:
        """Note a gradient that ``autograd.grad`` may be taking, or a backward is about to add."""
        self.captured = bool(self.fresh)
        if self.captured and self.lost:
            self.latest = gradient.detach().clone()

    def is_taken(self, gradient_with_graph: Tensor | None) -> bool:
        """Return whether the curvature of the gradient that has just arrived was taken before.

        If the gradient has a graph, curvature from a graph that is gone belongs to a skipped batch,
        and is dropped.
        """
        if gradient_with_graph is not None:
            self._drop_skipped()
            self.captured = self.captured and bool(self.fresh)
        return bool(self.fresh)

    def settle(self) -> None:
        """Turn fresh curvature into settled curvature, because its gradient has arrived."""
        self.captured = False
        for taken in self.fresh:
            same = [i for i, t in enumerate(self.settled) if t.factors.key == taken.factors.key]
            if same:
                before = self.settled[same[0]]
                summed = before.curvature + taken.curvature
                self.settled[same[0]] = before._replace(curvature=summed, valid=None)
            else:
                self.settled.append(taken)
        self.fresh = []
