"""timm: ``"sgdph"`` in its registry of optimizers, its scaler, and groups by role.

timm's training script reads an optimizer's ``is_second_order``. If it is true, every backward runs
with ``create_graph=True``. The script works unchanged, but needs memory for a graph of every
gradient. In your own loop, :class:`PartialHessianScaler` needs less memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.optim import OptimInfo, list_optimizers
from timm.optim._optim_factory import default_registry
from timm.utils import NativeScaler
from torch import Tensor, nn

from sgdph.integrations.wrapped import take_scaled
from sgdph.optimizer import SGDPH
from sgdph.roles import param_groups
from sgdph.wrappers import wrapped_sgdph


class SecondOrderSGDPH(SGDPH):
    """:class:`sgdph.SGDPH` that asks timm's training script for ``create_graph=True``."""

    is_second_order = True
    """timm's convention. SGDPH and PartialHessian do not have it: they need no such graph, and DDP
    does not support one."""


def register() -> None:
    """Register ``"sgdph"`` for ``timm.optim.create_optimizer_v2``; a second call does nothing.

    Example:
        >>> register()
        >>> optimizer = timm.optim.create_optimizer_v2(model, "sgdph", lr=0.01, weight_decay=5e-3)
    """
    if "sgdph" in list_optimizers():
        return
    default_registry.register(
        OptimInfo(
            name="sgdph",
            opt_class=SecondOrderSGDPH,
            description="SGD with a Newton step for channel-wise parameters",
            has_eps=True,
            has_momentum=True,
            second_order=True,
        )
    )


def by_role(model: nn.Module, groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split groups so that each holds parameters of one role, as :func:`sgdph.param_groups` does.

    timm's own groups (weight decay, layer decay) have no roles, so SGDPH and PartialHessian would
    use shapes.

    Args:
        model: The model whose parameters the groups hold.
        groups: Group dicts, as returned by ``timm.optim.param_groups_layer_decay``.

    Returns:
        Groups with the same settings and ``channelwise=True`` or ``False``, in the same order.

    Example:
        >>> groups = by_role(model, timm.optim.param_groups_layer_decay(model, layer_decay=0.75))
        >>> optimizer = timm.optim.create_optimizer_v2(groups, "sgdph", lr=0.01)
    """
    channelwise = {
        id(p) for group in param_groups(model) if group["channelwise"] for p in group["params"]
    }
    positions = {id(p): i for i, p in enumerate(model.parameters())}
    split = []
    for group in groups:
        members = list(group["params"])
        for role in (True, False):
            params = [p for p in members if (id(p) in channelwise) == role]
            if params:
                places = [positions.get(id(p), -1) for p in params]
                own = {"params": params, "channelwise": role, "positions": places}
                split.append({**group, **own})
    return split


class PartialHessianScaler(NativeScaler):
    """timm's ``NativeScaler`` that takes the partial Hessian first, from the scaled loss.

    It is a drop-in for loops that call ``loss_scaler(loss, optimizer, …)``. It needs no
    ``create_graph``, so it works under DDP. A compiled model needs :func:`sgdph.compiled`.
    """

    def __call__(
        self,
        loss: Tensor,
        optimizer: Any,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        parameters: Iterable[Tensor] | None = None,
        create_graph: bool = False,
        need_update: bool = True,
    ) -> None:
        """Take the curvature, then scale, run the backward, clip and step as timm does.

        Args:
            loss: The loss, not scaled. If micro-batches accumulate, divide it by their number.
            optimizer: The :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian`.
            clip_grad: See ``NativeScaler``.
            clip_mode: See ``NativeScaler``.
            parameters: See ``NativeScaler``.
            create_graph: Ignored. timm's script sets it for any second-order optimizer.
            need_update: See ``NativeScaler``.
        """
        take_scaled(wrapped_sgdph(optimizer), loss, self._scaler)
        super().__call__(
            loss,
            optimizer,
            clip_grad=clip_grad,
            clip_mode=clip_mode,
            parameters=parameters,
            need_update=need_update,
        )
