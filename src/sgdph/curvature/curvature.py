"""Take curvature from losses, collect it over micro-batches and ranks, and average it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from sgdph.algorithm import CurvatureAverages, curvature_dtype
from sgdph.autograd.graph import Graph, Node, Region
from sgdph.autograd.shared_backward import SharedBackward
from sgdph.curvature.cycle import Cycle
from sgdph.curvature.estimators import (
    check_loss,
    curvature_of_gradients,
    gradients_with_graph,
    is_one_product,
)
from sgdph.curvature.finite_difference import Closure, curvature_of_differences
from sgdph.curvature.grad_scaler import LossFactors, loss_factors
from sgdph.curvature.gradient_hooks import detach_gradients
from sgdph.curvature.guards import Guards, none_came
from sgdph.curvature.pending import PendingCurvature
from sgdph.curvature.sharded_model import ShardedModel
from sgdph.curvature.targets import Targets
from sgdph.curvature.turn import warn_of_unrefreshed
from sgdph.distributed.ddp import static_graph_unnoticed
from sgdph.distributed.reduction import Collected, Ranks
from sgdph.names import Estimator
from sgdph.roles import Groups, parameter_name
from sgdph.validation import is_stochastic, refuse_sparse_gradients

NewtonGroups = Sequence[dict[str, Any]]
State = MutableMapping[Tensor, dict[str, Any]]


class Curvature:
    """Everything between a loss and the Newton multipliers.

    The groups and the state belong to the optimizer. They are passed in at each call, because
    loading a state replaces them.

    Args:
        newton: The Newton parameters, in registration order.
        process_group: The ranks to average over; ``None`` is the default group.
        groups: The parameter groups that hold them.
    """

    def __init__(
        self, newton: Sequence[Tensor], process_group: ProcessGroup | None, groups: NewtonGroups
    ) -> None:
        self.cycle = Cycle(newton)
        self.sharded = ShardedModel()
        self.guards = Guards(self.cycle, groups, self.sharded)
        self.ranks = Ranks(process_group)
        self.pending = PendingCurvature(self.sharded.leaf_of)
        self._targets = Targets(self.cycle, self.pending)
        self._averages = CurvatureAverages()
        self.pending.watch(newton)

    def append(self, p: Tensor) -> None:
        """Add one more Newton parameter."""
        self.cycle.append(p, has_begun=self._targets.are_chosen)
        self.pending.watch([p])

    def is_due(self, groups: Groups) -> bool:
        """Return whether the coming step needs a partial Hessian."""
        return self.cycle.is_due(groups.newton, alone=self.is_alone())

    def take(
        self,
        loss: Tensor,
        loss_scale: float | Tensor | None,
        groups: Groups,
        share: bool = False,
    ) -> Callable[[], None] | None:
        """Take the curvature that is due from ``loss``, divided by ``loss_scale``.

        Args:
            loss: See :meth:`SGDPH.update_hessian`.
            loss_scale: See :meth:`SGDPH.update_hessian`.
            groups: The parameter groups.
            share: Whether this pass may also be the first part of the loss's own backward.

        Returns:
            The rest of the backward, if this pass was its first part; the graph is then partly
            freed. ``None`` otherwise.
        """
        check_loss(loss)
        self.guards.check_take(loss_scale, groups)
        graph = Graph(loss)
        reaches = self.sharded.reached_in(graph)
        targets = self._targets.choose(groups.newton, reaches, alone=self.is_alone())
        if not self.cycle.is_regular(groups.newton):
            targets = list(filter(reaches, targets))
        if not targets:
            # The loss does not reach the sought parameter either, or all have joined too late.
            return None
        estimator: Estimator = groups.newton[0]["estimator"]
        trainable = [p for p in targets if p.requires_grad]
        self.pending.watch(trainable)
        leaves = self.sharded.leaves_in(graph, trainable, self.ranks)
        region = Region(graph, leaves)
        self.guards.warn_of_row_sums(region, filter(reaches, trainable), estimator)
        factors = loss_factors(graph) if loss_scale is None else LossFactors()
        once = is_one_product(estimator, trainable)
        shared = SharedBackward.through(region) if share and once else None
        with static_graph_unnoticed(region):
            gradients = gradients_with_graph(loss, leaves, region, once=once, shared=shared)
            if shared is not None and not shared.is_complete:
                shared = None
            refuse_sparse_gradients(trainable, gradients, partial(parameter_name, groups.every))
            probes = self.cycle.probes(groups.newton, trainable)
            with nullcontext() if shared is None else shared.released.reading([*gradients, loss]):
                curvatures = curvature_of_gradients(
                    gradients, leaves, estimator, probes, release=loss if shared else None
                )
        taken = dict(zip(trainable, curvatures, strict=True))
        owner = region.nodes[0] if region.nodes else None
        self._keep(loss, taken, loss_scale, factors, owner, groups)
        return None if shared is None else shared.finish_backward

    def take_differences(
        self, closure: Closure, loss_scale: float | Tensor | None, groups: Groups
    ) -> None:
        """Take the curvature that is due, from differences of gradients.

        Args:
            closure: See :meth:`SGDPH.update_hessian`.
            loss_scale: See :meth:`SGDPH.update_hessian`.
            groups: The parameter groups.
        """
        self.guards.check_take(loss_scale, groups)
        last: list[LossFactors] = [LossFactors()]

        def watched() -> Tensor:
            loss = closure()
            # Read the factors before the graph is freed.
            if loss_scale is None and isinstance(loss, Tensor):
                last[0] = loss_factors(Graph(loss))
            return loss

        alone = self.is_alone()
        is_free = self._targets.are_free(groups.newton, alone=alone)
        # Which parameters a loss reaches is known only once it is computed.
        targets = self._targets.choose(groups.newton, lambda p: True, alone=alone)
        taken, loss = self._differences(watched, targets, groups)
        if is_free and loss is not None and all(h is None for h in taken.values()):
            self._targets.clear()
            reaches = Graph(loss).reaches
            targets = self._targets.choose(groups.newton, reaches, alone=alone)
            if targets := list(filter(reaches, targets)):
                taken, loss = self._differences(watched, targets, groups)
        if loss is None:
            self.pending.add_missed(targets)
        else:
            self._keep(loss, taken, loss_scale, last[0], None, groups)

    def _differences(
        self, closure: Closure, targets: Sequence[Tensor], groups: Groups
    ) -> tuple[dict[Tensor, Tensor | None], Tensor | None]:
        trainable = [p for p in targets if p.requires_grad]
        if not trainable:
            return {}, None
        self.pending.watch(trainable)
        probes = self.cycle.probes(groups.newton, trainable)
        refuse_sparse = partial(refuse_sparse_gradients, name=partial(parameter_name, groups.every))
        curvatures, loss = curvature_of_differences(
            closure, trainable, groups.newton[0]["estimator"], probes, check=refuse_sparse
        )
        return dict(zip(trainable, curvatures, strict=True)), loss

    def _keep(
        self,
        loss: Tensor,
        taken: Mapping[Tensor, Tensor | None],
        loss_scale: float | Tensor | None,
        factors: LossFactors,
        owner: Node | None,
        groups: Groups,
    ) -> None:
        """Keep what was taken until the step, divided by the loss's scale if that is known."""
        missed = [*self._targets.passed_over, *(p for p, h in taken.items() if h is None)]
        self.guards.check_reached([loss], missed, groups.every)
        for p in self._targets.params:
            h = taken.get(p)
            if h is not None:
                h = h.to(curvature_dtype(p))
                h = h if loss_scale is None else h / loss_scale
            self.pending.add(p, h, factors, owner, loss if owner is not None else None)

    def collect(
        self, groups: Groups, loss_scale: float | None, *, active: bool = True
    ) -> list[Collected]:
        """Collect the curvature of the parameters to refresh, over all ranks.

        Args:
            groups: The parameter groups.
            loss_scale: See :meth:`SGDPH.step`.
            active: Whether this rank still has batches.

        Raises:
            RuntimeError: There are gradients but no curvature; or as :meth:`Ranks.check`.
        """
        self.pending.drop_cleared_graphs(self.cycle.newton)
        alone = self.is_alone()
        if not self._targets.are_chosen:
            self._targets.choose(groups.newton, self.pending.reaches(), alone=alone)
        targets = self._targets.params
        # On a rank without batches, .grad is left over from its last batch.
        own = targets if active else []
        self._notice_missed_in_gradients([*own, *self._targets.passed_over], groups)
        live = [p for p in own if p.grad is not None]
        curvatures = self.pending.collect(
            live,
            groups.newton[0]["estimator"],
            lambda: self.cycle.probes(groups.newton, live),
            loss_scale,
            partial(parameter_name, groups.every),
            alone=alone,
        )
        found = {
            p: Collected(p, h, self.pending.validity(p))
            for p, h in zip(live, curvatures, strict=True)
        }
        collected = [found.get(p, Collected(p, None)) for p in targets]
        if not alone and targets:
            if not self.sharded.is_around(self.cycle.newton, groups.every):
                self.ranks.check(self.cycle.newton, groups.newton[0], active=active)
            collected = self.ranks.mean(collected, active=active)
        none = self.cycle.is_regular(groups.newton) and self._has_none(found.values())
        # Only a rank without curvature waits for its device, to learn whether others have any.
        if none and (alone or not any(bool(c.valid) for c in collected)):
            raise none_came(self.cycle.newton)
        return collected

    def _has_none(self, found: Iterable[Collected]) -> bool:
        # The gradient of a frozen parameter is left over, so no curvature is expected for it.
        return any(c.p.requires_grad for c in found) and not any(
            c.h is not None or self.pending.was_missed(c.p) for c in found
        )

    def advance(self, groups: Groups, collected: Sequence[Collected], *, due: bool) -> None:
        """Complete a step: advance the cycle, and warn about parameters that waited too long."""
        refreshed = [c.p for c in collected if c.h is not None]
        alone = self.is_alone()
        if unrefreshed := self.cycle.advance(groups.newton, refreshed, due=due, alone=alone):
            warn_of_unrefreshed([parameter_name(groups.every, p) for p in unrefreshed])

    def average(self, collected: Sequence[Collected], groups: Groups, state: State) -> None:
        """Add collected curvature to the averages (Eq. 4, 5)."""
        if not collected:
            return
        # Noise has mean zero only if its sign is kept.
        signed = is_stochastic(groups.newton[0]["estimator"])
        beta2 = {p: group["hessian_momentum"] for group in groups.newton for p in group["params"]}
        for p, h, valid in collected:
            if h is not None:
                self._averages.add(p, state[p], h if signed else h.abs(), valid, beta2[p])

    def multiplier(
        self, p: Tensor, state: Mapping[Tensor, dict[str, Any]], group: Mapping[str, Any]
    ) -> Tensor:
        """Return ``τ / (D̂ + ε)``, shaped like ``p``. It is cached, so do not write into it."""
        return self._averages.multiplier(p, state.get(p, {}), group)

    def is_alone(self) -> bool:
        """Return whether there are no other ranks to average with."""
        return self.ranks.count() <= 1

    def finish_step(self, groups: Groups) -> None:
        """Drop pending curvature, and all graphs that ``backward(create_graph=True)`` left.

        Parameter, ``.grad`` and graph refer to each other, and the garbage collector does not find
        this cycle.
        """
        self.pending.clear()
        self._targets.clear()
        # Includes parameters that were unfrozen since.
        self.pending.watch(self.cycle.newton)
        detach_gradients(p for group in groups.every for p in group["params"])

    def load(self, groups: NewtonGroups, turns: Sequence[Tensor | None]) -> None:
        """Load a place in the cycle, and drop the curvature that was pending at the old one."""
        self.pending.clear()
        self._targets.clear()
        self.cycle.load(groups, turns)

    def _notice_missed_in_gradients(self, targets: Sequence[Tensor], groups: Groups) -> None:
        """Note targets that ``backward(create_graph=True)`` did not reach, if it was called."""
        gradients = [p.grad for group in groups.every for p in group["params"]]
        roots = [g for g in gradients if g is not None and g.grad_fn is not None]
        if roots:
            missed = [p for p in targets if p.requires_grad and self.pending.was_passed_over(p)]
            self.guards.check_reached(roots, missed, groups.every)
            self.pending.add_missed(missed)
