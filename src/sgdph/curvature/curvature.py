"""Takes curvature from losses, collects it over micro-batches and ranks, averages it."""

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
from sgdph.curvature.cycle import MOST_SWEEPS, Cycle
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
from sgdph.distributed.ddp import static_graph_unnoticed
from sgdph.distributed.reduction import Collected, Ranks
from sgdph.names import Estimator
from sgdph.roles import Groups, parameter_name
from sgdph.validation import is_stochastic, refuse_sparse_gradients, warn_of_unrefreshed

NewtonGroups = Sequence[dict[str, Any]]
State = MutableMapping[Tensor, dict[str, Any]]


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
        """Let one more Newton parameter join."""
        self.cycle.append(p)
        self.pending.watch([p])

    def is_due(self, groups: Groups) -> bool:
        """Tell whether the coming step wants a partial Hessian."""
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
            share: Whether the loss's own backward may begin with this pass.

        Returns:
            The rest of the backward, where it has begun; the graph is then partly freed.
        """
        check_loss(loss)
        self.guards.check_take(loss_scale, groups)
        graph = Graph(loss)
        reaches = self.sharded.reached_in(graph)
        targets = self._targets.choose(groups.newton, reaches, alone=self.is_alone())
        if not self.cycle.is_regular(groups.newton):
            targets = list(filter(reaches, targets))
            if not targets:
                # One that is sought, and is not here either.
                return None
        estimator: Estimator = groups.newton[0]["estimator"]
        trainable = [p for p in targets if p.requires_grad]
        self.pending.watch(trainable)
        leaves = self.sharded.leaves_in(graph, trainable, self.ranks)
        region = Region(graph, leaves)
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
        """Take the curvature that is due from differences of gradients.

        Args:
            closure: See :meth:`SGDPH.update_hessian`.
            loss_scale: See :meth:`SGDPH.update_hessian`.
            groups: The parameter groups.
        """
        self.guards.check_take(loss_scale, groups)
        last: list[LossFactors] = [LossFactors()]

        def watched() -> Tensor:
            loss = closure()
            # Before its graph is freed.
            if loss_scale is None and isinstance(loss, Tensor):
                last[0] = loss_factors(Graph(loss))
            return loss

        alone = self.is_alone()
        is_free = self._targets.are_free(groups.newton, alone=alone)
        # What a loss reaches shows only when there is one.
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
        """Keep what was taken until the step, divided by the loss's scale where that is known."""
        missed = [*self._targets.passed_over, *(p for p, h in taken.items() if h is None)]
        self.guards.check_reached([loss], missed, groups.every)
        for p in self._targets.params:
            h = taken.get(p)
            if h is not None:
                h = h.to(curvature_dtype(p))
                h = h if loss_scale is None else h / loss_scale
            self.pending.add(p, h, factors, owner, loss.grad_fn if owner is not None else None)

    def collect(
        self, groups: Groups, loss_scale: float | None, *, active: bool = True
    ) -> list[Collected]:
        """Collect what came for those that are to be refreshed, over all ranks.

        Args:
            groups: The parameter groups.
            loss_scale: See :meth:`SGDPH.step`.
            active: Whether this rank still has batches.

        Raises:
            RuntimeError: Nothing came, though there are gradients; or as :meth:`Ranks.check_join`.
        """
        self.pending.drop_cleared_graphs(self.cycle.newton)
        alone = self.is_alone()
        if not self._targets.are_chosen:
            self._targets.choose(groups.newton, self.pending.reaches(), alone=alone)
        targets = self._targets.params
        # What a rank without batches has in .grad is left over from its last one.
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
        if not alone:
            if not self.sharded.is_around(self.cycle.newton, groups.every):
                self.ranks.check_join(self.cycle.newton)
            collected = self.ranks.mean(collected, active=active)
        none = self.cycle.is_regular(groups.newton) and self._has_none(found.values())
        # Only a rank that has nothing waits for its device, to learn whether others have.
        if none and (alone or not any(bool(c.valid) for c in collected)):
            raise none_came(self.cycle.newton)
        return collected

    def _has_none(self, found: Iterable[Collected]) -> bool:
        # The gradient of a frozen parameter is left over: there is nothing to take.
        return any(c.p.requires_grad for c in found) and not any(
            c.h is not None or self.pending.was_missed(c.p) for c in found
        )

    def advance(self, groups: Groups, collected: Sequence[Collected], *, due: bool) -> None:
        """Complete a step: the next parameters are due."""
        refreshed = [c.p for c in collected if c.h is not None]
        alone = self.is_alone()
        if unrefreshed := self.cycle.advance(groups.newton, refreshed, due=due, alone=alone):
            names = [parameter_name(groups.every, p) for p in unrefreshed]
            warn_of_unrefreshed(names, MOST_SWEEPS)

    def average(self, collected: Sequence[Collected], groups: Groups, state: State) -> None:
        """Let what came enter the averages (Eq. 4, 5)."""
        if not collected:
            return
        # Noise has mean zero only while it is signed.
        signed = is_stochastic(groups.newton[0]["estimator"])
        beta2 = {p: group["hessian_momentum"] for group in groups.newton for p in group["params"]}
        for p, h, valid in collected:
            if h is not None:
                self._averages.add(p, state[p], h if signed else h.abs(), valid, beta2[p])

    def multiplier(
        self, p: Tensor, state: Mapping[Tensor, dict[str, Any]], group: Mapping[str, Any]
    ) -> Tensor:
        """Return ``τ / (D̂ + ε)``, shaped like ``p``; it is remembered, so do not write into it."""
        return self._averages.multiplier(p, state.get(p, {}), group)

    def is_alone(self) -> bool:
        """Tell whether there is no other rank to average with."""
        return self.ranks.count() <= 1

    def finish_step(self, groups: Groups) -> None:
        """Forget what was pending, and every graph a ``backward(create_graph=True)`` left behind.

        Parameter, ``.grad`` and graph hold each other, and no garbage collector sees that cycle.
        """
        self.pending.clear()
        self._targets.clear()
        # One that was unfrozen meanwhile too.
        self.pending.watch(self.cycle.newton)
        detach_gradients(p for group in groups.every for p in group["params"])

    def load(self, groups: NewtonGroups, turns: Sequence[Tensor | None]) -> None:
        """Take over a place in the cycle; drop the curvature that was pending at another."""
        self.pending.clear()
        self._targets.clear()
        self.cycle.load(groups, turns)

    def _notice_missed_in_gradients(self, targets: Sequence[Tensor], groups: Groups) -> None:
        """Look where ``backward(create_graph=True)`` left graphs, as ``take`` does at the loss."""
        gradients = [p.grad for group in groups.every for p in group["params"]]
        roots = [g for g in gradients if g is not None and g.grad_fn is not None]
        if roots:
            missed = [p for p in targets if p.requires_grad and self.pending.was_passed_over(p)]
            self.guards.check_reached(roots, missed, groups.every)
            self.pending.add_missed(missed)
