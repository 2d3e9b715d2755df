"""Second derivatives that torch lacks, from a formula for the first derivative.

For some operations, torch computes the first derivative by a kernel that cannot be differentiated.
The kernel's value is kept, bit for bit. Its derivative is taken from a formula for the same value,
with operations that torch can differentiate. The formula is evaluated only during a product, so
steps without a product do not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode

from sgdph.autograd.graph import (
    TELLS_PACKED,
    Gradients,
    Hook,
    Node,
    detached,
    has_packed,
    is_leaf,
    keep_gradient,
    kept_gradient,
)

Saved: TypeAlias = Callable[[str], Any]
"""Gives what a node saved in its forward, by name."""

Formula: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""Given a node's output gradient and its inputs, returns the inputs' gradients."""


class Operation(NamedTuple):
    """An operation whose first derivative has a formula here.

    Attributes:
        inputs: The names by which its node saves its first inputs, which may need gradients.
        formula: Returns the formula, given the other data that the node saved.
        backward: The kernel of the first derivative, in ``torch.ops.aten``.
    """

    inputs: tuple[str, ...]
    formula: Callable[[Saved], Formula]
    backward: str


class PackedArguments(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that records the arguments of first-derivative kernels when they run.

    A tensor that went through a pack hook (checkpointed, moved to the host) may be unpacked only by
    its node (:func:`~sgdph.autograd.graph.is_packed`). The kernel's arguments are the same tensors.

    Args:
        operations: The operations whose kernels are recorded.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kernels = {operation.backward for operation in operations}
        self._latest: dict[str, Any] = {}

    @classmethod
    def of(cls, nodes: Iterable[tuple[Node, Operation]]) -> PackedArguments | None:
        """Return a mode if any of the nodes may need it, else ``None``."""
        if all(TELLS_PACKED and not has_packed(node) for node, _ in nodes):
            return None
        return cls(operation for _, operation in nodes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in self._kernels:
            # Arguments that equal their defaults are not in args or kwargs.
            known = {argument.name: argument.default_value for argument in func._schema.arguments}
            self._latest = {**known, **dict(zip(known, args, strict=False)), **kwargs}
        return func(*args, **kwargs)

    def take(self) -> dict[str, Any]:
        """Return the arguments of the last kernel, by name, and release them here."""
        latest, self._latest = self._latest, {}
        return latest


def recomputed_hook(
    node: Node, operation: Operation, once: bool, packed: PackedArguments | None
) -> Hook:
    """Return the hook that gives a node's gradients the derivative of a formula.

    Args:
        node: A node of the operation.
        operation: The operation.
        once: Whether only one product will be taken; it then frees the tensors kept for it.
        packed: Holds the node's saved tensors, if they may be packed.
    """
    edges = zip(operation.inputs, node.next_functions, strict=False)
    leaves = {name: end.variable for name, (end, _) in edges if end is not None and is_leaf(end)}

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output = grad_outputs[0]
        if grad_output is None:
            return None
        arguments = None if packed is None else packed.take()

        def saved(name: str) -> Any:
            if arguments is not None:
                return arguments[name]
            return leaves[name] if name in leaves else getattr(node, f"_saved_{name}")

        formula, inputs = operation.formula(saved), map(saved, operation.inputs)
        gradients = list(map(detached, grad_inputs))
        return tuple(_RecomputedGradients.apply(formula, gradients, once, grad_output, *inputs))

    return hook


class _RecomputedGradients(Function):
    """The given gradients, with the derivative of a formula for them."""

    @staticmethod
    def forward(
        ctx: Any,
        formula: Formula,
        gradients: list[Tensor | None],
        once: bool,
        grad_output: Tensor,
        *inputs: Tensor,
    ) -> Gradients:
        ctx.save_for_backward(*inputs)
        keep_gradient(ctx, grad_output, once)
        ctx.formula = formula
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor | None) -> Gradients:
        needed = ctx.needs_input_grad[3:]
        variables = [
            tensor.detach().requires_grad_(needs)
            for tensor, needs in zip((kept_gradient(ctx), *ctx.saved_tensors), needed, strict=True)
        ]
        with torch.enable_grad():
            gradients = ctx.formula(*variables)
        pairs = zip(gradients, vectors, strict=True)
        used = [(g, v) for g, v in pairs if v is not None and g.requires_grad]
        wanted = [variable for variable in variables if variable.requires_grad]
        if not used:
            # The gradients depend on nothing that needs a derivative.
            return None, None, None, *(None for _ in needed)
        outputs, cotangents = zip(*used, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True))
        return None, None, None, *(next(found) if needs else None for needs in needed)
