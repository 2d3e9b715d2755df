"""The scale by which a ``GradScaler`` has multiplied a loss.

The gradients of a scaled loss are divided by the scale before the step, so its curvature has to be
as well. Which factor of a loss is a scale, and which is the user's own weight, shows only when a
``GradScaler`` calls ``step``. So :func:`loss_factors` reads the factors off the end of the loss's
graph, and :meth:`LossFactors.scale` picks the scaler's own among them later.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgdph.nodes import Node, is_packed

# GradScaler.step, its helper, and the wrappers that profilers and schedulers put around a step.
_DEEPEST = 12

# A loss may be a sum of many. Beyond so many nodes at its end nobody can tell how it was scaled.
_MOST_NODES = 10_000

# They pass a factor of their input on, whatever its shape.
_PASSING = frozenset(
    f"{name}Backward{i}"
    for name in (
        *("Neg", "Sum", "Mean", "ToCopy", "Clone", "Alias", "View", "UnsafeView", "ReshapeAlias"),
        *("Squeeze", "Unsqueeze", "Expand", "Select", "Permute", "Transpose", "T"),
        # All of their inputs have to carry the factor.
        *("Add", "Sub", "Stack", "Cat"),
    )
    for i in (0, 1, 2)
)


@dataclass(frozen=True)
class LossFactor:
    """One factor at the end of a loss.

    Attributes:
        tensor: The tensor itself, kept alive so that nothing else takes its address; ``None`` for
            a number.
        value: What it was at the time, of one element: a scaler's ``update()`` writes in place.
        version: How often the tensor had been written to.
        power: 1 where the loss was multiplied by it, -1 where it was divided.
    """

    tensor: Tensor | None
    value: Tensor | float
    version: int
    power: int

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two factors the same."""
        if self.tensor is None:
            return self.value, self.power
        return self.tensor.device, self.tensor.data_ptr(), self.version, self.power

    def is_in(self, scale: Tensor) -> bool:
        """Tell whether the loss was multiplied by that very tensor."""
        tensor = self.tensor
        return (
            tensor is not None
            and self.power == 1
            and tensor.device == scale.device
            and tensor.data_ptr() == scale.data_ptr()
        )

    def resembles(self, scale: float) -> bool:
        """Tell whether it may be a copy of a scale, or another scaler's. Waits for the device."""
        if self.power != 1:
            return False
        value = float(self.value)
        # Scales are powers of two, as good as always; weights of a loss are seldom tensors.
        like_one = self.tensor is not None and value > 1 and math.frexp(value)[0] == 0.5
        return value != 1 and (value == scale or like_one)


@dataclass(frozen=True)
class LossFactors:
    """What a loss was multiplied by at its end.

    Attributes:
        common: Factors of the whole loss.
        partial: Factors of some of its summands only.
        complete: Whether all of the end could be read.
    """

    common: tuple[LossFactor, ...] = ()
    partial: tuple[LossFactor, ...] = ()
    complete: bool = True

    def __bool__(self) -> bool:
        """Tell whether there is any that might be a scale."""
        return bool(self.common or self.partial or not self.complete)

    @property
    def key(self) -> tuple[object, ...]:
        """What makes the curvatures of two losses ones that can be added before they are scaled."""
        return (
            self.complete,
            tuple(factor.key for factor in self.common),
            tuple(factor.key for factor in self.partial),
        )

    def scale(self, scaler: torch.amp.GradScaler | None) -> Tensor | None:
        """Return what the loss is too large by: the scale of the scaler that calls ``step``.

        Args:
            scaler: ``None`` where none calls: all factors are then the user's own weights.

        Returns:
            A tensor of one element, or ``None`` for 1. Waits for the device only if the loss has
            factors and the scaler's own is not among them.

        Raises:
            RuntimeError: It cannot be told whether the loss was scaled.
        """
        scale: Tensor | None = getattr(scaler, "_scale", None)
        if scaler is None or scale is None:
            return None
        if not self.complete or any(factor.is_in(scale) for factor in self.partial):
            raise RuntimeError(
                "a GradScaler calls this step, but only a part of the loss that the partial "
                f"Hessian was taken from carries its scale, as far as its graph tells. {_REMEDY}"
            )
        own = next((factor.value for factor in self.common if factor.is_in(scale)), None)
        if isinstance(own, Tensor):
            return own
        factors = (*self.common, *self.partial)
        if any(factor.tensor is not None or factor.power == 1 for factor in factors):
            current = float(scaler.get_scale())
            if any(factor.resembles(current) for factor in factors):
                raise RuntimeError(
                    "a GradScaler calls this step, and the loss that the partial Hessian was taken "
                    "from was multiplied by what looks like a copy of its scale, or like another "
                    f"scaler's, but not by its own. {_REMEDY}"
                )
        return None


_REMEDY = (
    "Scale the whole loss with scaler.scale(loss), one tensor at a time, or tell the factor: "
    "loss_scale=scaler.get_scale(), or loss_scale=1.0 for a loss that was not scaled"
)


def loss_factors(loss: Tensor) -> LossFactors:
    """Read the factors at the end of a loss off its graph, as far as it is scaled and summed.

    Args:
        loss: A scalar whose graph has not been freed.
    """
    if loss.grad_fn is None:
        return LossFactors()
    paths: list[dict[tuple[object, ...], LossFactor]] = []
    stack: list[tuple[Node, Sequence[LossFactor]]] = [(loss.grad_fn, ())]
    visited = 0
    while stack:
        node, factors = stack.pop()
        visited += 1
        if visited > _MOST_NODES:
            return LossFactors(complete=False)
        name = type(node).__name__
        children = [child for child, _ in node.next_functions if child is not None]
        factor = _factor(node) if name in ("MulBackward0", "DivBackward0") else None
        if factor is not None:
            stack.append((children[0], (*factors, factor)))
        elif name in _PASSING and children:
            stack.extend((child, factors) for child in children)
        else:
            paths.append({factor.key: factor for factor in factors})
    shared = set.intersection(*(set(path) for path in paths))
    everything = {key: factor for path in paths for key, factor in path.items()}
    return LossFactors(
        tuple(paths[0][key] for key in paths[0] if key in shared),
        tuple(factor for key, factor in everything.items() if key not in shared),
    )


def _factor(node: Node) -> LossFactor | None:
    """Read the constant that a product or quotient has by its side, if that is one number."""
    (left, _), (right, _) = node.next_functions
    divides = type(node).__name__ == "DivBackward0"
    if (left is None) == (right is None) or (divides and left is None):
        return None
    name = "other" if right is None else "self"
    if is_packed(node, name):
        return None
    try:
        constant = getattr(node, f"_saved_{name}")
    except RuntimeError:
        # The graph was freed, which whoever differentiates it explains.
        return None
    if constant is None or constant.numel() != 1 or constant.is_complex():
        return None
    power = -1 if divides else 1
    if constant.device.type == "cpu" and constant.dtype in (torch.float64, torch.int64):
        # What Python's numbers are saved as.
        return LossFactor(None, float(constant), 0, power)
    constant = constant.detach()
    return LossFactor(constant, constant.clone(), constant._version, power)


def calling_grad_scaler() -> torch.amp.GradScaler | None:
    """Return the ``GradScaler`` whose ``step`` is calling the optimizer's, if one is.

    ``GradScaler.step`` hands its scale on to nobody without also handing over the unscaling, which
    would bar users from clipping. So we look who is calling.
    """
    frame = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame.f_back is None:
            break
        frame = frame.f_back
        # Looking at any other frame's locals would keep them alive: the loss, and its graph.
        if frame.f_globals.get("__name__") == torch.amp.GradScaler.__module__:
            caller: Any = frame.f_locals.get("self")
            if isinstance(caller, torch.amp.GradScaler):
                return caller
    return None
