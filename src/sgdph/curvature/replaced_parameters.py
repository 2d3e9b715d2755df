"""A check whether parameters that are missing from a loss's graph have been replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from sgdph.autograd.differentiability import REENTRANT_WORKAROUND
from sgdph.autograd.graph import graph_nodes, is_leaf
from sgdph.roles import parameter_name
from sgdph.user_warning import warn_user

# Not typed in torch.
_weak_storage: Any = StorageWeakRef


class ReplacedParameters:
    """A check that distinguishes a parameter unused at one step from one the model has lost.

    Both are missing from the loss's graph. But a replaced parameter has a substitute of its shape:
    a leaf that the optimizer does not know and that was never in a graph together with it.
    """

    def __init__(self) -> None:
        # Maps the id of an unknown leaf, once seen, to the parameters that it may have replaced. An
        # id may be used again after the leaf is gone, and a weak reference to the leaf itself would
        # keep torch from converting its module.
        self._suspected: dict[int, tuple[Any, set[int]]] = {}
        self._is_first = True

    def check(
        self,
        roots: Iterable[Tensor],
        missed: Sequence[Tensor],
        groups: Sequence[dict[str, Any]],
    ) -> None:
        """Raise an error if missing parameters look replaced. The first call warns if others do.

        The graph is searched when a parameter is missing. It is also searched once before, to learn
        which unknown tensors belong there (such as a second network with its own optimizer). A
        second network whose parameters come later may look like a replacement.

        Args:
            roots: Tensors whose graphs lead to everything that the loss depends on.
            missed: The parameters that are due and that the graphs do not reach.
            groups: The optimizer's parameter groups.

        Raises:
            RuntimeError: A parameter is missing, and the loss depends on no parameter of the
                optimizer, or on replacements, or contains a reentrant checkpoint.
        """
        if not missed and not self._is_first:
            return
        nodes = graph_nodes(roots)
        name = partial(parameter_name, groups)
        if missed and any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes):
            raise RuntimeError(
                f"no partial Hessian of parameter {name(missed[0])} can be taken from this loss: "
                f"{REENTRANT_WORKAROUND}"
            )
        leaves = [node.variable for node in nodes if is_leaf(node)]
        own = [p for group in groups for p in group["params"] if p.requires_grad]
        known, reached = {id(p) for p in own}, {id(leaf) for leaf in leaves}
        absent = [p for p in own if id(p) not in reached]
        # A sparse tensor has no storage, and replaces no parameter.
        unknown = [s for s in leaves if id(s) not in known and s.layout is torch.strided]
        by_shape: dict[torch.Size, set[int]] = {}
        for p in absent:
            by_shape.setdefault(p.shape, set()).add(id(p))
        lookalikes = []
        self._suspected = {k: v for k, v in self._suspected.items() if not v[0].expired()}
        for leaf in unknown:
            missing = by_shape.get(leaf.shape, set())
            new = _weak_storage(leaf.untyped_storage()), missing
            storage, before = self._suspected.get(id(leaf), new)
            if missing & before:
                lookalikes.append(leaf)
            # Not what was in a graph with it, nor what was frozen or unknown when it first came.
            self._suspected[id(leaf)] = (storage, before - reached)
        first, self._is_first = self._is_first, False
        if not missed:
            if first and lookalikes:
                # First-order parameters are never due, so they would never be missed.
                warn_user(_described(lookalikes) + _REMEDY)
            return
        if len(absent) == len(own):
            raise RuntimeError(
                "the loss depends on none of this optimizer's parameters. "
                f"{_REMEDY if unknown else 'Was it computed from another model?'}"
            )
        if lookalikes:
            raise RuntimeError(
                f"parameter {name(missed[0])} is not in the loss's graph. "
                f"{_described(lookalikes)}{_REMEDY}. If they belong to another network with its "
                "own optimizer, freeze that one during this step (requires_grad_(False)). If the "
                "parameter is meant to take no Newton step, give its group channelwise=False"
            )


def _described(lookalikes: Sequence[Tensor]) -> str:
    shapes = ", ".join(str(tuple(t.shape)) for t in lookalikes[:3])
    return (
        f"The loss depends on {len(lookalikes)} trainable tensor(s) unknown to the optimizer, in "
        f"the shapes of parameters that it does not depend on ({shapes}). "
    )


_REMEDY = (
    "The model's parameters seem to have been replaced after the optimizer was built (by a "
    "conversion such as .to() that makes new ones, by adding or folding a weight norm, by a new "
    "layer). Build a new optimizer from the present model, or pass the new parameters to "
    "add_param_group"
)
