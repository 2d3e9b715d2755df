"""Telling why a parameter is missing from the loss's graph: it may be no longer the model's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from sgdph.differentiability import REENTRANT_WAY_OUT
from sgdph.nodes import is_leaf
from sgdph.region import graph_nodes


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
