"""What an optimizer with Newton parameters does: take curvature when due, average it, step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from sgdph.algorithm import MultiplierStatistics
from sgdph.curvature.guards import check_call
from sgdph.distributed.dtensor import step_newton_parameters
from sgdph.join import JoinableOptimizer
from sgdph.roles import parameter_names
from sgdph.state_dict import State, is_rehearsal, rehearse
from sgdph.validation import check_groups_agree

# The settings that first-order and Newton steps have in common.
OF_BOTH_STEPS = ("lr", "momentum", "weight_decay", "maximize", "foreach")


class SecondOrderOptimizer(JoinableOptimizer):
    """Base class that steps Newton parameters by Algorithm 1; a subclass steps the others.

    The subclass sets ``_curvature`` once its groups exist.
    """

    @property
    def _newton_state(self) -> State:
        return self.state

    @property
    def newton_parameters(self) -> Sequence[Tensor]:
        """The parameters that take Newton steps, in the order in which they are refreshed."""
        return tuple(self._curvature.cycle.newton)

    @property
    def hessian_due(self) -> bool:
        """Whether the coming step needs a partial Hessian.

        Raises:
            ValueError: Groups disagree about the cycle.
        """
        groups = self._groups
        check_groups_agree(groups.newton)
        return self._curvature.is_due(groups)

    # Like torch's own methods, these are not traced by torch.compile: every step would be traced
    # again. torch.compiler.disable is not used, because it would import the compiler.
    @_disable_dynamo
    def update_hessian(
        self,
        loss: Tensor | None = None,
        loss_scale: float | Tensor | None = None,
        *,
        closure: Callable[[], Tensor] | None = None,
    ) -> None:
        """Take the partial Hessian for the coming step, if one is due.

        Call it before ``loss.backward()``: it keeps the graph and does not change ``.grad``. Signed
        curvature of micro-batches adds up until the step, which drops a sum that is not finite.

        With ``closure`` in place of ``loss``, central differences of the gradient are taken instead
        of a second derivative, at two more forward and backward passes per product. Use it for
        cuDNN's recurrent layers, ``SyncBatchNorm``, compiled models and attention kernels that are
        not torch's. ``docs/second-derivatives.md`` describes its error and its limits at kinks.

        Args:
            loss: A real scalar with a graph.
            closure: Computes the loss from the model and a batch and returns it, without a
                backward. It is called at weights near the present ones. Weights, the modules'
                buffers and the global random generators of torch, numpy and Python are restored
                exactly. It must return the same loss for the same weights: fetch the batch
                outside, and use no other generators.
            loss_scale: The factor by which the loss is too large; the curvature is divided by it.
                For example, it is n if gradients of n micro-batches are divided by n only after
                this call. ``None`` is 1, or the scale of a ``GradScaler`` if the loss is
                ``scaler.scale(loss)`` and that scaler calls ``step``. Pass any other scale.

        Raises:
            TypeError, ValueError: ``loss`` is not a real scalar tensor; ``loss_scale`` is not above
                0; both or neither of ``loss`` and ``closure`` were given; groups disagree about the
                cycle, or sharded parameters were put into them.
            RuntimeError: ``loss`` has no graph, depends on no parameter of this optimizer, or
                cannot be differentiated twice; a channel-wise parameter has a sparse gradient;
                parameters were replaced after construction, in the model or in ``param_groups``;
                ``closure`` returns another loss at the same weights; a CUDA graph is being
                captured.
        """
        if (loss is None) == (closure is None):
            raise TypeError(
                "update_hessian takes either a loss or closure=..., a function that computes it; "
                f"got {'neither' if loss is None else 'both'}"
            )
        if not self.hessian_due:
            return
        self._check_ready()
        if loss is not None:
            self._curvature.take(loss, loss_scale, self._groups)
        elif closure is not None:
            self._curvature.take_differences(closure, loss_scale, self._groups)

    @_disable_dynamo
    def backward(
        self, loss: Tensor, loss_scale: float | Tensor | None = None, *, low_memory: bool = False
    ) -> None:
        """Take the partial Hessian if one is due, and run ``loss.backward()``.

        Gradients are added to ``.grad`` and hooks on parameters fire once, as in
        ``loss.backward()``. Hooks on tensors in between see each pass (``docs/cost.md``).

        Args:
            loss: See :meth:`update_hessian`.
            loss_scale: See :meth:`update_hessian`. The gradient is not divided by it.
            low_memory: Take the partial Hessian first, free its graph, and then run the backward,
                as :meth:`update_hessian` with ``loss.backward()`` does. This takes more time, and
                less memory on ResNets; on VGG and transformers about the same (``docs/cost.md``).
                By default both share one pass, unless several products, hooks or custom functions
                prevent this.

        Raises:
            TypeError, ValueError, RuntimeError: As in :meth:`update_hessian`.
        """
        finish_backward = None
        if self.hessian_due:
            self._check_ready()
            # Drop the curvature of update_hessian, if it was called for the same loss before.
            if isinstance(loss, Tensor):
                self._curvature.pending.drop_loss(loss)
            finish_backward = self._curvature.take(
                loss, loss_scale, self._groups, share=not low_memory
            )
        try:
            if finish_backward is None:
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                finish_backward()
        except BaseException:
            self._curvature.pending.drop_fresh()
            raise

    @_disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and the curvature that belongs to them.

        Curvature whose backward has not run yet is kept.
        """
        self._curvature.pending.gradients_cleared()
        self._curvature.cycle.gradients_cleared()
        super().zero_grad(set_to_none)

    @overload
    def step(self, closure: None = None, *, loss_scale: float | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, loss_scale: float | None = None) -> float: ...

    @_disable_dynamo
    def step(
        self, closure: Callable[[], float] | None = None, *, loss_scale: float | None = None
    ) -> float | None:
        """Perform one step, with all curvature taken since the last one.

        Without any gradient it does nothing. With several ranks it still takes part in the mean and
        counts as a step, because a rank does not know the others' gradients. A first step with zero
        gradients, ``lr=0`` in every group and no curvature only makes the state and is not counted;
        ``torch.distributed.checkpoint`` takes such a step. A step waits for the device only to read
        an ``lr`` that is a tensor, a ``GradScaler``'s scale with ``backward(create_graph=True)``,
        or, on a rank without curvature, whether other ranks have any.

        Args:
            closure: Clears the gradients, computes the loss, takes curvature and gradient in one
                of the three ways, and returns the loss.
            loss_scale: For ``backward(create_graph=True)`` only: the factor of the loss, above 0.
                ``None`` is the scale of the ``GradScaler`` that calls, or 1.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: A partial Hessian is due but was not taken; a channel-wise parameter has
                a sparse gradient; a parameter was moved or converted since its state was made;
                Newton parameters in ``param_groups`` were replaced; ``.grad`` was set by hand, so
                that its curvature is unknown; a CUDA graph is being captured.
            ValueError: Groups disagree about the cycle; sharded parameters were put into them;
                ``loss_scale`` is not above 0 and finite.
        """
        check_call(loss_scale)
        loss = evaluate(closure)
        self._check_ready()
        groups, curvature = self._groups, self._curvature
        curvature.guards.check_step(groups, self._newton_state)
        if closure is None and self._is_rehearsed():
            return None
        alone, newton = curvature.is_alone(), curvature.cycle.newton
        curvature.sharded.check_step(newton, groups.every, curvature.pending, alone)
        due = self.hessian_due
        if self._has_gradients() or not alone:
            collected = curvature.collect(groups, loss_scale) if due else []
            with torch.no_grad():
                # First the first-order steps: they may be other optimizers' code, and may raise.
                self._first_order_step()
                curvature.average(collected, groups, self._newton_state)
                for group in groups.newton:
                    self._newton_step(group)
            curvature.advance(groups, collected, due=due)
        curvature.finish_step(groups)
        return loss

    def multipliers(self) -> dict[str, Tensor]:
        """Return ``τ / (D̂ + ε)`` for every Newton parameter; it is 1 before its first refresh.

        Returns:
            Tensors of the parameters' shapes, on their devices, by parameter name (or by
            ``"group.place"`` for parameters without names).

        Raises:
            RuntimeError, ValueError: Newton parameters in ``param_groups`` were replaced.
        """
        self._curvature.guards.check_groups(self._groups)
        groups = {id(p): group for group in self._groups.newton for p in group["params"]}
        names = parameter_names(self.param_groups)
        return {
            names[id(p)]: self.newton_multiplier(p, groups[id(p)]).clone()
            for p in self.newton_parameters
        }

    def newton_multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the multiplier of a Newton parameter's momentum: ``τ / (D̂ + ε)``.

        ``step`` and :meth:`multipliers` call it. Override it to use another multiplier, as the
        controls of an ablation do.

        Args:
            p: A Newton parameter.
            group: Its parameter group.

        Returns:
            A tensor shaped like ``p``. It is reused at later steps, so do not change it.
        """
        return self._curvature.multiplier(p, self._newton_state, group)

    def multiplier_statistics(self) -> dict[str, MultiplierStatistics]:
        """Summarise :meth:`multipliers` for a logger. Waits for the device.

        Raises:
            RuntimeError, ValueError: As in :meth:`multipliers`.
        """
        counts = [self._newton_state.get(p, {}).get("refreshes") for p in self.newton_parameters]
        multipliers = self.multipliers()
        found = MultiplierStatistics.of_each(list(multipliers.values()), counts)
        return dict(zip(multipliers, found, strict=True))

    def _check_ready(self) -> None:
        """Raise an error if the model is not ready to be trained."""

    def _first_order_step(self) -> None:
        """Step the parameters that are not Newton parameters and have a gradient."""
        raise NotImplementedError

    def _newton_step(self, group: dict[str, Any]) -> None:
        """Step a group's Newton parameters that have a gradient."""
        newton = [p for p in group["params"] if p.grad is not None and p in self._curvature.cycle]
        buffers = self._momentum_buffers(newton)
        multipliers = [self.newton_multiplier(p, group) for p in newton]
        settings = {name: group[name] for name in OF_BOTH_STEPS}
        step_newton_parameters(newton, buffers, multipliers, **settings)
        self._keep_momentum(newton, buffers)

    def _momentum_buffers(self, params: list[Tensor]) -> list[Tensor | None]:
        return [self._newton_state.get(p, {}).get("momentum_buffer") for p in params]

    def _keep_momentum(self, params: list[Tensor], buffers: list[Tensor | None]) -> None:
        for p, buffer in zip(params, buffers, strict=True):
            if buffer is not None:
                self._newton_state[p]["momentum_buffer"] = buffer

    def _has_gradients(self) -> bool:
        return any(p.grad is not None for group in self.param_groups for p in group["params"])

    def _is_rehearsed(self) -> bool:
        """Return whether the step is a rehearsal; if so, create the state."""
        newton, pending = self._curvature.cycle.newton, self._curvature.pending
        is_one = not self.state and is_rehearsal(self.param_groups, newton, pending.has_come)
        if is_one:
            self._rehearse()
        return is_one

    def _rehearse(self) -> None:
        rehearse(self._groups.newton, self._newton_state, self._curvature.cycle.newton)


def evaluate(closure: Callable[[], float] | None) -> float | None:
    """Return the loss that a step's closure computes, with gradients; ``None`` without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
