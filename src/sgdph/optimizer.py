"""SGD with Partial Hessian: its settings, groups and state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim.optimizer import Optimizer, ParamsT
from torch.optim.sgd import sgd

from sgdph.curvature.curvature import Curvature
from sgdph.curvature.cycle import START, TURN, Cycle
from sgdph.distributed.dtensor import is_dtensor
from sgdph.distributed.sharding import refuse_sharded, refuse_zero
from sgdph.names import Estimator, Refresh
from sgdph.roles import (
    is_newton,
    like_the_others,
    newton_parameters,
    refuse_model,
)
from sgdph.state_dict import (
    complete_averages,
    complete_group,
    complete_saved,
    fit_state,
    restore_exactly,
)
from sgdph.step import OF_BOTH_STEPS, SecondOrderOptimizer
from sgdph.validation import (
    check_group,
    check_groups_agree,
    warn_of_joint_noise,
)


class SGDPH(SecondOrderOptimizer):
    """SGD with Partial Hessian (Sun, Yong & Zhang, 2024, arXiv:2403.02681).

    Most parameters take the steps of SGD with momentum. Channel-wise parameters (scales and shifts
    of norm layers, biases, lengths of weight-normalised weights) take a Newton-type step: the
    momentum times the multiplier ``τ / (D̂ + ε)``. ``D̂`` is a bias-corrected running average of
    the absolute value of a partial Hessian: a product of a vector with the parameter's Hessian
    block.

    When a partial Hessian is due, take it in one of three ways:

    * ``optimizer.backward(loss)`` in place of ``loss.backward()``;
    * ``optimizer.update_hessian(loss)`` before an ordinary ``loss.backward()``;
    * ``loss.backward(create_graph=True)``, which needs memory for a graph of every gradient.

    The curvature of several micro-batches before a step adds up, like their gradients.

    Among bare tensors, a parameter is channel-wise if it has one number per slice of its first
    dimension. The last such parameter is not: it is usually a classifier's bias. In groups made by
    :func:`sgdph.param_groups`, or with ``channelwise=True`` or ``False``, the group decides.

    The default curvature is *not* the diagonal of the Hessian: the paper's ``row_sum`` equals the
    diagonal only if the block is diagonal, and it is not. ``hutchinson`` estimates the diagonal
    without bias. ``exact`` computes it, with one product per channel. For a bias in front of layer
    norm the row sum is zero, because adding one number to all channels changes nothing. Its
    multiplier is then always τ/ε; use ``hutchinson`` there.

    Args:
        params: Tensors, ``(name, tensor)`` pairs, or group dicts.
        lr: Learning rate.
        momentum: β₁, the momentum of the gradient.
        dampening: For first-order parameters, as in ``torch.optim.SGD``; Newton steps have none.
        nesterov: For first-order parameters, as in ``torch.optim.SGD``.
        weight_decay: λ. For first-order parameters it is added to the gradient, as in
            ``torch.optim.SGD``. For Newton parameters it is added after the multiplier;
            ``param_groups`` can switch it off there.
        second_order_lr: τ. A Newton parameter's step is SGD's times at most τ/ε.
        hessian_momentum: β₂, the momentum of the curvature average.
        eps: ε, above zero.
        eps_warmup: Whether the largest multiplier grows to τ/ε with a parameter's number of
            refreshes v, as in the authors' code: ``τ (1 - β₂ᵛ) / (|D| + ε)``.
        estimator: ``"row_sum"`` (the paper), ``"hutchinson"`` or ``"exact"``.
        refresh: ``"cyclic"``, one parameter per refresh (the paper), or ``"all"``, with a product
            for each parameter. ``"hutchinson"`` then takes one joint product for all, which is
            noisy: use a ``hessian_momentum`` of 0.99 or more.
        hessian_interval: Refresh at every n-th step only.
        maximize: Maximise the objective.
        foreach: Whether to use the multi-tensor path. ``None`` uses it where it is faster: for
            first-order parameters like ``torch.optim.SGD``, for Newton parameters if all of a
            group are on CUDA devices.
        seed: Seed of the probes of ``"hutchinson"``. The global generator is never used.
        process_group: The ranks of ``torch.distributed`` to average the curvature over; ``None`` is
            the default group. Pickling does not keep it.

    Raises:
        ValueError: A hyperparameter is out of its range; groups disagree about ``estimator``,
            ``refresh``, ``hessian_interval`` or ``seed``; a parameter is sparse, or complex and
            flagged channel-wise, or channel-wise and sharded by anything but ``fully_shard``; a
            ``ZeroRedundancyOptimizer`` builds this optimizer.

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
        dampening: float = 0.0,
        nesterov: bool = False,
        second_order_lr: float = 1e-3,
        hessian_momentum: float = 0.9,
        eps: float = 1e-4,
        eps_warmup: bool = False,
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
            "dampening": dampening,
            "nesterov": nesterov,
            "second_order_lr": second_order_lr,
            "hessian_momentum": hessian_momentum,
            "eps": eps,
            "eps_warmup": eps_warmup,
            "estimator": estimator,
            "refresh": refresh,
            "hessian_interval": hessian_interval,
            "maximize": maximize,
            "foreach": foreach,
            "seed": seed,
            "channelwise": None,
        }
        refuse_model(params)
        check_group({**defaults, "params": []})
        # The positions of parameters in their model, if param_groups made their group.
        self._positions: list[tuple[Tensor, int]] = []
        self.__dict__.pop("_curvature", None)
        super().__init__(params, defaults)
        refuse_zero(self.param_groups)
        Cycle.start(self.param_groups)
        self._curvature = Curvature(
            newton_parameters(self.param_groups), process_group, self.param_groups
        )
        warn_of_joint_noise(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. Without a flag, the shape decides which parameters are Newton parameters.

        ``estimator``, ``refresh``, ``hessian_interval`` and ``seed`` default to those of the other
        groups, all other settings to the constructor's. Parameters that join between a backward
        and its step are refreshed from the next step on.

        Raises:
            TypeError: The group is not a dict, or its parameters are not tensors or are a set. The
                optimizer is then unchanged.
            ValueError: As in the constructor. The optimizer is then unchanged.
        """
        # Torch's constructor adds the first groups, whose roles depend on one another. hasattr,
        # because Lightning's wrapper is an instance of this class without its attributes.
        is_later = hasattr(self, "_curvature")
        if is_later:
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
        # Removed, because torch.distributed.checkpoint expects every key of a group to be saved.
        positions = group.pop("positions", ())
        if len(positions) == len(group["params"]):
            self._positions += zip(group["params"], positions, strict=True)
        if is_later:
            Cycle.join(group, self.param_groups)
            self._add_newton_parameters(group)
            warn_of_joint_noise(self.param_groups)

    def _add_newton_parameters(self, group: dict[str, Any]) -> None:
        """Add the Newton parameters of a later group to the cycle."""
        for p in group["params"]:
            if is_newton(p, group) and p not in self._curvature.cycle:
                self._curvature.append(p)

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get("param_groups")
        super().__setattr__(name, value)
        if name == "param_groups" and before and "_curvature" in self.__dict__:
            self._groups_assigned(before)

    def _groups_assigned(self, before: list[dict[str, Any]]) -> None:
        """Handle assigned groups of new parameters like :meth:`add_param_group`.

        The next step checks all other groups. Lightning's finetuning callbacks assign the groups
        of the run that they resume.
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
                self._add_newton_parameters(group)
        except Exception:
            super().__setattr__("param_groups", before)
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to resume training bit for bit.

        Newton parameters that no partial Hessian has reached yet first get a zero average, so
        the keys do not depend on when the state was saved. ``torch.distributed.checkpoint`` needs
        this: it loads into the keys of a state from before training.
        """
        if self.state:
            newton = (p for p in self._curvature.cycle.newton if p.requires_grad)
            complete_averages(self.state, newton)
        # Runs before the user's own hooks.
        handle = self.register_state_dict_post_hook(
            lambda _, saved: complete_saved(saved, self.param_groups, self._curvature.cycle),
            prepend=True,
        )
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state exactly. Tensors are copied, and pending curvature is dropped.

        If the state lacks newer keys, this optimizer keeps its own values for them. A state of
        ``torch.optim.SGD`` can be loaded too, as a warm start: its momentum, lr and weight decay
        are loaded, as in every ``load_state_dict``. It must be over the same groups; or over
        ``model.parameters()``, if this optimizer was built from ``param_groups(model)``; or over
        any groups with the same parameter names.

        Raises:
            TypeError: ``state_dict`` is not a mapping.
            ValueError: Groups or roles do not match; a parameter's state has a wrong type or shape
                or lacks a key; or a loaded hyperparameter is out of its range. The optimizer is
                then unchanged.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"load_state_dict takes what state_dict() returned, got {type(state_dict).__name__}"
            )
        fitted: dict[str, Any] = {}

        def fit(_: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            positions = {id(p): i for p, i in self._positions}
            fitted.update(fit_state(loaded, self.param_groups, self._curvature.cycle, positions))
            return fitted

        # Registered last, so it sees the state after the user's own hooks.
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
        newton = self._curvature.cycle.newton
        turns = [self.state.get(p, {}).pop(TURN, None) for p in newton]
        self._curvature.load(self.param_groups, turns)

    def __getstate__(self) -> dict[str, Any]:
        cycle = self._curvature.cycle
        turns = cycle.turns(self.param_groups)
        ours = {"newton": cycle.newton, "turns": turns, "_positions": self._positions}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # load_state_dict also calls this, with groups and state only, on an existing optimizer.
        newton, turns = state.pop("newton", None), state.pop("turns", None)
        if newton is not None:
            state.setdefault("_positions", [])
        known = self.__dict__.get("param_groups") or [
            {**state["defaults"], **START} for _ in state["param_groups"]
        ]
        super().__setstate__(state)
        for group, current in zip(self.param_groups, known, strict=True):
            complete_group(group, current)
            if newton is None:
                # Roles never change after construction, whatever the loaded state says.
                group["channelwise"] = current["channelwise"]
        if newton is not None:
            self._curvature = Curvature(newton, None, self.param_groups)
            self._curvature.cycle.load(self.param_groups, turns or [None] * len(newton))

    def _first_order_step(self) -> None:
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            first = [p for p in live if p not in self._curvature.cycle]
            # The multi-tensor path cannot mix plain and sharded tensors.
            sharded = [p for p in first if is_dtensor(p)]
            plain = [p for p in first if not is_dtensor(p)] if sharded else first
            for params in filter(None, (plain, sharded)):
                self._sgd_step(params, group)

    def _sgd_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        buffers = self._momentum_buffers(params)
        # torch's own function, so that these steps equal torch.optim.SGD's bit for bit.
        sgd(
            params,
            [p.grad for p in params if p.grad is not None],
            buffers,
            has_sparse_grad=any(p.grad.is_sparse for p in params if p.grad is not None),
            **{name: group[name] for name in (*OF_BOTH_STEPS, "dampening", "nesterov")},
        )
        self._keep_momentum(params, buffers)
