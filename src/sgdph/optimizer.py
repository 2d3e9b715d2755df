"""SGD with Partial Hessian: the state, the cycle, Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup
from torch.optim.optimizer import Optimizer, ParamsT
from torch.optim.sgd import sgd

from sgdph.algorithm import newton_step
from sgdph.curvature.curvature import Curvature
from sgdph.curvature.cycle import TURN, Cycle, starting_group
from sgdph.curvature.guards import refuse_sharded, refuse_zero
from sgdph.join import CurvatureJoinHook, refuse_to_lead
from sgdph.names import Estimator, Refresh
from sgdph.roles import (
    is_newton,
    like_the_others,
    newton_parameters,
    parameter_name,
    parameter_names,
)
from sgdph.state_dict import (
    check_still_fits,
    complete_averages,
    complete_group,
    complete_saved,
    fit_state,
    rehearsed,
    restore_exactly,
)
from sgdph.validation import (
    check_group,
    check_groups_agree,
    check_loss_scale,
    refuse_graph_capture,
    refuse_sparse_gradients,
    warn_of_joint_noise,
)

# What the first-order and the Newton step have in common.
_OF_BOTH_STEPS = ("lr", "momentum", "weight_decay", "maximize", "foreach")


class SGDPH(Optimizer):
    """SGD with Partial Hessian (Sun, Yong & Zhang, 2024, arXiv:2403.02681).

    SGD with momentum, and for channel-wise parameters (scales and shifts of norm layers, biases,
    lengths of weight-normalised weights) a Newton-type step: the momentum times ``τ / (D̂ + ε)``,
    where ``D̂`` is a bias-corrected running average of a rectified Hessian-vector product of the
    parameter's own block.

    Where a partial Hessian is due, it is taken in one of three ways:

    * ``optimizer.backward(loss)`` in place of ``loss.backward()``;
    * ``optimizer.update_hessian(loss)`` before an ordinary ``loss.backward()``;
    * ``loss.backward(create_graph=True)``, at the memory of a graph of every gradient.

    Several micro-batches before a step add up, as their gradients do.

    Given bare tensors, a parameter with one number per slice of its first dimension is taken for
    channel-wise, but for the last such one, which is usually a classifier's bias. Groups made by
    :func:`sgdph.param_groups`, or flagged ``channelwise=True`` or ``False``, decide themselves.

    The curvature is *not* the diagonal of the Hessian by default: the paper's ``row_sum`` equals it
    only if the block is diagonal, which it is not. ``hutchinson`` estimates the diagonal without
    bias, ``exact`` computes it at one product per channel. Where adding one number to all channels
    changes nothing, as for a bias that layer norm follows, the row sum is zero and the multiplier
    sits at τ/ε: take ``hutchinson`` there.

    Args:
        params: Tensors, ``(name, tensor)`` pairs, or group dicts.
        lr: Learning rate.
        momentum: β₁, of the gradient.
        weight_decay: λ. Inside the gradient for first-order parameters, as in ``torch.optim.SGD``;
            outside the curvature for Newton parameters. ``param_groups`` can switch it off there.
        second_order_lr: τ. A Newton parameter's step is SGD's times at most τ/ε.
        hessian_momentum: β₂, of the curvature.
        eps: ε, above zero.
        estimator: ``"row_sum"`` (the paper), ``"hutchinson"`` or ``"exact"``.
        refresh: ``"cyclic"``, one parameter per refresh (the paper), or ``"all"``: each parameter
            its own product, but for ``"hutchinson"`` one joint product, whose noise wants
            ``hessian_momentum`` of 0.99 or more.
        hessian_interval: Refresh at every n-th step only.
        maximize: Maximise the objective.
        foreach: Use the multi-tensor path. ``None`` takes it where it is known to be faster: for
            first-order parameters as ``torch.optim.SGD`` does, for Newton parameters where all of
            a group's are on CUDA devices.
        seed: Of the probes of ``"hutchinson"``. The global generator is never used.
        process_group: Where ``torch.distributed`` runs, the ranks to average the curvature over;
            ``None`` is the default group. Not kept by pickling.

    Raises:
        ValueError: A hyperparameter is out of its range; groups disagree about ``estimator``,
            ``refresh``, ``hessian_interval`` or ``seed``; a parameter is sparse, or complex and
            flagged channel-wise, or channel-wise and sharded; ``ZeroRedundancyOptimizer`` is
            building this.

    Example:
        >>> optimizer = SGDPH(param_groups(model, weight_decay=5e-3), lr=0.01)
        >>> for x, y in loader:
        ...     optimizer.zero_grad()
        ...     loss = loss_fn(model(x), y)
        ...     optimizer.backward(loss)
        ...     optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        second_order_lr: float = 1e-3,
        hessian_momentum: float = 0.9,
        eps: float = 1e-4,
        estimator: Estimator = "row_sum",
        refresh: Refresh = "cyclic",
        hessian_interval: int = 1,
        maximize: bool = False,
        foreach: bool | None = None,
        seed: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "second_order_lr": second_order_lr,
            "hessian_momentum": hessian_momentum,
            "eps": eps,
            "estimator": estimator,
            "refresh": refresh,
            "hessian_interval": hessian_interval,
            "maximize": maximize,
            "foreach": foreach,
            "seed": seed,
            "channelwise": None,
        }
        check_group({**defaults, "params": []})
        # None while torch's constructor adds the first groups: their roles depend on one another.
        self._curvature: Curvature | None = None
        # Where in its model a parameter stands, if param_groups made its group.
        self._positions: list[tuple[Tensor, int]] = []
        super().__init__(params, defaults)
        refuse_zero(self.param_groups)
        Cycle.start(self.param_groups)
        self._curvature = Curvature(
            newton_parameters(self.param_groups), process_group, self.param_groups
        )
        warn_of_joint_noise(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. Unless flagged, its parameters are Newton where their shape says so.

        ``estimator``, ``refresh``, ``hessian_interval`` and ``seed`` are those of the other groups
        if it does not name them, all else the constructor's.

        Raises:
            TypeError: The group is no dict, or its parameters are no tensors or a set of them; the
                optimizer is then as it was.
            ValueError: As the constructor; the optimizer is then as it was.
        """
        curvature: Curvature | None = self._curvature
        if curvature is not None:
            param_group = like_the_others(self.param_groups, param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            check_groups_agree(self.param_groups)
            refuse_sharded(group)
        except Exception:
            self.param_groups.pop()
            raise
        # Not left in the group: a checkpoint of torch.distributed has to have each of its keys.
        positions = group.pop("positions", ())
        if len(positions) == len(group["params"]):
            self._positions += zip(group["params"], positions, strict=True)
        if curvature is not None:
            Cycle.join(group, self.param_groups)
            self._join(group, curvature)
            warn_of_joint_noise(self.param_groups)

    @staticmethod
    def _join(group: dict[str, Any], curvature: Curvature) -> None:
        """Let the Newton parameters of a group that came later join the cycle."""
        for p in group["params"]:
            if is_newton(p, group) and p not in curvature.cycle:
                curvature.append(p)

    @property
    def hessian_due(self) -> bool:
        """Whether the coming step wants a partial Hessian.

        Raises:
            ValueError: Groups disagree about the cycle.
        """
        check_groups_agree(self.param_groups)
        return self._flow.is_due(self.param_groups)

    # Under torch.compile these run as they are, like torch's own methods: which parameter is next
    # changes from step to step, and a trace would be made anew each time. Not by
    # torch.compiler.disable, which would import the compiler with this module.
    @_disable_dynamo
    def update_hessian(
        self,
        loss: Tensor | None = None,
        loss_scale: float | Tensor | None = None,
        *,
        closure: Callable[[], Tensor] | None = None,
    ) -> None:
        """Take the partial Hessian that the coming step wants; nothing where none is due.

        Call it before the loss's own backward: the graph stays alive, ``.grad`` untouched.
        Micro-batches add up, signed, until the step. A non-finite result is dropped by the step.

        With ``closure`` in place of ``loss`` it is taken from central differences of the gradient,
        at two forward and backward passes more for each product, and needs no second derivative:
        for fused attention, cuDNN's recurrent layers, ``SyncBatchNorm``, compiled models. Its
        error, and what it sees of ReLU's kinks, is in ``docs/second-derivatives.md``.

        Args:
            loss: A real scalar with a graph.
            closure: Computes the loss from the model and a batch and returns it, without a
                backward. Called at weights beside the present ones, which come back to the bit, as
                do the buffers of the modules that it calls and the global random number generators
                of torch, numpy and Python. It must be a function of the weights: the batch is
                fetched before, and generators of its own are not used.
            loss_scale: What the loss is too large by, and the curvature is divided by: n, say,
                where accumulation over n micro-batches divides only after this call. ``None`` is 1,
                and the scale of a ``GradScaler`` where ``scaler.scale(loss)`` was given and that
                scaler calls ``step``. A scaler of one's own has to be told.

        Raises:
            TypeError, ValueError: ``loss`` is no real scalar tensor; ``loss_scale`` is not above 0;
                not one of ``loss`` and ``closure`` was given; groups disagree about the cycle, or
                shards were put into them.
            RuntimeError: ``loss`` has no graph, depends on no parameter of this optimizer, or
                cannot be differentiated twice; a channel-wise parameter has a sparse gradient;
                parameters were replaced after construction, in the model or in ``param_groups``;
                ``closure`` returns another loss at the same weights; or a CUDA graph is being
                captured.
        """
        if closure is None and loss is not None:
            self._take(loss, loss_scale, share=False)
        elif closure is not None and loss is None:
            if self.hessian_due:
                refuse_graph_capture()
                self._flow.take_differences(closure, loss_scale, self.param_groups)
        else:
            raise TypeError(
                "update_hessian takes a loss, or closure=... that computes one; got "
                f"{'neither' if loss is None else 'both'}"
            )

    @_disable_dynamo
    def backward(
        self, loss: Tensor, loss_scale: float | Tensor | None = None, *, low_memory: bool = False
    ) -> None:
        """Take the partial Hessian where one is due, then run ``loss.backward()``.

        Leaves all as ``loss.backward()`` would: gradients added to ``.grad``, hooks on parameters
        fired once. Hooks on tensors in between see each pass (``docs/cost.md``).

        Args:
            loss: See :meth:`update_hessian`.
            loss_scale: See :meth:`update_hessian`. The gradient is not divided by it.
            low_memory: Take the partial Hessian first and free its graph, and only then begin the
                backward, as :meth:`update_hessian` with ``loss.backward()``: more time, less
                memory on ResNets, about as much on VGG and transformers (``docs/cost.md``).
                Otherwise the backward begins in the same pass, where that can be done without
                being noticed.

        Raises:
            TypeError, ValueError, RuntimeError: As :meth:`update_hessian`.
        """
        rest = self._take(loss, loss_scale, share=not low_memory)
        try:
            if rest is None:
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                rest()
        except BaseException:
            self._flow.backward_failed()
            raise

    @_disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and the curvature that belongs to them.

        Curvature whose backward is still to come stays.
        """
        self._flow.gradients_cleared()
        super().zero_grad(set_to_none)

    @overload
    def step(self, closure: None = None, *, loss_scale: float | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, loss_scale: float | None = None) -> float: ...

    @_disable_dynamo
    def step(
        self, closure: Callable[[], float] | None = None, *, loss_scale: float | None = None
    ) -> float | None:
        """Perform one step and consume all pending curvature.

        A step at which no parameter has a gradient does nothing; but with several ranks, whose
        gradients a rank cannot know, it takes part in the mean and counts as a step. One before all
        others, with gradients of zero, an ``lr`` of 0 in every group and no curvature, makes the
        state and is not counted: ``torch.distributed.checkpoint`` takes such a one. A step waits
        for the device only to read an ``lr`` that is a tensor or, with
        ``backward(create_graph=True)``, a ``GradScaler``'s scale, and where no curvature came on
        this rank, to learn whether it did on others.

        Args:
            closure: Clears the gradients, computes the loss, takes curvature and gradient in one
                of the three ways, returns the loss.
            loss_scale: For ``backward(create_graph=True)`` alone: what the loss was multiplied by,
                above 0. ``None`` is the scale of the ``GradScaler`` that calls, or 1.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: A partial Hessian is due and none came; a channel-wise parameter has a
                sparse gradient; a parameter was moved or converted since its state was made; Newton
                parameters were exchanged inside ``param_groups``; a CUDA graph is being captured.
            ValueError: Groups disagree about the cycle; shards were put into them; ``loss_scale``
                is not above 0 and finite.
        """
        refuse_graph_capture()
        if loss_scale is not None:
            check_loss_scale(loss_scale)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._flow.check_membership(self.param_groups)
        if closure is None and rehearsed(
            self.param_groups, self.state, self._flow.cycle.newton, self._flow.has_come
        ):
            return None
        due = self.hessian_due
        self._check_gradients()
        if self._has_gradients() or self._flow.has_other_ranks():
            arrivals = self._flow.arrive(self.param_groups, loss_scale) if due else []
            with torch.no_grad():
                self._flow.average(arrivals, self.param_groups, self.state)
                for group in self.param_groups:
                    self._step_group(group)
            self._flow.advance(self.param_groups, arrivals, due=due)
        self._flow.consumed(self.param_groups)
        return loss

    def join_hook(self, **settings: Any) -> CurvatureJoinHook:
        """For ``Join([model, optimizer])`` (``torch.distributed.algorithms.join``): uneven inputs.

        Each forward of the model must then have its ``step``: no accumulation, no skipped steps.
        """
        return CurvatureJoinHook(self, self._flow, settings)

    @property
    def join_device(self) -> torch.device:
        """The device of a join context's collectives."""
        device: torch.device = self.param_groups[0]["params"][0].device
        return device

    @property
    def join_process_group(self) -> ProcessGroup | None:
        """The ranks of a join context."""
        return self._flow.ranks.process_group or torch.distributed.group.WORLD

    def __setattr__(self, name: str, value: Any) -> None:
        # How a join context says what it is, before it begins.
        if name == "_join_config":
            refuse_to_lead(value)
            if value.enable:
                self._flow.join_begins()
        before = self.__dict__.get("param_groups")
        super().__setattr__(name, value)
        if name == "param_groups" and before and self.__dict__.get("_curvature") is not None:
            self._groups_assigned(before)

    def _groups_assigned(self, before: list[dict[str, Any]]) -> None:
        """Treat groups of new parameters as :meth:`add_param_group` does; a step checks the rest.

        Lightning's finetuning callbacks assign the groups of the run that they resume.
        """
        known = {id(p) for group in before for p in group["params"]}
        try:
            for group in self.param_groups:
                if any(id(p) in known for p in group["params"]):
                    continue
                complete_group(group, {**before[0], "channelwise": None, "params": []})
                check_group(group)
                check_groups_agree(self.param_groups)
                refuse_sharded(group)
                self._join(group, self._flow)
        except Exception:
            super().__setattr__("param_groups", before)
            raise

    def multipliers(self) -> dict[str, Tensor]:
        """Read ``τ / (D̂ + ε)`` of every Newton parameter, 1 where none was refreshed yet.

        Returns:
            By parameter name (or ``"group.place"`` where parameters have no names), tensors of the
            parameters' shapes, on their devices.

        Raises:
            RuntimeError, ValueError: Newton parameters were exchanged inside ``param_groups``.
        """
        self._flow.check_membership(self.param_groups)
        groups = {id(p): group for group in self.param_groups for p in group["params"]}
        names = parameter_names(self.param_groups)
        return {
            names[id(p)]: self._multiplier(p, groups[id(p)]).clone()
            for p in self._flow.cycle.newton
        }

    def multiplier_statistics(self) -> dict[str, MultiplierStatistics]:
        """Summarise :meth:`multipliers` for a logger. Waits for the device.

        Raises:
            RuntimeError, ValueError: As :meth:`multipliers`.
        """
        counts = [self.state.get(p, {}).get("refreshes") for p in self._flow.cycle.newton]
        return {
            name: MultiplierStatistics.of(multiplier, count)
            for (name, multiplier), count in zip(self.multipliers().items(), counts, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume to the bit needs.

        Newton parameters that no partial Hessian has reached yet get an average of nothing first,
        so that the keys do not depend on when it was saved: ``torch.distributed.checkpoint`` loads
        into the keys of a state that training has not begun with.
        """
        if self.state:
            newton = (p for p in self._flow.cycle.newton if p.requires_grad)
            complete_averages(self.state, newton)
        # Before the user's own hooks see it.
        handle = self.register_state_dict_post_hook(
            lambda _, saved: complete_saved(saved, self.param_groups, self._flow.cycle),
            prepend=True,
        )
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, exactly; tensors are copied. Pending curvature is dropped.

        A state that lacks newer keys keeps this optimizer's values for them. So does a state of
        ``torch.optim.SGD``: a warm start, with its momentum, and, as in every ``load_state_dict``,
        its lr and weight decay. It may be of the same groups; or of ``model.parameters()``, where
        these are ``param_groups(model)``; or of any groups, where both have the same names.

        Raises:
            TypeError: It is no dict.
            ValueError: Groups or roles do not match; a parameter's state cannot be what it was, by
                type, shape or missing keys; or a loaded hyperparameter is out of its range. The
                optimizer is then as it was.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"load_state_dict takes what state_dict() returned, got {type(state_dict).__name__}"
            )
        fitted: dict[str, Any] = {}

        def fit(_: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            positions = {id(p): i for p, i in self._positions}
            fitted.update(fit_state(loaded, self.param_groups, self._flow.cycle, positions))
            return fitted

        # Registered last, so it sees what the user's own hooks have made of the state.
        handle = self.register_load_state_dict_pre_hook(fit)
        before = self.param_groups, self.state
        try:
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                check_group(group)
            check_groups_agree(self.param_groups)
        except Exception:
            self.param_groups, self.state = before
            raise
        finally:
            handle.remove()
        restore_exactly(self.state, self.param_groups, fitted)
        newton = self._flow.cycle.newton
        turns = [self.state.get(p, {}).pop(TURN, None) for p in newton]
        self._flow.state_replaced(self.param_groups, turns)

    def __getstate__(self) -> dict[str, Any]:
        cycle = self._flow.cycle
        turns = cycle.turns(self.param_groups)
        ours = {"newton": cycle.newton, "turns": turns, "_positions": self._positions}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # load_state_dict comes this way too: with groups and state, but to an optimizer in being.
        newton, turns = state.pop("newton", None), state.pop("turns", None)
        if newton is not None:
            state.setdefault("_positions", [])
        known = self.__dict__.get("param_groups") or [
            starting_group(state["defaults"]) for _ in state["param_groups"]
        ]
        super().__setstate__(state)
        for group, current in zip(self.param_groups, known, strict=True):
            complete_group(group, current)
            if newton is None:
                # Roles never change after construction, whatever the state that is loaded says.
                group["channelwise"] = current["channelwise"]
        if newton is not None:
            self._curvature = Curvature(newton, None, self.param_groups)
            self._curvature.cycle.load(self.param_groups, turns or [None] * len(newton))

    @property
    def _flow(self) -> Curvature:
        assert self._curvature is not None, "the constructor has not finished"
        return self._curvature

    def _take(
        self, loss: Tensor, loss_scale: float | Tensor | None, *, share: bool
    ) -> Callable[[], None] | None:
        """Take what is due, and return the rest of the backward where that has begun."""
        if not self.hessian_due:
            return None
        refuse_graph_capture()
        return self._flow.take(loss, loss_scale, self.param_groups, share=share)

    def _step_group(self, group: dict[str, Any]) -> None:
        """Step the group's parameters that have a gradient, each kind its own way."""
        live = [p for p in group["params"] if p.grad is not None]
        first_order = [p for p in live if p not in self._flow.cycle]
        newton = [p for p in live if p in self._flow.cycle]
        shared = {name: group[name] for name in _OF_BOTH_STEPS}
        buffers = self._momentum_buffers(first_order)
        # torch's own function, so that these steps are torch.optim.SGD's to the bit.
        sgd(
            first_order,
            [p.grad for p in first_order],
            buffers,
            has_sparse_grad=any(p.grad.is_sparse for p in first_order),
            dampening=0.0,
            nesterov=False,
            **shared,
        )
        self._keep_momentum(first_order, buffers)

        buffers = self._momentum_buffers(newton)
        multipliers = [self._multiplier(p, group) for p in newton]
        newton_step(newton, [p.grad for p in newton], buffers, multipliers, **shared)
        self._keep_momentum(newton, buffers)

    def _multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return what the momentum of ``p`` is multiplied by. Controls put another in its place."""
        return self._flow.multiplier(p, self.state, group)

    def _momentum_buffers(self, params: list[Tensor]) -> list[Tensor | None]:
        return [self.state.get(p, {}).get("momentum_buffer") for p in params]

    def _keep_momentum(self, params: list[Tensor], buffers: list[Tensor | None]) -> None:
        for p, buffer in zip(params, buffers, strict=True):
            if buffer is not None:
                self.state[p]["momentum_buffer"] = buffer

    def _has_gradients(self) -> bool:
        return any(p.grad is not None for group in self.param_groups for p in group["params"])

    def _check_gradients(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                check_still_fits(p, self.state.get(p, {}), self._name)
                if p in self._flow.cycle:
                    refuse_sparse_gradients([p], [p.grad], self._name)

    def _name(self, p: Tensor) -> str:
        return parameter_name(self.param_groups, p)


@dataclass(frozen=True)
class MultiplierStatistics:
    """``τ / (D̂ + ε)`` over the entries of one parameter: how many times SGD's step it takes.

    Attributes:
        min: Smallest, where the curvature is largest.
        median: The lower median.
        mean: Arithmetic mean.
        max: Largest; at most τ/ε.
        refreshes: How many partial Hessians have entered the average.
    """

    min: float
    median: float
    mean: float
    max: float
    refreshes: int

    @classmethod
    def of(cls, multiplier: Tensor, refreshes: Tensor | None) -> MultiplierStatistics:
        """Summarise a multiplier of any shape; ``refreshes`` is its parameter's ``v``, if any."""
        # On the CPU, because not every device has float64.
        values = multiplier.detach().to("cpu", torch.float64).flatten()
        if values.numel() == 0:
            return cls(1.0, 1.0, 1.0, 1.0, 0)
        return cls(
            min=values.min().item(),
            median=values.median().item(),
            mean=values.mean().item(),
            max=values.max().item(),
            refreshes=0 if refreshes is None else int(refreshes.item()),
        )
