"""The Newton parameters that the coming step refreshes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sgdph.curvature.cycle import Cycle
from sgdph.curvature.pending import PendingCurvature

Groups = Sequence[dict[str, Any]]


class Targets:
    """The parameters to refresh, chosen at the first loss of a step and kept until the step.

    Args:
        cycle: Determines which parameter is next.
        pending: Curvature that was taken for the coming step.

    Attributes:
        params: The parameters to refresh.
        passed_over: Parameters that were next, but that the loss does not reach.
        are_chosen: Whether they have been chosen, at a loss or at the step.
    """

    def __init__(self, cycle: Cycle, pending: PendingCurvature) -> None:
        self._cycle = cycle
        self._pending = pending
        self.clear()

    def clear(self) -> None:
        """Forget the choice, so that the next loss chooses again."""
        self.params: list[Tensor] = []
        self.passed_over: list[Tensor] = []
        self.are_chosen = False

    def choose(
        self, groups: Groups, reaches: Callable[[Tensor], bool], *, alone: bool
    ) -> list[Tensor]:
        """Return the parameters to refresh, and choose them unless an earlier choice still holds.

        Args:
            groups: The parameter groups.
            reaches: Returns whether the loss depends on a parameter.
            alone: Whether this is the only rank. With several ranks, a rank does not know what the
                others' losses reach, so ``reaches`` is not used for the choice.
        """
        if not self._still_hold(reaches):
            self.params, self.passed_over = self._cycle.choose(groups, reaches if alone else None)
            self.are_chosen = True
        return self.params

    def _still_hold(self, reaches: Callable[[Tensor], bool]) -> bool:
        if not self.are_chosen or not self._pending.holds(self.params):
            return False
        # If this loss reaches none, check whether the first loss's gradients were set to zero.
        return any(map(reaches, self.params)) or not self._pending.is_cleared(self.params)

    def are_free(self, groups: Groups, *, alone: bool) -> bool:
        """Return whether the parameters that the next loss reaches determine the choice."""
        fixed = self.are_chosen and self._pending.holds(self.params)
        cyclic = groups[0]["refresh"] == "cyclic"
        return not fixed and cyclic and alone and self._cycle.is_regular(groups)
