"""The Newton step of Algorithm 1 beside any first-order optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim.optimizer import Optimizer, ParamsT

from sgdph.compound.compound import CompoundOptimizer
from sgdph.compound.first_order import (
    check_held,
    contradictions,
    copied,
    keep_only,
    own_entries,
    parameters_of,
    suitable,
    take_over,
)
from sgdph.names import Estimator, Refresh
from sgdph.optimizer import SGDPH
from sgdph.roles import parameter_names


class PartialHessian(CompoundOptimizer):
    """Newton steps for channel-wise parameters, and any first-order optimizer for the rest.

    The Newton half is that of :class:`sgdph.SGDPH`, and so are the three ways to take a partial
    Hessian, ``step``, accumulation and all else that is said there. With ``torch.optim.SGD`` as the
    first-order half it takes the same steps, to the bit, from its start.

    The first-order optimizers give up the Newton parameters that they hold; the moments of these
    are dropped. From then on this optimizer is stepped, cleared and saved, and no other. Its
    ``param_groups`` are the groups of the first-order optimizers (the same dicts), then those of
    the Newton parameters.

    ``train()`` and ``eval()`` are passed on to schedule-free optimizers, which need them. Their
    averages cover the first-order parameters only.

    Args:
        first_order: One ``torch.optim.Optimizer`` or several, built over the parameters of the
            model or over a part of them.
        params: What gives the Newton parameters: the groups of :func:`sgdph.param_groups`, of which
            those with ``channelwise=True`` are taken; or tensors, ``(name, tensor)`` pairs or
            groups, of which those are taken that SGDPH would take. The first-order ones among them
            are left to ``first_order``, with the settings that they have there.
        lr: Learning rate of the Newton steps.
        momentum: β₁, of the gradient of Newton parameters.
        weight_decay: λ of Newton parameters, outside the curvature.
        second_order_lr: τ; see :class:`sgdph.SGDPH`, as for all that follows.
        hessian_momentum: β₂, of the curvature.
        eps: ε, above zero.
        eps_warmup: Let the cap τ/ε grow with a parameter's refreshes.
        estimator: ``"row_sum"``, ``"hutchinson"`` or ``"exact"``.
        refresh: ``"cyclic"`` or ``"all"``.
        hessian_interval: Refresh at every n-th step only.
        maximize: Maximise the objective, in the Newton half.
        foreach: Use the multi-tensor path in the Newton half.
        seed: Of the probes of ``"hutchinson"``.
        process_group: The ranks to average the curvature over.

    Attributes:
        first_order: The first-order optimizers.

    Raises:
        TypeError: ``first_order`` holds something else than optimizers.
        ValueError: As :class:`sgdph.SGDPH`; a trainable first-order parameter of ``params`` is in
            none of ``first_order``, or a parameter is in two of them; one half maximises and the
            other does not; or one of ``first_order`` cannot serve, because it needs a closure or a
            graph of its own, wraps another one, or belongs to another PartialHessian.

    Example:
        >>> adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> optimizer = PartialHessian(adamw, param_groups(model), lr=0.05)
        >>> for x, y in loader:
        ...     optimizer.zero_grad()
        ...     loss = loss_fn(model(x), y)
        ...     optimizer.backward(loss)
        ...     optimizer.step()
    """

    def __init__(
        self,
        first_order: Optimizer | Sequence[Optimizer],
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
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
        optimizers = suitable(first_order)
        entries = own_entries(params, optimizers)
        given = [set(entry) if isinstance(entry, dict) else set() for entry in entries]
        newton = SGDPH(
            entries,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            second_order_lr=second_order_lr,
            hessian_momentum=hessian_momentum,
            eps=eps,
            eps_warmup=eps_warmup,
            estimator=estimator,
            refresh=refresh,
            hessian_interval=hessian_interval,
            maximize=maximize,
            foreach=foreach,
            seed=seed,
            process_group=process_group,
        )
        unheld = _keep_newton_parameters(newton, optimizers, given)
        _check_directions(newton, optimizers)
        before = [[copied(group) for group in o.param_groups] for o in optimizers]
        take_over(newton.newton_parameters, optimizers)
        super().__init__(optimizers, newton, before, unheld)

    def train(self) -> None:
        """Tell schedule-free first-order optimizers that training goes on."""
        self._tell("train")

    def eval(self) -> None:
        """Tell schedule-free first-order optimizers that the model is to be evaluated."""
        self._tell("eval")

    def _tell(self, mode: str) -> None:
        for optimizer in self.first_order:
            if hasattr(optimizer, mode):
                getattr(optimizer, mode)()

    def _check_ready(self) -> None:
        for optimizer in self.first_order:
            if any(group.get("train_mode") is False for group in optimizer.param_groups):
                raise RuntimeError(
                    f"{type(optimizer).__name__} is in evaluation mode, in which the weights are "
                    "not those being trained. Call optimizer.train() before the forward pass of a "
                    "training step"
                )


def _keep_newton_parameters(
    newton: SGDPH, optimizers: Sequence[Optimizer], given: Sequence[set[str]]
) -> dict[str, Tensor]:
    """Leave the first-order parameters of the Newton half's groups to those who hold them.

    Returns:
        The frozen ones that nobody holds, by name.
    """
    groups = newton.param_groups
    in_newton = {id(p) for p in newton.newton_parameters}
    first = [p for p in parameters_of(newton) if id(p) not in in_newton]
    unheld = check_held(first, optimizers, parameter_names(groups))
    ignored: list[str] = []
    # Where bare tensors were given they made one group, and no settings.
    for group, settings in zip(groups, given, strict=False):
        theirs = {**group, "params": [p for p in group["params"] if id(p) not in in_newton]}
        ignored += contradictions(theirs, settings, optimizers)
    for group in groups:
        keep_only(group, [id(p) in in_newton for p in group["params"]])
        group["channelwise"] = True
    groups[:] = [group for group in groups if group["params"]] or groups[:1]
    if not in_newton:
        warnings.warn(
            "PartialHessian was given no Newton parameter, so it has no effect. Of bare tensors, "
            "those with one number per channel are Newton parameters, except the last. Set "
            "channelwise=True in a group to choose them yourself",
            stacklevel=4,
        )
    if ignored:
        warnings.warn(
            "first-order parameters keep the settings of their own optimizer. These settings of "
            f"the groups given to PartialHessian are not used: {', '.join(sorted(set(ignored)))}",
            stacklevel=4,
        )
    return unheld


def _check_directions(newton: SGDPH, optimizers: Sequence[Optimizer]) -> None:
    """Check that both halves go uphill, or both downhill.

    Raises:
        ValueError: One does and the other does not.
    """
    uphill = {bool(group["maximize"]) for group in newton.param_groups}
    theirs = {bool(g.get("maximize", False)) for o in optimizers for g in o.param_groups}
    if len(uphill) == len(theirs) == 1 and uphill != theirs:
        raise ValueError(
            f"maximize is {uphill.pop()} for the Newton steps and {theirs.pop()} for the "
            "first-order optimizer, so the two would work against each other. Give both the same "
            "value"
        )
