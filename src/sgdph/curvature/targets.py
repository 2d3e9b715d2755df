"""The Newton parameters that the coming step refreshes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sgdph.curvature.cycle import Cycle
from sgdph.curvature.pending import PendingCurvature

Groups = Sequence[dict[str, Any]]


class Targets:
    """Chooses them at the first loss of a step, and keeps them until the step.

    Args:
        cycle: Which parameter is next.
        pending: Curvature that was taken for the coming step.

    Attributes:
        params: The parameters to refresh.
        passed_over: Those that would have been next and that the loss does not reach.
        are_chosen: Whether a loss, or the step, has asked for them.
    """

    def __init__(self, cycle: Cycle, pending: PendingCurvature) -> None:
        self._cycle = cycle
        self._pending = pending
        self.clear()

    def clear(self) -> None:
        """Let the next loss choose anew."""
        self.params: list[Tensor] = []
        self.passed_over: list[Tensor] = []
        self.are_chosen = False

    def choose(
        self, groups: Groups, reaches: Callable[[Tensor], bool], *, alone: bool
    ) -> list[Tensor]:
        """Return the parameters to refresh: those of an earlier loss whose backward still counts.

        Args:
            groups: The parameter groups.
            reaches: Tells whether the loss depends on a parameter.
            alone: Whether this is the only rank. Several cannot tell what the others' losses reach.
        """
        if not self._still_hold(reaches):
            self.params, self.passed_over = self._cycle.choose(groups, reaches if alone else None)
            self.are_chosen = True
        return self.params

    def _still_hold(self, reaches: Callable[[Tensor], bool]) -> bool:
        if not self.are_chosen or not self._pending.holds(self.params):
            return False
        # Were the gradients of the first loss set to zero? Only this loss's own misses ask.
        return any(map(reaches, self.params)) or not self._pending.is_cleared(self.params)

    def are_free(self, groups: Groups, *, alone: bool) -> bool:
        """Tell whether the coming loss decides by what it reaches."""
        fixed = self.are_chosen and self._pending.holds(self.params)
        cyclic = groups[0]["refresh"] == "cyclic"
        return not fixed and cyclic and alone and self._cycle.is_regular(groups)
