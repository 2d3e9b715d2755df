"""The Newton step of Algorithm 1, combined with any first-order optimizer."""

from __future__ import annotations

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
from sgdph.user_warning import warn_user


class PartialHessian(CompoundOptimizer):
    """Newton steps for channel-wise parameters, and any first-order optimizer for the rest.

    The Newton half, the three ways to take a partial Hessian, ``step`` and accumulation are those
    of :class:`sgdph.SGDPH`. With ``torch.optim.SGD`` as the first-order half, a new optimizer takes
    the same steps as SGDPH, bit for bit.

    The Newton parameters are removed from the first-order optimizers, and their moments are
    dropped. Afterwards call ``step``, ``zero_grad`` and ``state_dict`` of this optimizer only. Its
    ``param_groups`` are the groups of the first-order optimizers (the same dicts), followed by
    those of the Newton parameters.

    ``train()`` and ``eval()`` are passed on to schedule-free optimizers, which need them. Their
    averages cover the first-order parameters only.

    Args:
        first_order: One ``torch.optim.Optimizer`` or several, built over the parameters of the
            model or over a part of them.
        params: The Newton parameters, possibly among others. From the groups of
            :func:`sgdph.param_groups`, those with ``channelwise=True`` are used. From tensors,
            ``(name, tensor)`` pairs or other groups, the parameters are used that SGDPH would treat
            as Newton parameters. The others stay in ``first_order``, with their settings there.
        lr: Learning rate of the Newton steps.
        momentum: β₁, the momentum of the Newton parameters' gradient.
        weight_decay: λ of Newton parameters, added after the multiplier.
        second_order_lr: τ. This and the following arguments are those of :class:`sgdph.SGDPH`.
        hessian_momentum: β₂, the momentum of the curvature average.
        eps: ε, above zero.
        eps_warmup: Whether the largest multiplier τ/ε grows with a parameter's refreshes.
        estimator: ``"row_sum"``, ``"hutchinson"`` or ``"exact"``.
        refresh: ``"cyclic"`` or ``"all"``.
        hessian_interval: Refresh at every n-th step only.
        maximize: Maximise the objective, in the Newton half.
        foreach: Use the multi-tensor path in the Newton half.
        seed: Seed of the probes of ``"hutchinson"``.
        process_group: The ranks to average the curvature over.

    Attributes:
        first_order: The first-order optimizers.

    Raises:
        TypeError: ``first_order`` holds anything but optimizers.
        ValueError: As in :class:`sgdph.SGDPH`; a trainable first-order parameter of ``params`` is
            in none of ``first_order``, or a parameter is in two of them; one half maximises and the
            other does not; one of ``first_order`` needs a closure or a graph of its own, wraps
            another optimizer, or belongs to another PartialHessian.

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
        """Switch schedule-free first-order optimizers to training mode."""
        self._tell("train")

    def eval(self) -> None:
        """Switch schedule-free first-order optimizers to evaluation mode."""
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
    """Remove first-order parameters from the Newton half's groups; ``optimizers`` hold them.

    Returns:
        The frozen parameters that no optimizer holds, by name.
    """
    groups = newton.param_groups
    in_newton = {id(p) for p in newton.newton_parameters}
    first = [p for p in parameters_of(newton) if id(p) not in in_newton]
    unheld = check_held(first, optimizers, parameter_names(groups))
    ignored: list[str] = []
    # Bare tensors make one group without settings, so the two lengths may differ.
    for group, settings in zip(groups, given, strict=False):
        theirs = {**group, "params": [p for p in group["params"] if id(p) not in in_newton]}
        ignored += contradictions(theirs, settings, optimizers)
    for group in groups:
        keep_only(group, [id(p) in in_newton for p in group["params"]])
        group["channelwise"] = True
    groups[:] = [group for group in groups if group["params"]] or groups[:1]
    if not in_newton:
        warn_user(
            "PartialHessian was given no Newton parameter, so it has no effect. Of bare tensors, "
            "those with one number per channel are Newton parameters, except the last. Set "
            "channelwise=True in a group to choose them yourself",
        )
    if ignored:
        warn_user(
            "first-order parameters keep the settings of their own optimizer. These settings of "
            f"the groups given to PartialHessian are not used: {', '.join(sorted(set(ignored)))}",
        )
    return unheld


def _check_directions(newton: SGDPH, optimizers: Sequence[Optimizer]) -> None:
    """Check that both halves maximise, or both minimise.

    Raises:
        ValueError: One half maximises and the other minimises.
    """
    uphill = {bool(group["maximize"]) for group in newton.param_groups}
    theirs = {bool(g.get("maximize", False)) for o in optimizers for g in o.param_groups}
    if len(uphill) == len(theirs) == 1 and uphill != theirs:
        raise ValueError(
            f"maximize is {uphill.pop()} for the Newton steps and {theirs.pop()} for the "
            "first-order optimizer, so the two would work against each other. Give both the same "
            "value"
        )
