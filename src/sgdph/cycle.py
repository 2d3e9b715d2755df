"""Whose turn it is: the cycle over the Newton parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sgdph.hessian import is_stochastic
from sgdph.probes import rademacher_probe

_START = {"step": 0, "cursor": 0, "refreshes": 0}


class Cycle:
    """The Newton parameters in registration order, and the place in the cycle over them.

    The place is three integers: ``step``, completed steps; ``refreshes``, those among them at which
    a partial Hessian was due; ``cursor``, whose turn it is. They live in the parameter groups, the
    same in each, so that whatever saves and restores groups carries them along.

    Args:
        newton: The Newton parameters.
    """

    def __init__(self, newton: Iterable[Tensor]) -> None:
        self.newton = list(newton)
        self._places = {id(p): i for i, p in enumerate(self.newton)}

    def __contains__(self, p: Tensor) -> bool:
        """Tell whether ``p`` is a Newton parameter."""
        return id(p) in self._places

    def append(self, p: Tensor) -> None:
        """Let one more parameter join the cycle, at its end."""
        self._places[id(p)] = len(self.newton)
        self.newton.append(p)

    @staticmethod
    def start(groups: Iterable[dict[str, Any]]) -> None:
        """Put the groups of a new optimizer at the beginning."""
        for group in groups:
            group.update(_START)

    @staticmethod
    def join(group: dict[str, Any], groups: Sequence[dict[str, Any]]) -> None:
        """Put a group that came later where the others are."""
        group.update(Cycle.place(groups[0]))

    @staticmethod
    def place(group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the place in the cycle that a group holds."""
        return {name: group[name] for name in _START}

    def is_due(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Tell whether the coming step wants a partial Hessian."""
        step, interval = groups[0]["step"], groups[0]["hessian_interval"]
        return bool(self.newton) and step % interval == 0

    def targets(self, groups: Sequence[dict[str, Any]]) -> list[Tensor]:
        """List the parameters whose turn it is."""
        if groups[0]["refresh"] == "all":
            return self.newton
        return [self.newton[groups[0]["cursor"] % len(self.newton)]]

    def probes(
        self, groups: Sequence[dict[str, Any]], params: Iterable[Tensor]
    ) -> list[Tensor] | None:
        """Draw this refresh's probe for each of ``params``, where the estimator wants any."""
        if not is_stochastic(groups[0]["estimator"]):
            return None
        seed, visit = groups[0]["seed"], groups[0]["refreshes"]
        if groups[0]["refresh"] == "cyclic":
            # Counted from the place in the cycle, because a parameter's own count of what arrived
            # lies on its device. From one turn of a parameter to its next it grows by one.
            visit //= len(self.newton)
        return [rademacher_probe(seed, visit, self._places[id(p)], p) for p in params]

    def advance(self, groups: Sequence[dict[str, Any]], refreshed: bool) -> None:
        """Complete a step: the turn passes on after a refresh, also where it came to nothing."""
        place = self.place(groups[0])
        place["step"] += 1
        if refreshed:
            place["refreshes"] += 1
            if groups[0]["refresh"] == "cyclic":
                place["cursor"] = (place["cursor"] + 1) % len(self.newton)
        for group in groups:
            group.update(place)


def starting_group(defaults: dict[str, Any]) -> dict[str, Any]:
    """Return what a group saved before any of today's settings existed stands for."""
    return {**defaults, **_START}
