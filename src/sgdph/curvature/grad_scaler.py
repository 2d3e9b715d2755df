"""The scale by which a ``GradScaler`` has multiplied a loss.

The gradients of a scaled loss are divided by the scale before the step. Its curvature must be
divided too. Only when a ``GradScaler`` calls ``step`` is it known which factor of the loss is the
scale, and which is the user's own weight. So :func:`loss_factors` first reads the factors at the
end of the loss's graph. Later, :meth:`LossFactors.scale` picks the scaler's own factor.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sgdph.autograd.graph import Graph, Node, is_packed

# Linear in each input that has a graph, so a common factor of their inputs passes through.
_LINEAR = re.compile(
    "(Add|Addmm|Alias|As_?strided|Bmm|Cat|Clone|Cumsum|Diagonal|Dot|Expand|Flip|Gather|Index|IndexSelect"
    "|MaskedFill|MaskedSelect|Mean|Mm|Mv|Neg|Permute|Repeat|ReshapeAlias|Rsub|Select|Slice"
    "|Split|SplitWithSizes|Squeeze|Stack|Sub|Sum|T|ToCopy|Transpose|Unbind|Unsafe_?view|Unsqueeze"
    "|View|Where)Backward[0-9]",
    re.IGNORECASE,
)
# Linear in one input if the other is a constant.
_PRODUCTS = frozenset({"MulBackward0", "DivBackward0"})
_OF_TWO = re.compile("(Bmm|Dot|Mm|Mv|Addmm)Backward[0-9]")


@dataclass(frozen=True)
class LossFactor:
    """One factor at the end of a loss.

    Attributes:
        tensor: The tensor itself, kept alive so that no other tensor gets its address; ``None`` for
            a number.
        value: A copy of its value, of one element: a scaler's ``update()`` writes in place.
        version: How often the tensor had been written to.
        power: 1 if the loss was multiplied by it, -1 if the loss was divided by it.
    """

    tensor: Tensor | None
    value: Tensor | float
    version: int
    power: int

    @property
    def key(self) -> tuple[object, ...]:
        """A key that is equal for equal factors."""
        if self.tensor is None:
            return self.value, self.power
        return self.tensor.device, self.tensor.data_ptr(), self.version, self.power

    def is_in(self, scale: Tensor) -> bool:
        """Return whether the loss was multiplied by this very tensor."""
        tensor = self.tensor
        return (
            tensor is not None
            and self.power == 1
            and tensor.device == scale.device
            and tensor.data_ptr() == scale.data_ptr()
        )

    def resembles(self, scale: float) -> bool:
        """Return whether it may be a copied ``scale`` or another scaler's. Waits for the device."""
        if self.power != 1:
            return False
        value = float(self.value)
        # Scales are almost always powers of two; weights of a loss are rarely tensors.
        like_one = self.tensor is not None and value > 1 and math.frexp(value)[0] == 0.5
        return value != 1 and (value == scale or like_one)


@dataclass(frozen=True)
class LossFactors:
    """The factors of a loss that are found at the end of its graph.

    Attributes:
        common: Factors of the whole loss.
        unclear: Factors of only some of its summands, or beyond a nonlinear operation.
        complete: Whether all constants at the end could be read.
    """

    common: tuple[LossFactor, ...] = ()
    unclear: tuple[LossFactor, ...] = ()
    complete: bool = True

    def __bool__(self) -> bool:
        """Return whether any factor might be a scale."""
        return bool(self.common or self.unclear or not self.complete)

    @property
    def key(self) -> tuple[object, ...]:
        """A key. If it is equal for two losses, their curvatures can be added before scaling."""
        return (
            self.complete,
            tuple(factor.key for factor in self.common),
            tuple(factor.key for factor in self.unclear),
        )

    def are_outdated(self, scale: Tensor) -> bool:
        """Return whether a scaler has updated its scale since: after a step, or a skipped one.

        Args:
            scale: The scaler's scale.
        """
        return any(
            factor.is_in(scale) and factor.version != scale._version for factor in self.common
        )

    def scale(self, scaler: torch.amp.GradScaler | None) -> Tensor | None:
        """Return the scale of the scaler that calls ``step``, by which the loss is too large.

        Args:
            scaler: ``None`` if no scaler calls; all factors are then the user's own weights.

        Returns:
            A tensor of one element, or ``None`` for 1. Waits for the device only if the loss has
            factors and the scaler's own is not among them.

        Raises:
            RuntimeError: It is unclear whether the loss was scaled.
        """
        scale: Tensor | None = getattr(scaler, "_scale", None)
        if scaler is None or scale is None:
            return None
        own = next((factor.value for factor in self.common if factor.is_in(scale)), None)
        if isinstance(own, Tensor):
            return own
        if not self.complete or any(factor.is_in(scale) for factor in self.unclear):
            raise RuntimeError(
                "a GradScaler calls this step, but the graph of the loss does not show that its "
                f"scale multiplies the whole loss of the partial Hessian. {_REMEDY}"
            )
        if any(factor.tensor is not None or factor.power == 1 for factor in self.common):
            current = float(scaler.get_scale())
            if any(factor.resembles(current) for factor in self.common):
                raise RuntimeError(
                    "a GradScaler calls this step, but the loss of the partial Hessian was not "
                    "multiplied by its scale: it was multiplied by a copy of it, or by another "
                    f"scaler's. {_REMEDY}"
                )
        return None


_REMEDY = (
    "Scale the whole loss with scaler.scale(loss), one tensor at a time, or pass the factor: "
    "loss_scale=scaler.get_scale(), or loss_scale=1.0 for a loss that was not scaled"
)


def loss_factors(graph: Graph) -> LossFactors:
    """Read the factors of a loss from its graph.

    The graph is followed from the loss as long as it is linear. A factor applies to the whole loss
    if it is on all paths from the loss to the ends of this linear part.

    Args:
        graph: The graph of a scalar loss. It has not been freed.
    """
    # Each node comes after all nodes that lead to it.
    nodes = list(reversed(graph.following))
    if not nodes:
        return LossFactors()
    on_all_ways: dict[Node, dict[tuple[object, ...], LossFactor]] = {nodes[0]: {}}
    found: dict[tuple[object, ...], LossFactor] = {}
    ends: list[dict[tuple[object, ...], LossFactor]] = []
    complete = True
    for node in nodes:
        name = type(node).__name__
        factor = _factor(node) if name in _PRODUCTS else None
        if factor is not None and factor.tensor is not None:
            found[factor.key] = factor
        if node not in on_all_ways:
            continue
        factors = on_all_ways.pop(node)
        children = [child for child, _ in graph.following[node] if child is not None]
        if not children or not _is_linear(node, name, len(children)):
            complete = complete and not _hides_constant(node, name)
            ends.append(factors)
            continue
        if factor is not None:
            factors = {**factors, factor.key: factor}
        for child in children:
            known = on_all_ways.get(child)
            on_all_ways[child] = (
                factors
                if known is None
                else {key: each for key, each in known.items() if key in factors}
            )
    common = {k: f for k, f in ends[0].items() if all(k in end for end in ends[1:])}
    unclear = {k: f for k, f in found.items() if k not in common}
    return LossFactors(tuple(common.values()), tuple(unclear.values()), complete)


def _is_linear(node: Node, name: str, children: int) -> bool:
    if name in _PRODUCTS:
        edges = node.next_functions
        only_divisor = name == "DivBackward0" and edges[0][0] is None
        return children == 1 and not only_divisor and not _hides_constant(node, name)
    return _LINEAR.fullmatch(name) is not None and (children == 1 or not _OF_TWO.fullmatch(name))


def _hides_constant(node: Node, name: str) -> bool:
    """Return whether a pack hook replaced a product's constant, so that it cannot be compared."""
    if name not in _PRODUCTS:
        return False
    (left, _), (right, _) = node.next_functions
    constant = "other" if right is None else "self"
    return (left is None) != (right is None) and is_packed(node, constant)


def _factor(node: Node) -> LossFactor | None:
    """Return the constant operand of a product or quotient, if it is a single number."""
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
        # The graph was freed. Differentiating it raises the error that explains this.
        return None
    if constant is None or constant.numel() != 1 or constant.is_complex():
        return None
    power = -1 if divides else 1
    if constant.device.type == "cpu" and constant.dtype in (torch.float64, torch.int64):
        # Python numbers are saved like this. A mode that watches operations (FlopCounterMode) would
        # receive the bare number in place of the tensor.
        with _disable_current_modes():
            return LossFactor(None, float(constant), 0, power)
    constant = constant.detach()
    return LossFactor(constant, constant.clone(), constant._version, power)


def calling_grad_scaler() -> torch.amp.GradScaler | None:
    """Return the ``GradScaler`` whose ``step`` is calling the optimizer's ``step``, if any.

    ``GradScaler.step`` passes its scale only to optimizers that also unscale the gradients
    themselves, and then users could not clip. So this function searches the calling frames.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        # Reading the locals of other frames would keep them alive: the loss, and its graph.
        ours = frame.f_globals.get("__name__") == torch.amp.GradScaler.__module__
        if ours or frame.f_code.co_name in ("step", "_maybe_opt_step"):
            caller: Any = frame.f_locals.get("self")
            if isinstance(caller, torch.amp.GradScaler):
                return caller
    return None
