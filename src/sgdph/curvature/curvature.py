"""The way of the curvature: from a loss, over micro-batches and ranks, into the averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from sgdph.algorithm import CurvatureAverages, curvature_dtype
from sgdph.autograd.graph import Graph, Node, Region
from sgdph.autograd.shared_backward import SharedBackward
from sgdph.curvature.cycle import MOST_SWEEPS, Cycle
from sgdph.curvature.estimators import (
    check_loss,
    curvature_of_gradients,
    gradients_with_graph,
    is_one_product,
)
from sgdph.curvature.finite_difference import Closure, curvature_of_differences
from sgdph.curvature.grad_scaler import LossFactors, loss_factors
from sgdph.curvature.guards import Membership, ReplacedParameters
from sgdph.curvature.pending import PendingCurvature
from sgdph.distributed.ddp import Wrappers, static_graph_unnoticed
from sgdph.distributed.reduction import Arrival, Ranks
from sgdph.names import Estimator
from sgdph.roles import parameter_name
from sgdph.validation import (
    check_loss_scale,
    is_stochastic,
    refuse_sparse_gradients,
    warn_of_starving,
)

Groups = Sequence[dict[str, Any]]
State = MutableMapping[Tensor, dict[str, Any]]

_NONE_CAME = (
    "this step wants a partial Hessian and none came. Take it in one of three ways: "
    "optimizer.backward(loss) in place of loss.backward(); or optimizer.update_hessian(loss) "
    "before loss.backward(); or loss.backward(create_graph=True), which leaves no graph inside a "
    "reentrant checkpoint (use_reentrant=False does). Where a framework runs the backward, "
    "sgdph.integrations has what takes it there (docs/frameworks.md)"
)


class Curvature:
    """All that stands between a loss and the Newton multipliers.

    The groups and the state are the optimizer's, passed in at each call, because loading a state
    replaces them.

    Args:
        newton: The Newton parameters, in registration order.
        process_group: The ranks to average over; ``None`` is the default group.
        groups: The parameter groups that hold them.
    """

    def __init__(
        self, newton: Sequence[Tensor], process_group: ProcessGroup | None, groups: Groups
    ) -> None:
        self.cycle = Cycle(newton)
        self._membership = Membership(self.cycle, groups)
        self.ranks = Ranks(process_group)
        self._wrappers = Wrappers()
        self._join_is_new = False
        self._pending = PendingCurvature()
        self._averages = CurvatureAverages()
        self._replaced = ReplacedParameters()
        # Those whose turn it is, and those passed over, from the first loss to the step.
        self._turn: tuple[list[Tensor], list[Tensor]] | None = None
        self._pending.watch(newton)

    def append(self, p: Tensor) -> None:
        """Let one more Newton parameter join."""
        self.cycle.append(p)
        self._pending.watch([p])

    def check_membership(self, groups: Groups) -> None:
        """See :meth:`Membership.check`."""
        self._membership.check(groups)

    def is_due(self, groups: Groups) -> bool:
        """Tell whether the coming step wants a partial Hessian."""
        return self.cycle.is_due(groups, alone=not self.has_other_ranks())

    def take(
        self,
        loss: Tensor,
        loss_scale: float | Tensor | None,
        groups: Groups,
        *,
        share: bool = False,
    ) -> Callable[[], None] | None:
        """Take the curvature of those whose turn it is from ``loss``, divided by ``loss_scale``.

        Args:
            loss: See :meth:`SGDPH.update_hessian`.
            loss_scale: See :meth:`SGDPH.update_hessian`.
            groups: The parameter groups.
            share: Whether the loss's own backward may begin with this pass.

        Returns:
            The rest of the backward, where it has begun; the graph is then partly freed.
        """
        check_loss_scale(loss_scale)
        check_loss(loss)
        self.check_membership(groups)
        graph = Graph(loss)
        targets = self._targets(groups, graph.reaches)
        if not self.cycle.is_regular(groups):
            targets = [p for p in targets if graph.reaches(p)]
            if not targets:
                # One that is sought, and is not here either.
                return None
        estimator: Estimator = groups[0]["estimator"]
        trainable = [p for p in targets if p.requires_grad]
        self._pending.watch(trainable)
        region = Region(graph, trainable)
        factors = loss_factors(graph) if loss_scale is None else LossFactors()
        once = is_one_product(estimator, trainable)
        shared = SharedBackward.through(region) if share and once else None
        with static_graph_unnoticed(region):
            gradients = gradients_with_graph(loss, trainable, region, once=once, shared=shared)
            if shared is not None and not shared.is_complete:
                shared = None
            refuse_sparse_gradients(trainable, gradients, partial(parameter_name, groups))
            probes = self.cycle.probes(groups, trainable)
            curvatures = curvature_of_gradients(
                gradients, trainable, estimator, probes, release=None if shared is None else loss
            )
        taken = dict(zip(trainable, curvatures, strict=True))
        nearest = region.nodes[0] if region.nodes else None
        self._keep(loss, taken, loss_scale, factors, nearest, groups)
        return None if shared is None else shared.hand_on

    def take_differences(
        self, closure: Closure, loss_scale: float | Tensor | None, groups: Groups
    ) -> None:
        """Take the curvature of those whose turn it is from differences of gradients.

        Args:
            closure: See :meth:`SGDPH.update_hessian`.
            loss_scale: See :meth:`SGDPH.update_hessian`.
            groups: The parameter groups.
        """
        check_loss_scale(loss_scale)
        self.check_membership(groups)
        last: list[LossFactors] = [LossFactors()]

        def watched() -> Tensor:
            loss = closure()
            # Before its graph is freed.
            if loss_scale is None and isinstance(loss, Tensor):
                last[0] = loss_factors(Graph(loss))
            return loss

        fixed = self._turn is not None and self._pending.holds(self._turn[0])
        # What a loss reaches shows only when there is one.
        targets = self._targets(groups, lambda p: True)
        taken, loss = self._differences(watched, targets, groups)
        nothing = loss is not None and all(h is None for h in taken.values())
        if loss is not None and nothing and not fixed and self._is_free(groups):
            self._turn = None
            reached = Graph(loss).reaches
            targets = [p for p in self._targets(groups, reached) if reached(p)]
            if targets:
                taken, loss = self._differences(watched, targets, groups)
        if loss is None:
            self._note_missed(targets)
        else:
            self._keep(loss, taken, loss_scale, last[0], None, groups)

    def _differences(
        self, closure: Closure, targets: Sequence[Tensor], groups: Groups
    ) -> tuple[dict[Tensor, Tensor | None], Tensor | None]:
        trainable = [p for p in targets if p.requires_grad]
        if not trainable:
            return {}, None
        self._pending.watch(trainable)
        probes = self.cycle.probes(groups, trainable)
        refuse_sparse = partial(refuse_sparse_gradients, name=partial(parameter_name, groups))
        curvatures, loss = curvature_of_differences(
            closure, trainable, groups[0]["estimator"], probes, check=refuse_sparse
        )
        return dict(zip(trainable, curvatures, strict=True)), loss

    def _is_free(self, groups: Groups) -> bool:
        """Tell whether the turn goes by what a loss reaches."""
        cyclic = groups[0]["refresh"] == "cyclic"
        return cyclic and self.cycle.is_regular(groups) and not self.has_other_ranks()

    def _targets(self, groups: Groups, reaches: Callable[[Tensor], bool]) -> list[Tensor]:
        """Return those whose turn it is: the first loss of a step decides for all of it.

        One whose backward never came decides nothing.
        """
        turn = self._turn
        holds = turn is not None and self._pending.holds(turn[0])
        if turn is not None and holds and not any(map(reaches, turn[0])):
            # Were the gradients of the first loss set to zero? Only this loss's own misses ask.
            holds = not self._pending.is_cleared(turn[0])
        if not holds:
            alone = not self.has_other_ranks()
            self._turn = self.cycle.choose(groups, reaches if alone else None)
        assert self._turn is not None
        return self._turn[0]

    def _keep(
        self,
        loss: Tensor,
        taken: Mapping[Tensor, Tensor | None],
        loss_scale: float | Tensor | None,
        factors: LossFactors,
        owner: Node | None,
        groups: Groups,
    ) -> None:
        """Keep what was taken until the step, divided by the loss's scale where that is known."""
        targets, passed_over = self._turn or ([], [])
        missed = [*passed_over, *(p for p, h in taken.items() if h is None)]
        self._notice_replaced([loss], missed, groups)
        for p in targets:
            h = taken.get(p)
            if h is not None:
                h = h.to(curvature_dtype(p))
                h = h if loss_scale is None else h / loss_scale
            self._pending.add(p, h, factors, owner)

    def arrive(
        self, groups: Groups, loss_scale: float | None, *, active: bool = True
    ) -> list[Arrival]:
        """Gather what came for those whose turn it is, over all ranks.

        Args:
            groups: The parameter groups.
            loss_scale: See :meth:`SGDPH.step`.
            active: Whether this rank still has batches.

        Raises:
            RuntimeError: Nothing came, though there are gradients; or the model is inside a join
                context that does not know of the optimizer.
        """
        self._pending.look_at_gradients(self.cycle.newton)
        if self._turn is None:
            self._targets(groups, self._pending.reaches())
        targets, passed_over = self._turn or ([], [])
        # What a rank without batches has in .grad is left over from its last one.
        own = targets if active else []
        self._notice_missed_in_gradients([*own, *passed_over], groups)
        live = [p for p in own if p.grad is not None]
        collected = self._pending.collect(
            live,
            groups[0]["estimator"],
            lambda: self.cycle.probes(groups, live),
            loss_scale,
            partial(parameter_name, groups),
            alone=not self.has_other_ranks(),
        )
        came = {id(p): h for p, h in zip(live, collected, strict=True)}
        # A frozen parameter's gradient is left over: there is nothing to take.
        nothing_came = any(p.requires_grad for p in live) and not any(
            came[id(p)] is not None or self._pending.was_missed(p) for p in live
        )
        arrivals = [
            Arrival(p, came.get(id(p)), self._pending.validity(p) if id(p) in came else None)
            for p in targets
        ]
        if self.has_other_ranks():
            self.accept_join()
            self._wrappers.refuse_join_without_optimizer(self.cycle.newton)
            arrivals = self.ranks.mean(arrivals, active=active)
            # Only a rank that has nothing waits for its device, to learn whether others have.
            nothing_came = nothing_came and not any(bool(a.valid) for a in arrivals)
        if nothing_came and self.cycle.is_regular(groups):
            raise RuntimeError(_NONE_CAME)
        return arrivals

    def advance(self, groups: Groups, arrivals: Sequence[Arrival], *, due: bool) -> None:
        """Complete a step: the turn passes on."""
        refreshed = [a.p for a in arrivals if a.h is not None]
        alone = not self.has_other_ranks()
        starving = self.cycle.advance(groups, refreshed, due=due, alone=alone)
        if starving:
            names = [parameter_name(groups, p) for p in starving]
            warn_of_starving(names, MOST_SWEEPS)

    def has_come(self) -> bool:
        """Tell whether anything was taken for the coming step."""
        return self._pending.has_come(self.cycle.newton)

    def average(self, arrivals: Sequence[Arrival], groups: Groups, state: State) -> None:
        """Let what came enter the averages (Eq. 4, 5)."""
        if not arrivals:
            return
        # Noise has mean zero only while it is signed.
        signed = is_stochastic(groups[0]["estimator"])
        beta2 = {id(p): group["hessian_momentum"] for group in groups for p in group["params"]}
        for p, h, valid in arrivals:
            if h is not None:
                rectified = h if signed else h.abs()
                self._averages.add(p, state[p], rectified, valid, beta2[id(p)])

    def multiplier(
        self, p: Tensor, state: Mapping[Tensor, dict[str, Any]], group: Mapping[str, Any]
    ) -> Tensor:
        """Return ``τ / (D̂ + ε)``, shaped like ``p``; it is remembered, so do not write into it."""
        return self._averages.multiplier(p, state.get(p, {}), group)

    def has_other_ranks(self) -> bool:
        """Tell whether there is anybody to average with."""
        return self.ranks.count() > 1

    def join_begins(self) -> None:
        """Note that a join context will call here for a rank that has run out of batches."""
        self._join_is_new = True

    def accept_join(self) -> None:
        """Accept the context that has begun, if one has; the next one must say anew."""
        # Not when it begins: the context may tell the model of itself after the optimizer.
        if self._join_is_new:
            self._join_is_new = False
            self._wrappers.accept_joins(self.cycle.newton)

    def backward_failed(self) -> None:
        """Drop what was taken for a backward that came to nothing."""
        self._pending.drop_fresh()

    def gradients_cleared(self) -> None:
        """Drop what belongs to the gradients that the optimizer is about to clear."""
        self._pending.gradients_cleared()

    def consumed(self, groups: Groups) -> None:
        """Forget what was pending, and every graph a ``backward(create_graph=True)`` left behind.

        Parameter, ``.grad`` and graph hold each other, and no garbage collector sees that cycle.
        """
        self._pending.clear()
        self._turn = None
        # One that was unfrozen meanwhile too.
        self._pending.watch(self.cycle.newton)
        for group in groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.grad_fn is not None:
                    p.grad = p.grad.detach()

    def state_replaced(self, groups: Groups, turns: Sequence[Tensor | None]) -> None:
        """Take over the place in the cycle; drop the curvature that was pending for another."""
        self._pending.clear()
        self._turn = None
        self.cycle.load(groups, turns)

    def _notice_missed_in_gradients(self, targets: Sequence[Tensor], groups: Groups) -> None:
        """Look where ``backward(create_graph=True)`` left graphs, as ``take`` does at the loss."""
        gradients = [p.grad for group in groups for p in group["params"]]
        roots = [g for g in gradients if g is not None and g.grad_fn is not None]
        if roots:
            missed = [p for p in targets if p.requires_grad and self._pending.was_passed_over(p)]
            self._notice_replaced(roots, missed, groups)
            self._note_missed(missed)

    def _note_missed(self, params: Sequence[Tensor]) -> None:
        for p in params:
            self._pending.add(p, None)

    def _notice_replaced(
        self, roots: Sequence[Tensor], missed: Sequence[Tensor], groups: Groups
    ) -> None:
        self._replaced.check(roots, missed, groups, partial(parameter_name, groups))
