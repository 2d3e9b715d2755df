"""Whether a step may go ahead: parameters that were replaced, exchanged or sharded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sgdph.autograd.differentiability import REENTRANT_WAY_OUT
from sgdph.autograd.graph import graph_nodes, is_leaf
from sgdph.curvature.cycle import Cycle
from sgdph.roles import is_newton, parameter_names


class ReplacedParameters:
    """Tells a parameter that sat out one step from one that the model no longer has.

    Both are missing from the loss's graph. A replaced one has left a stranger of its shape behind:
    a leaf that the optimizer does not know and that was not there before.
    """

    def __init__(self) -> None:
        self._strangers: set[int] | None = None

    def check(
        self,
        roots: Iterable[Tensor],
        missed: Sequence[Tensor],
        groups: Sequence[dict[str, Any]],
        name: Callable[[Tensor], str],
    ) -> None:
        """Raise where the missing parameters look replaced; at the first look, warn already.

        The graph is walked when a parameter is missing, and once before, to learn which strangers
        belong there (a second network with an optimizer of its own, say).

        Args:
            roots: Tensors whose graphs lead to all that the loss depends on.
            missed: The parameters whose turn it is and that the graphs do not reach.
            groups: The optimizer's parameter groups.
            name: Names a parameter.

        Raises:
            RuntimeError: The loss depends on no parameter of the optimizer, or on strangers that
                look like replacements, or hides some inside a reentrant checkpoint.
        """
        if not missed and self._strangers is not None:
            return
        nodes = graph_nodes(roots)
        if missed and any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes):
            raise RuntimeError(
                f"no partial Hessian of parameter {name(missed[0])} can be taken from this loss: "
                f"{REENTRANT_WAY_OUT}"
            )
        leaves = [node.variable for node in nodes if is_leaf(node)]
        own = [p for group in groups for p in group["params"] if p.requires_grad]
        known, reached = {id(p) for p in own}, {id(leaf) for leaf in leaves}
        absent = [p for p in own if id(p) not in reached]
        strangers = [leaf for leaf in leaves if id(leaf) not in known]
        shapes, expected = {p.shape for p in absent}, self._strangers or set()
        twins = [s for s in strangers if s.shape in shapes and id(s) not in expected]
        first = self._strangers is None
        if first:
            self._strangers = {id(s) for s in strangers} - {id(s) for s in twins}
        if not missed:
            if first and twins:
                # First-order parameters have no turn at which they would be missed.
                warnings.warn(_unknown(twins) + _REMEDY, UserWarning, stacklevel=6)
            return
        if len(absent) == len(own):
            raise RuntimeError(
                "the loss depends on none of this optimizer's parameters. "
                f"{_REMEDY if strangers else 'Was it computed from another model?'}"
            )
        if twins:
            raise RuntimeError(
                f"parameter {name(missed[0])} is not in the loss's graph. {_unknown(twins)}"
                f"{_REMEDY}. Where it is meant to be so, give that parameter's group "
                "channelwise=False"
            )


def _unknown(twins: Sequence[Tensor]) -> str:
    shapes = ", ".join(str(tuple(t.shape)) for t in twins[:3])
    return (
        f"The loss depends on {len(twins)} trainable tensor(s) unknown to the optimizer, in the "
        f"shapes of parameters that it does not depend on ({shapes}). "
    )


_REMEDY = (
    "The model's parameters seem to have been replaced after the optimizer was built (by a "
    "conversion such as .to() that makes new ones, by adding or folding a weight norm, by a new "
    "layer): build the optimizer anew from the model as it is now, or pass the new parameters to "
    "add_param_group"
)


class Membership:
    """Tells whether the groups still hold the parameters that take Newton steps, and no others.

    To ``torch.optim`` the groups' lists are the user's to change (``params[i] = other`` after net
    surgery; Accelerate does so under FSDP2). Here another parameter in a Newton parameter's place
    would have no turn, and train first-order without a word. First-order ones may be exchanged.

    Args:
        cycle: The Newton parameters.
        groups: The parameter groups, as the roles were given.
    """

    def __init__(self, cycle: Cycle, groups: Sequence[dict[str, Any]]) -> None:
        self._cycle = cycle
        # First-order against their shape: a classifier's bias.
        self._excepted = self._without_turn(groups)
        self._checked: list[int] = []
        # Now, because one that has left the groups has no name any more.
        self._names = parameter_names(groups)

    def check(self, groups: Sequence[dict[str, Any]]) -> None:
        """Compare the groups with the cycle, where they have changed since the last look.

        Raises:
            RuntimeError: A Newton parameter is in no group any more, or one that should take Newton
                steps came into a group unnoticed.
            ValueError: It is sharded besides.
        """
        present = [id(p) for group in groups for p in group["params"]]
        if present == self._checked:
            return
        for group in groups:
            refuse_sharded(group)
        here = set(present)
        gone = [p for p in self._cycle.newton if id(p) not in here]
        excepted = {id(p) for p in self._excepted}
        unknown = [p for p in self._without_turn(groups) if id(p) not in excepted]
        if gone or unknown:
            raise RuntimeError(
                f"param_groups were changed by hand: {self._findings(gone, unknown)}. Build the "
                "optimizer anew from the model as it is now; or leave the groups as they were and "
                "pass new parameters to add_param_group"
            )
        self._checked = present
        self._names = parameter_names(groups)

    def _without_turn(self, groups: Sequence[dict[str, Any]]) -> list[Tensor]:
        return [
            p
            for group in groups
            for p in group["params"]
            if p not in self._cycle and is_newton(p, group)
        ]

    def _findings(self, gone: Sequence[Tensor], unknown: Sequence[Tensor]) -> str:
        findings = []
        if gone:
            name = self._names.get(id(gone[0]), f"of shape {tuple(gone[0].shape)}")
            rest = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
            findings.append(f"parameter {name}{rest}, which takes Newton steps, is in none of them")
        if unknown:
            shapes = ", ".join(str(tuple(p.shape)) for p in unknown[:3])
            findings.append(
                f"{len(unknown)} channel-wise parameter(s) in them, of shape {shapes}, are unknown "
                "and would get no Newton step"
            )
        return "; ".join(findings)


_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"
# ZeroRedundancyOptimizer's method, SGDPH's constructor and this module, and subclasses in between.
_DEEPEST = 8


def is_sharded(p: Tensor) -> bool:
    """Tell whether ``p`` is a ``DTensor`` (FSDP2, tensor parallel) or a shard of FSDP1's."""
    module = sys.modules.get("torch.distributed.tensor")
    is_dtensor = module is not None and isinstance(p, module.DTensor)
    return is_dtensor or bool(getattr(p, "_fsdp_flattened", False))


def refuse_sharded(group: Mapping[str, Any]) -> None:
    """Refuse a Newton step for sharded parameters.

    Sharding wrappers free and gather weights around a backward, which leaves no graph to
    differentiate a second time; and a shard's shape says nothing about the parameter's role.

    Raises:
        ValueError: A parameter is sharded, and channel-wise by its group's word or by its shape.
    """
    for p in group["params"]:
        if is_sharded(p) and is_newton(p, group):
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} is sharded ({type(p).__name__}; by "
                "fully_shard, FullyShardedDataParallel or tensor parallelism), and no partial "
                "Hessian can be taken of it. Use DistributedDataParallel, or give the groups of "
                "sharded parameters channelwise=False: they then train as torch.optim.SGD does"
            )


def refuse_zero(groups: Iterable[Mapping[str, Any]]) -> None:
    """Refuse to be built by ``ZeroRedundancyOptimizer``, but for first-order groups.

    It gives every rank other parameters, and the curvature of one parameter is a mean over ranks.

    Raises:
        ValueError: It is building this optimizer, and a group is not flagged ``channelwise=False``.
    """
    if all(group.get("channelwise") is False for group in groups):
        return
    frame = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame.f_globals.get("__name__") == _ZERO:
            raise ValueError(
                "ZeroRedundancyOptimizer gives every rank other parameters, and SGDPH averages the "
                "curvature of one parameter over all ranks. Give it torch.optim.SGD and the "
                "first-order groups of sgdph.param_groups, and SGDPH the channel-wise groups: "
                "together they take the same steps"
            )
        if frame.f_back is None:
            return
        frame = frame.f_back
