"""Telling when Newton parameters were exchanged inside the groups, behind the optimizer's back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sgdph.channelwise import is_newton
from sgdph.cycle import Cycle
from sgdph.groups import parameter_names
from sgdph.sharding import refuse_sharded


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
